"""Steps in units of the ball, with momentum between projections; and Auto-PGD, which finds their length by itself."""

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


class SteepestProjectedOptim(ParamTransformingOptimizer):
    """Takes the steepest step in an Lp norm, in units of epsilon, projects, and adds a part of the way gone before.

    From x the step leads to u = P(x + lr epsilon s), with the steepest direction s and the projection P onto ball and
    box; x becomes P(x + weight (u - x) + (1 - weight) way), where `way` is how the step before changed x.

    Args:
        p: 1, 2 or infinity.
        epsilon: See `ProjectedParameterOptimizer`.
        lr: The length of a step as a multiple of epsilon.
        weight: Of the step, against the way gone before. 1: no momentum. The first step has no such way.
        q: For p=1, the share of the gradient's entries that a step leaves alone; see `TopQGradientOptimizer`.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = SteepestProjectedOptim([x], p=2, epsilon=1.0, lr=0.5)
    >>> for _ in range(2):
    ...     x.grad = torch.tensor([[-3.0, -4.0]])
    ...     optimizer.step()
    >>> x
    tensor([[0.6000, 0.8000]], requires_grad=True)
    """

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        p: float,
        epsilon: float | Tensor,
        lr: float = 2.0,
        weight: float = 0.75,
        q: float = 0.99,
        **shared: Any,
    ) -> None:
        self.p = self.ball = checks.choice("p", p, (1, 2, math.inf))
        super().__init__(params, InnerOpt, lr=lr, **with_defaults(shared, epsilon=epsilon, weight=weight, q=q))

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for name in ("weight", "q"):
            checks.number(name, group[name], low=0, high=1)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            self._direct_(param.grad, param, optim_group)
            param.grad.mul_(optim_group["epsilon"])
            self._memory("here", optim_group).copy_(param)

    def _direct_(self, gradient: Tensor, param: Tensor, group: dict[str, Any]) -> None:
        """Replaces the gradient by a direction of norm 1."""
        if self.p == 1:
            transforms.normalize_(transforms.keep_top_(gradient, group["q"]).sign_(), 1)
        else:
            transforms.steepest_(gradient, self.p)

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, optim_group, self.p)
        if optim_group["weight"] == 1 or param.grad is None:
            return
        if self.p == math.inf:  # whose projection leaves the box to the clamp in base.py
            transforms.clamp_(param, optim_group.get("lower"), optim_group.get("upper"))
        here, way = (self._memory(name, optim_group) for name in ("here", "way"))
        if self._turn("turn", optim_group):
            param.sub_(here).mul_(optim_group["weight"]).add_(way, alpha=1 - optim_group["weight"]).add_(here)
            project_(param, optim_group, self.p)
        torch.sub(param, here, out=way)


RISES = 0.75
"""Auto-PGD keeps a step length where at least this share of the last steps made the loss better."""
SHORTER, FEWER = 1.5, 0.95
"""In L1, a step moves so many times fewer entries than the best point has; if these are no fewer than before, its
length is divided by the same number, down to a tenth."""
SHORTEST = 0.1


