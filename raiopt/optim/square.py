"""Square Attack: a random search by the losses alone."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.optimizer import ParamsT

from raiopt import checks, sampling
from raiopt.batching import as_batch
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.projections import project_
from raiopt.optim.signatures import with_defaults
from raiopt.transforms import squares


class SquareOptim(ParamTransformingOptimizer):
    """Proposes a change of the best perturbation so far in a random square, and keeps it where the loss falls.

    Square Attack (Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049; for L1 Croce and Hein 2021,
    https://arxiv.org/abs/2103.01208). It needs no gradient: in each step it reads the group's `losses`, and `fooled` if
    that is there, of the candidate that the parameter holds, then puts the next one there: see
    `raiopt.perturbations.solver.published`. A candidate that fools is better than one that does not. So the parameter
    is not the best that was found: whoever runs the search has to keep that.

    Where the parameter starts makes no difference: the first candidate has stripes (Linf) or bumps (L1, L2) all over.
    Each datum must be an image (C, H, W); more dimensions count as channels. There is no inner optimizer, and so no
    learning rate.

    Args:
        p: 1, 2 or infinity: of the ball that is searched.
        epsilon: See `ProjectedParameterOptimizer`.
        steps: How many steps the search will take. It sets how fast the squares shrink: their share of the image is
            halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 steps. With 10000 it is so in any
            search, as in AutoAttack.
        p_init: The first share, above 0, at most 1.

    The loss is the sum of the entries, best where all are -1:

    >>> x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    >>> optimizer = SquareOptim([x], p=math.inf, epsilon=1.0, steps=200)
    >>> least = 0.0
    >>> for _ in range(200):
    ...     optimizer.param_groups[0].update(losses=x.detach().sum((1, 2, 3)), generators=[torch.default_generator])
    ...     optimizer.step()
    ...     least = min(least, x.sum().item())
    >>> least
    -16.0
    """

    gradient_free = own_steps = True

    def __init__(
        self,
        params: ParamsT | None,
        *,
        p: float,
        epsilon: float | Tensor,
        steps: int,
        p_init: float = 0.8,
        param_ndim: int | None = -1,
    ) -> None:
        self.p = self.ball = checks.choice("p", p, (1, 2, math.inf))
        own = with_defaults({}, epsilon=epsilon, steps=steps, p_init=p_init)
        super().__init__(params, SGD, param_ndim=param_ndim, lr=0.0, **own)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        checks.number("steps", group["steps"], low=1, integer=True)
        checks.number("p_init", group["p_init"], above=0, high=1)
        for param in group["params"]:
            rows = as_batch(param.detach(), group["param_ndim"])
            if rows.ndim < 4:
                raise ValueError(
                    f"SquareOptim needs images (C, H, W), but with param_ndim={group['param_ndim']} a parameter of "
                    f"shape {tuple(param.shape)} is seen as {tuple(rows.shape)}."
                )

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            param.grad.zero_()  # nothing but the candidates may move the parameter
        turn = self._turn("square.turn", optim_group)
        if turn == 0:
            candidate = self._start(param.flatten(1, -3), optim_group)
        else:
            best = self._accepted(param, optim_group).flatten(1, -3)
            candidate = self._candidate(best, turn - 1, optim_group)
        param.copy_(candidate.reshape(param.shape))

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, optim_group, self.p)

    def _start(self, images: Tensor, optim_group: dict[str, Any]) -> Tensor:
        draws = self._draws(images, squares.start_draws(self.p, *images.shape[1:]), optim_group)
        return squares.starts(images, self.p, _radius(optim_group), draws)

    def _candidate(self, best: Tensor, number: int, optim_group: dict[str, Any]) -> Tensor:
        """Returns a change of the best perturbations (N, C, H, W); candidates are numbered from 0."""
        channels, epsilon = best.shape[1], _radius(optim_group)
        share = squares.share(number, optim_group["steps"], optim_group["p_init"])
        if math.isinf(self.p):
            side = squares.side(share, *best.shape[2:])
            return squares.flipped_corners(best, side, epsilon, self._draws(best, 2 + channels, optim_group))
        side = squares.side(share, *best.shape[2:], odd=True)
        return squares.moved_bumps(best, side, self.p, epsilon, self._draws(best, 5 + channels, optim_group))

    def _draws(self, rows: Tensor, amount: int, optim_group: dict[str, Any]) -> Tensor:
        return sampling.uniform_rows(rows, (amount,), optim_group.get("generators"))

    def _accepted(self, param: Tensor, optim_group: dict[str, Any]) -> Tensor:
        """Returns the best perturbation of each image so far, after a look at the candidate in the parameter."""
        best = self._memory("square.best", optim_group)
        least = self._row_memory("square.loss", optim_group, param, math.inf)
        has_fooled = self._row_memory("square.fooled", optim_group, param)
        losses = self._published("losses", optim_group, param)
        fooled = torch.zeros_like(least)
        if "fooled" in optim_group:
            fooled = self._published("fooled", optim_group, param).to(least.dtype)
        better = (fooled > has_fooled) | ((fooled == has_fooled) & (losses < least))
        for kept, new in ((best, param), (least, losses), (has_fooled, fooled)):
            kept.copy_(torch.where(better, new, kept))
        return best.to(least.dtype)


def _radius(optim_group: dict[str, Any]) -> float | Tensor:
    """Returns epsilon as it broadcasts to images (N, C, H, W)."""
    epsilon = optim_group["epsilon"]
    return epsilon.flatten(1, -3) if isinstance(epsilon, Tensor) else epsilon
