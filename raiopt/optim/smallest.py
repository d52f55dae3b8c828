"""The smallest perturbation that fools: a radius for each datum, which shrinks while it is fooled, else grows."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.optimizer import ParamsT

from raiopt import checks, transforms
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.inner import InnerOptimizer
from raiopt.optim.projections import project_
from raiopt.optim.signatures import with_defaults

FINAL_SHARE = 0.01  # of the first step in the last one
FINAL_GAMMA = 0.02  # of the first change of a radius in the last one
FARTHEST = 1e9  # in place of an infinite radius, so that products with it stay finite
NOTHING = 1e-20  # smaller entries of a normed gradient are rounding, and would count as changed pixels
GROWTH = 1.2  # of a number of entries with which nothing fooled yet

_SUPPORTS = {
    0: transforms.support_l0_,
    1: transforms.support_l1_,
    2: transforms.support_l2_,
    math.inf: transforms.support_linf_,
}
_DUAL = {0: math.inf, 1: math.inf, 2: 2, math.inf: 1}


class SmallestOptim(ParamTransformingOptimizer):
    """What looks for the smallest perturbation that fools, in the box, and from outside of the ball that counts.

    Whoever runs the search goes on after success, and keeps that iterate which fools and has the smallest norm, if that
    is at most epsilon: `raiopt.attack` does. The way into a small ball often leads through a larger one.
    """

    smallest = True

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group({**group, "epsilon": _finite(group["epsilon"])})


def _finite(epsilon: Any) -> Any:
    if isinstance(epsilon, Tensor):
        return epsilon.masked_fill(epsilon == math.inf, FARTHEST)
    return FARTHEST if epsilon == math.inf else epsilon


class _RadiusOptim(SmallestOptim):
    """Holds each datum in a ball of its own; subclasses say how its radius changes."""

    own_steps = True

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        steps: int,
        epsilon: float | Tensor = math.inf,
        gamma: float = 0.05,
        lr: float = 1.0,
        **shared: Any,
    ) -> None:
        super().__init__(params, InnerOpt, lr=lr, **with_defaults(shared, epsilon=epsilon, steps=steps, gamma=gamma))

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        checks.number("steps", group["steps"], low=1, integer=True)
        checks.number("gamma", group["gamma"], above=0, high=0.5)

    def _radius(self, param: Tensor, group: dict[str, Any]) -> Tensor:
        """Returns the radius of each datum, of shape (N, 1, ...)."""
        return self._row_memory("radius", group, param, FARTHEST)

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        assert self.ball is not None  # each subclass names its own
        project_(param, {**optim_group, "epsilon": self._radius(param, optim_group)}, self.ball)


def _cosine(share: float, final: float) -> float:
    """Returns what falls from 1 to `final` along half a cosine while the share of the steps that is over grows to 1."""
    return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, share))) / 2


class DDNOptim(_RadiusOptim):
    """Steps along the L2-normed gradient, then scales the datum to its radius: decoupled direction and norm.

    The radius begins at 1; with each step it becomes smaller by the share gamma while the datum is fooled, and larger
    while not. Rony et al. 2019, https://arxiv.org/abs/1811.09600. Reads `fooled`: see
    `raiopt.perturbations.solver.published`. The point of the sphere is projected onto the box; colours are not rounded.

    Args:
        steps: How many will be taken. The steps fall along half a cosine to 0.01 of `lr`.
        epsilon: The largest norm that counts; infinity for none.
        gamma: Above 0, at most 0.5.
        lr: The length of the first step.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = DDNOptim([x], steps=100)
    >>> optimizer.param_groups[0]["fooled"] = torch.tensor([False])
    >>> x.grad = torch.tensor([[-3.0, -4.0]])
    >>> optimizer.step()
    >>> x
    tensor([[0.6300, 0.8400]], requires_grad=True)
    """

    ball = 2

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        turn, radius = self._turn("turn", optim_group), self._radius(param, optim_group)
        most = self._row_memory("most", optim_group, param, FARTHEST)
        if turn == 0:
            radius.fill_(1.0)
            if optim_group.get("lower") is not None and optim_group.get("upper") is not None:
                nothing = torch.zeros_like(param)
                corner = (nothing - optim_group["lower"]).maximum(nothing + optim_group["upper"])
                most.copy_(transforms.norms(corner, 2))
        fooled = self._published("fooled", optim_group, param)
        radius.mul_(1 + torch.where(fooled, -1.0, 1.0) * optim_group["gamma"]).copy_(radius.minimum(most))
        transforms.normalize_(param.grad, 2).mul_(_cosine(turn / optim_group["steps"], FINAL_SHARE))

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        size, radius = transforms.norms(param, 2), self._radius(param, optim_group)
        if param.grad is not None:
            param.mul_(radius / size.clamp(min=torch.finfo(size.dtype).tiny))
        super()._post_step_transform_(param, optim_group)


class FMNOptim(_RadiusOptim):
    """Moves each datum towards the point of its ball and box that is best for the mean of its gradients so far.

    The radius is that of the fast minimum norm attack (Pintor et al. 2021, https://arxiv.org/abs/2102.12827): at first
    it grows to where the loss, were it linear, would reach 0; from the first success on it becomes smaller by the share
    gamma while the datum is fooled, never staying above the smallest norm that fooled, and larger while not. Where the
    paper takes a step and projects, this goes a share of the way to the support point of ball and box for a weighted
    mean of all normed gradients, and in an L0 ball all of it (Nesterov 2009, dual averaging,
    https://doi.org/10.1007/s10107-007-0149-x). That finds smaller norms in as many steps, for every p.

    Reads `losses` and `fooled`: see `raiopt.perturbations.solver.published`. Where the loss is 0 at the decision
    boundary, as the margin, the radius begins near the right one; after that any loss will do.

    Args:
        p: 0, 1, 2 or infinity. L0 counts entries, and needs a box.
        steps: How many will be taken. The share of the way, also the weight of the newest gradient, falls from 1
            to 0.01: along half a cosine, for p=0 and 1 by the same factor in each step. gamma falls to 0.02 of itself.
        epsilon: The largest norm that counts; infinity for none.
        gamma: Above 0, at most 0.5. In an L0 ball the radius changes by 1 at least.
        lr: Multiplies the share of the way, with SGD.

    The smallest perturbation that makes the loss 2 - x1 - 2 x2 negative is just above (0, 1) in L1:

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer, least = FMNOptim([x], p=1, steps=100), math.inf
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     losses = 2 - x @ torch.tensor([1.0, 2.0])
    ...     losses.sum().backward()
    ...     if losses.item() < 0:
    ...         least = min(least, x.abs().sum().item())
    ...     optimizer.param_groups[0].update(losses=losses.detach(), fooled=losses.detach() < 0)
    ...     optimizer.step()
    >>> 1 < least < 1.01
    True
    """

    def __init__(self, params: ParamsT | None, InnerOpt: InnerOptimizer = SGD, *, p: float, **shared: Any) -> None:
        self.p = self.ball = checks.choice("p", p, (0, 1, 2, math.inf))
        super().__init__(params, InnerOpt, **shared)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        share = self._turn("turn", optim_group) / optim_group["steps"]
        self._adapt(param, optim_group, share)
        mean, weight = self._memory("mean", optim_group), self._weight(share)
        mean.lerp_(transforms.normalize_(param.grad, 2), weight)
        mean.mul_(mean.abs() > NOTHING)
        box = (optim_group.get(name) for name in ("lower", "upper"))
        goal = _SUPPORTS[self.p](-mean, self._radius(param, optim_group), *box)
        idle = transforms.norms(mean, math.inf) == 0  # a datum that never had a gradient stays where it is
        torch.sub(param, torch.where(idle, param, goal), out=param.grad)
        if self.p != 0:  # between two sparse points lies none
            param.grad.mul_(weight)

    def _weight(self, share: float) -> float:
        """Returns the weight of the newest gradient when this share of the steps is over."""
        return FINAL_SHARE ** min(1.0, share) if self.p in (0, 1) else _cosine(share, FINAL_SHARE)

    def _adapt(self, param: Tensor, group: dict[str, Any], share: float) -> None:
        """Changes the radii, by the loss and the gradient at the point that the parameter holds."""
        radius, best = self._radius(param, group), self._row_memory("best", group, param, math.inf)
        size = (param != 0).flatten(1).sum(1).view_as(best) if self.p == 0 else transforms.norms(param, self.p)
        if share == 0:
            radius.copy_(size)
        losses, fooled = (self._published(name, group, param) for name in ("losses", "fooled"))
        slope = transforms.norms(param.grad, _DUAL[self.p])  # pyright: ignore[reportArgumentType]
        reach = size + losses.abs() / slope.clamp(min=torch.finfo(slope.dtype).tiny)
        change = (group["gamma"] * _cosine(share, FINAL_GAMMA) * radius).clamp_(min=1.0 if self.p == 0 else 0.0)
        best.copy_(torch.where(fooled, best.minimum(size), best))
        farther = reach.maximum(radius + change) if self.p or share == 0 else radius * GROWTH
        grown = torch.where(best < math.inf, radius + change, farther)
        shrunk = (radius - change).minimum(best).clamp_(min=0)
        radius.copy_(torch.where(fooled, shrunk, grown).clamp_(max=FARTHEST))
