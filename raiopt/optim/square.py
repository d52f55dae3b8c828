"""Square Attack: a black-box random search that needs only the losses."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD

from raiopt import checks, sampling
from raiopt.batching import as_batch
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.inner import Params
from raiopt.optim.projections import project_
from raiopt.optim.signatures import with_defaults
from raiopt.optim.state import State
from raiopt.optim.traits import Traits
from raiopt.transforms import squares


class SquareOptim(ParamTransformingOptimizer):
    """Square Attack: changes the best perturbation so far in a random square, and keeps it where the loss decreases.

    Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049; for L1 Croce and Hein 2021,
    https://arxiv.org/abs/2103.01208. It needs no gradient: each step reads the group's `losses`, and `fooled` if
    present, for the candidate in the parameter, then writes the next candidate there: see
    `raiopt.attacks.search.published`. Adversarial candidates are always better than others. The parameter holds the
    current candidate, not the best perturbation found: the caller must keep the latter.

    The initial parameter has no effect: the first candidate consists of stripes (Linf) or bumps (L1, L2). Each
    datum must be an image (C, H, W); further dimensions count as channels. There is no inner optimizer and no learning
    rate.

    Args:
        p: 1, 2 or infinity: the norm of the ball.
        epsilon: See `ProjectedParameterOptimizer`.
        steps: The number of steps of the search. It determines how fast the squares shrink: their share of the image is
            halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 steps. AutoAttack uses 10000 for
            searches of any length.
        p_init: The initial share of the image that a square covers, above 0 and at most 1.

    Here the loss is the sum of the entries, which is smallest where all are -1:

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

    traits = Traits(gradient_free=True, sets_own_steps=True)
    _limits: ClassVar = {"steps": {"low": 1, "integer": True}, "p_init": {"above": 0, "high": 1, "scalar": True}}

    def __init__(
        self,
        params: Params,
        *,
        p: float,
        epsilon: float | Tensor,
        steps: int,
        p_init: float = 0.8,
        param_ndim: int | None = -1,
    ) -> None:
        self.p = checks.choice("p", p, (1, 2, math.inf))
        self.traits = replace(self.traits, ball=p)
        own = with_defaults({}, epsilon=epsilon, steps=steps, p_init=p_init)
        super().__init__(params, SGD, param_ndim=param_ndim, lr=0.0, **own)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for param in group["params"]:
            rows = as_batch(param.detach(), group["param_ndim"])
            if rows.ndim < 4:
                raise ValueError(
                    f"SquareOptim needs images (C, H, W), but with param_ndim={group['param_ndim']} a parameter of "
                    f"shape {tuple(param.shape)} is seen as {tuple(rows.shape)}."
                )

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        return {"k": 0, "best": torch.zeros_like(param), "loss": math.inf, "is_fooled": 0.0}

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            param.grad.zero_()  # only the candidates may move the parameter
        state = self._state(param, optim_group)
        if state.k == 0:
            candidate = self._start(param.flatten(1, -3), optim_group)
        else:
            self._accept(state, param, optim_group)
            best = state.best.to(state.loss.dtype).flatten(1, -3)
            candidate = self._candidate(best, state.k - 1, optim_group)
        param.copy_(candidate.reshape(param.shape))
        state.k += 1

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, optim_group, self.p)

    def _start(self, images: Tensor, optim_group: dict[str, Any]) -> Tensor:
        draws = self._draws(images, squares.start_draws(self.p, *images.shape[1:]), optim_group)
        return squares.starts(images, self.p, _radius(optim_group), draws)

    def _candidate(self, best: Tensor, number: int, optim_group: dict[str, Any]) -> Tensor:
        """Returns the next candidates (N, C, H, W), changed from the best perturbations; `number` counts from 0."""
        channels, epsilon = best.shape[1], _radius(optim_group)
        share = squares.share(number, optim_group["steps"], optim_group["p_init"])
        if math.isinf(self.p):
            side = squares.side(share, *best.shape[2:])
            return squares.flipped_corners(best, side, epsilon, self._draws(best, 2 + channels, optim_group))
        side = squares.side(share, *best.shape[2:], odd=True)
        return squares.moved_bumps(best, side, self.p, epsilon, self._draws(best, 5 + channels, optim_group))

    def _draws(self, rows: Tensor, amount: int, optim_group: dict[str, Any]) -> Tensor:
        return sampling.uniform_rows(rows, (amount,), optim_group.get("generators"))

    def _accept(self, state: State, param: Tensor, optim_group: dict[str, Any]) -> None:
        """Keeps the candidate in the parameter for each image where it is better than the best one so far."""
        losses, fooled = self._published("losses", optim_group, param), torch.zeros_like(state.loss)
        if "fooled" in optim_group:
            fooled = self._published("fooled", optim_group, param).to(state.loss.dtype)
        better = (fooled > state.is_fooled) | ((fooled == state.is_fooled) & (losses < state.loss))
        state.best = torch.where(better, param, state.best)
        state.loss = torch.where(better, losses, state.loss)
        state.is_fooled = torch.where(better, fooled, state.is_fooled)


def _radius(optim_group: dict[str, Any]) -> float | Tensor:
    """Returns epsilon in a shape that broadcasts to images (N, C, H, W)."""
    epsilon = optim_group["epsilon"]
    return epsilon.flatten(1, -3) if isinstance(epsilon, Tensor) else epsilon
