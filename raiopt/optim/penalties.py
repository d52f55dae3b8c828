"""The smallest perturbation that fools, by any torch optimizer: norm and weighted loss are made small together."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.optimizer import ParamsT

from raiopt import checks, transforms
from raiopt.optim.inner import InnerOptimizer
from raiopt.optim.signatures import with_defaults
from raiopt.optim.smallest import NOTHING, SmallestOptim


class CWOptim(SmallestOptim):
    """Adds to c times the gradient of data that are not fooled that of the squared L2 norm, and looks for the best c.

    Carlini and Wagner 2017, https://arxiv.org/abs/1608.04644. The steps are divided into rounds, and c is constant in
    each: ten times as large in the next one if the datum was not fooled, then half way between the largest that failed
    and the smallest that did not. A round begins where the last one ended, not at zero. The box is held by projection
    instead of a change of variables, so that the perturbation keeps its units. Reads `fooled`: see
    `raiopt.perturbations.solver.published`.

    Args:
        steps: How many will be taken.
        epsilon: The largest norm that counts; infinity for none.
        searches: The number of rounds, of a step at least.
        c: Of the first round; 0.001 in the paper, which takes thousands of steps.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = CWOptim([x], steps=100, lr=0.1)
    >>> optimizer.param_groups[0]["fooled"] = torch.tensor([False])
    >>> x.grad = torch.tensor([[-3.0, -4.0]])
    >>> optimizer.step()
    >>> x
    tensor([[0.1000, 0.1000]], requires_grad=True)
    """

    ball = 2

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = Adam,
        *,
        steps: int,
        epsilon: float | Tensor = math.inf,
        searches: int = 9,
        c: float = 1.0,
        **shared: Any,
    ) -> None:
        own = with_defaults(shared, epsilon=epsilon, steps=steps, searches=searches, c=c)
        super().__init__(params, InnerOpt, **own)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        checks.number("steps", group["steps"], low=1, integer=True)
        checks.number("searches", group["searches"], low=1, integer=True)
        checks.number("c", group["c"], above=0)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        turn, fooled = self._turn("turn", optim_group), self._published("fooled", optim_group, param)
        c = self._row_memory("c", optim_group, param, optim_group["c"])
        was_fooled = self._row_memory("was_fooled", optim_group, param)
        was_fooled.copy_(was_fooled.maximum(fooled.to(c.dtype)))
        if turn and turn % math.ceil(optim_group["steps"] / optim_group["searches"]) == 0:
            low = self._row_memory("low", optim_group, param)
            high = self._row_memory("high", optim_group, param, math.inf)
            high.copy_(torch.where(was_fooled > 0, c, high))
            low.copy_(torch.where(was_fooled > 0, low, c))
            c.copy_(torch.where(high < math.inf, (low + high) / 2, 10 * c))
            was_fooled.zero_()
        param.grad.mul_(torch.where(fooled, 0.0, c)).add_(param, alpha=2)


class ALMAOptim(SmallestOptim):
    """Adds the gradient of the L2 norm to that of a penalty on the loss, whose weight each datum adapts in every step.

    The augmented Lagrangian of Rony et al. 2021, https://arxiv.org/abs/2011.11857. With y, the loss in units of the
    first one, at most 0 where the datum is fooled, the penalty is m y + m r y² + r² y³ / 6 for y >= 0, and below it
    m y / (1 - r y), times the distance of the boundary as the first gradient tells it. The multiplier m moves a tenth
    of the way to the slope of the penalty in each step; r becomes larger by a fifth in every tenth step, if the datum
    was never fooled and y fell by less than 5 % since. Steps are at most `lr` times that distance, and have momentum;
    they should fall to 0: take a scheduler.

    Reads `losses` and `fooled`: see `raiopt.perturbations.solver.published`. Needs a loss that is 0 at the decision
    boundary, as the margin or, as in the paper, dlr; `raiopt.attack` refuses others, and one that is negative before
    raises a ValueError in the first step.

    Args:
        epsilon: The largest norm that counts; infinity for none.
        mu: Of the momentum.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = ALMAOptim([x], lr=0.1)
    >>> optimizer.param_groups[0].update(losses=torch.tensor([10.0]), fooled=torch.tensor([False]))
    >>> x.grad = torch.tensor([[-3.0, -4.0]])
    >>> optimizer.step()
    >>> x
    tensor([[0.1200, 0.1600]], requires_grad=True)
    """

    ball = 2
    needs_boundary = True

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        epsilon: float | Tensor = math.inf,
        mu: float = 0.9,
        **shared: Any,
    ) -> None:
        super().__init__(params, InnerOpt, **with_defaults(shared, epsilon=epsilon, mu=mu))

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        checks.number("mu", group["mu"], low=0, high=1)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        y, fooled = (self._published(name, optim_group, param) for name in ("losses", "fooled"))
        turn = self._turn("turn", optim_group)
        if turn == 0 and len(optim_group["losses"]) <= len(param) and ((y < 0) & ~fooled).any():
            raise ValueError(
                f"{type(self).__name__} needs losses of at least 0 until a sample is fooled, and got "
                f"{y.min().item():.4g}: take the margin or dlr (criterion=margin) instead of the cross entropy."
            )
        first, steep = (self._row_memory(name, optim_group, param) for name in ("first", "steep"))
        new = steep == 0  # until a datum has a gradient, which must not be so small that dividing by it overflows
        first.copy_(torch.where(new, y.abs().clamp(min=1e-6), first))
        slopes = transforms.norms(param.grad, 2)
        steep.copy_(torch.where(new & (slopes > NOTHING), slopes, steep))
        slope = self._slope(y / first, fooled, param, optim_group, turn)
        gradient = param.grad.mul_(torch.where(steep > 0, slope / steep, 0.0))
        gradient.addcdiv_(param, transforms.norms(param, 2).clamp_(min=torch.finfo(first.dtype).tiny))
        gradient.mul_(torch.where(steep > 0, first / steep, 0.0) / transforms.norms(gradient, 2).clamp_(min=1))
        gradient.add_(way := self._memory("way", optim_group), alpha=optim_group["mu"])
        way.copy_(gradient)

    def _slope(self, y: Tensor, fooled: Tensor, param: Tensor, group: dict[str, Any], turn: int) -> Tensor:
        """Returns the derivative of the penalty for each datum, of shape (N, 1, ...), and adapts m and r."""
        m, r = (self._row_memory(name, group, param, 1.0) for name in ("m", "r"))
        before, ever = self._row_memory("before", group, param, math.inf), self._row_memory("ever", group, param)
        above, below = r * y.clamp(min=0), r * y.clamp(max=0)
        slope = m / (1 - below).square() + 2 * m * above + above.square() / 2
        m.lerp_(slope, 0.1).clamp_(1e-6, 1e12)
        ever.copy_(ever.maximum(fooled.to(ever.dtype)))
        if turn % 10 == 0:
            r.mul_(torch.where((ever == 0) & (y > 0.95 * before), 1.2, 1.0))
            before.copy_(y)
        return slope