def checkpoints(steps: int, p: float) -> list[int]:
    """Returns after which steps their lengths are judged.

    >>> checkpoints(100, 2)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    if p == 1:
        gap = max(int(0.04 * steps), 1)
        return list(range(gap, steps + 1, gap))
    gap, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found = [gap]
    while found[-1] + (gap := max(gap - less, least)) <= steps:
        found.append(found[-1] + gap)
    return found


class AdaptiveStepOptim(SteepestProjectedOptim):
    """Takes steps of `SteepestProjectedOptim` whose length each datum finds for itself: Auto-PGD.

    At checkpoints, which come ever faster, the steps of a datum are halved and it returns to its best point, if fewer
    than three quarters of the steps since the last checkpoint made the loss better, or if neither step nor best loss
    changed since then (Croce and Hein 2020, https://arxiv.org/abs/2003.01690). For p=1 a step moves the largest entries
    of the gradient alone, fewer as the perturbation becomes sparse, and there is no momentum (Croce and Hein 2021,
    https://arxiv.org/abs/2103.01208). Reads `losses`: see `raiopt.perturbations.solver.published`.

    Args:
        steps: How many will be taken: it decides where the checkpoints are.
        lr: Multiplies the paper's first length: 2 epsilon, for p=1 epsilon.
        q: For p=1, as in `SteepestProjectedOptim`, of the steps up to the first checkpoint.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = AdaptiveStepOptim([x], p=math.inf, epsilon=0.5, steps=10)
    >>> (losses := x @ torch.tensor([3.0, -4.0])).sum().backward()
    >>> optimizer.param_groups[0]["losses"] = losses.detach()
    >>> optimizer.step()
    >>> x
    tensor([[-0.5000,  0.5000]], requires_grad=True)
    """

    own_steps = True

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        p: float,
        epsilon: float | Tensor,
        steps: int,
        lr: float = 1.0,
        weight: float = 0.75,
        q: float = 0.8,
        **shared: Any,
    ) -> None:
        weight = 1.0 if p == 1 else weight
        own = with_defaults(shared, steps=steps)
        super().__init__(params, InnerOpt, p=p, epsilon=epsilon, lr=lr, weight=weight, q=q, **own)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        checks.number("steps", group["steps"], low=0, integer=True)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        turn = self._turn("judged", optim_group)
        best, slope = (self._memory(name, optim_group) for name in ("best", "best_gradient"))
        lowest, last = (self._row_memory(name, optim_group, param, math.inf) for name in ("lowest", "last"))
        progress = self._row_memory("progress", optim_group, param)
        losses = self._published("losses", optim_group, param).to(lowest.dtype)
        progress.add_((losses < last) & (last < math.inf))
        last.copy_(losses)
        better = losses < lowest
        for kept, now in ((best, param), (slope, param.grad), (lowest, losses)):
            torch.where(better, now, kept, out=kept)
        judged = checkpoints(optim_group["steps"], self.p)
        if turn in judged:
            passed = turn - max((at for at in judged if at < turn), default=0)
            back = (self._sparser if self.p == 1 else self._halved)(param, optim_group, progress >= RISES * passed)
            torch.where(back, best, param, out=param)
            torch.where(back, slope, param.grad, out=param.grad)
            self._memory("way", optim_group).mul_(~back)
            progress.zero_()
        super()._pre_step_transform_(param, optim_group)
        param.grad.mul_(self._row_memory("share", optim_group, param, 1.0) * (1 if self.p == 1 else 2))

    def _halved(self, param: Tensor, group: dict[str, Any], rising: Tensor) -> Tensor:
        """Halves the steps of the data that do not progress; says which these are, of shape (N, 1, ...)."""
        lowest, before = (self._row_memory(name, group, param, math.inf) for name in ("lowest", "lowest_before"))
        share, was_slow = (self._row_memory(name, group, param, 1.0) for name in ("share", "was_slow"))
        slow = ~rising | ((was_slow == 0) & (lowest >= before))
        before.copy_(lowest)
        was_slow.copy_(slow)
        share.div_(1 + slow.float())
        return slow

    def _sparser(self, param: Tensor, group: dict[str, Any], rising: Tensor) -> Tensor:
        """Lets steps follow the number of entries of the best point; says where that fell, of shape (N, 1, ...)."""
        best, share = self._memory("best", group), self._row_memory("share", group, param, 1.0)
        before = self._row_memory("entries", group, param, math.prod(param.shape[1:]))
        count = (best != 0).flatten(1).sum(1).view_as(before)
        fell = count < FEWER * before
        share.copy_(torch.where(fell, 1.0, (share / SHORTER).clamp(min=SHORTEST)))
        before.copy_(count)
        self._moved(param, group).copy_(count / SHORTER)
        return fell

    def _moved(self, param: Tensor, group: dict[str, Any]) -> Tensor:
        """Returns how many entries a step moves, of shape (N, 1, ...)."""
        return self._row_memory("moved", group, param, (1 - group["q"]) * math.prod(param.shape[1:]))

    def _direct_(self, gradient: Tensor, param: Tensor, group: dict[str, Any]) -> None:
        if self.p != 1:
            return super()._direct_(gradient, param, group)
        gradient.mul_(transforms.top_mask(gradient.abs(), self._moved(param, group).clamp(min=1)))
        transforms.normalize_(gradient.sign_(), 1)
        return None
