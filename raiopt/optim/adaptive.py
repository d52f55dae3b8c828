"""Projected steepest descent with momentum, and Auto-PGD, which adapts the step size of each datum."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD

from raiopt import checks, transforms
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.inner import InnerOptimizer, Params
from raiopt.optim.projections import project_
from raiopt.optim.signatures import with_defaults
from raiopt.optim.state import State
from raiopt.optim.traits import Traits


class SteepestProjectedOptim(ParamTransformingOptimizer):
    """Takes steepest steps of `lr * epsilon` in an Lp norm, with projection and momentum.

    Each step is that of Auto-PGD, with s the steepest direction of norm 1 and P the projection onto ball and box:

        u = P(x_k + lr epsilon s),   x_k+1 = P(x_k + weight (u - x_k) + (1 - weight) (x_k - x_k-1))

    Args:
        p: 1, 2 or infinity.
        epsilon: See `ProjectedParameterOptimizer`.
        lr: The step size as a multiple of epsilon.
        weight: Weight of the new step; the last displacement has weight 1 - weight. 1: no momentum.
        q: For p=1, the share of the gradient's entries that a step does not move; see `TopQGradientOptimizer`.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = SteepestProjectedOptim([x], p=2, epsilon=1.0, lr=0.5)
    >>> for _ in range(2):
    ...     x.grad = torch.tensor([[-3.0, -4.0]])
    ...     optimizer.step()
    >>> x
    tensor([[0.6000, 0.8000]], requires_grad=True)
    """

    _limits: ClassVar = {"weight": {"low": 0, "high": 1}, "q": {"low": 0, "high": 1}}

    def __init__(
        self,
        params: Params,
        InnerOpt: InnerOptimizer = SGD,
        *,
        p: float,
        epsilon: float | Tensor,
        lr: float = 2.0,
        weight: float = 0.75,
        q: float = 0.99,
        **shared: Any,
    ) -> None:
        self.p = checks.choice("p", p, (1, 2, math.inf))
        self.traits = replace(self.traits, ball=p)
        super().__init__(params, InnerOpt, lr=lr, **with_defaults(shared, epsilon=epsilon, weight=weight, q=q))

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        return {"k": 0, "x": torch.zeros_like(param), "displacement": torch.zeros_like(param)}

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            state = self._state(param, optim_group)
            self._direct_(param.grad, state, optim_group)
            param.grad.mul_(optim_group["epsilon"])
            state.x = param
            state.k += 1

    def _direct_(self, gradient: Tensor, state: State, group: dict[str, Any]) -> None:
        """Replaces the gradient in place by the steepest direction of norm 1."""
        if self.p == 1:
            transforms.normalize_(transforms.keep_top_(gradient, group["q"]).sign_(), 1)
        else:
            transforms.steepest_(gradient, self.p)

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, optim_group, self.p)
        weight = optim_group["weight"]
        if weight == 1 or param.grad is None:
            return
        if self.p == math.inf:  # the Linf projection leaves the box to the clamp in base.py
            transforms.clamp_(param, optim_group.get("lower"), optim_group.get("upper"))
        state = self._state(param, optim_group)
        if state.k > 1:
            param.sub_(state.x).mul_(weight).add_(state.displacement, alpha=1 - weight).add_(state.x)
            project_(param, optim_group, self.p)
        torch.sub(param, state.x, out=state.displacement)


RHO = 0.75  # the share of the steps between two checkpoints that must decrease the loss for the step size to stay
L1_DIVISOR = 1.5  # of the step size, and of the number of entries that a step moves
L1_SPARSER = 0.95  # a perturbation with less than this share of its former nonzero entries became sparser
L1_SMALLEST_ETA = 0.1


def checkpoints(steps: int, p: float) -> list[int]:
    """Returns the checkpoints (W in the paper): the numbers of steps after which step sizes are adapted.

    >>> checkpoints(100, 2)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    if p == 1:
        gap = max(int(0.04 * steps), 1)
        return list(range(gap, steps + 1, gap))
    gap, smallest_gap, decrease = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found = [gap]
    while found[-1] + (gap := max(gap - decrease, smallest_gap)) <= steps:
        found.append(found[-1] + gap)
    return found


class AdaptiveStepOptim(SteepestProjectedOptim):
    """Auto-PGD: the steps of `SteepestProjectedOptim` with a step size eta per datum, adapted at checkpoints.

    At a checkpoint eta is halved and the datum returns to its best point, if the loss fell in less than three quarters
    of the steps since the last checkpoint, or if neither eta nor the best loss changed since then (Croce and Hein 2020,
    https://arxiv.org/abs/2003.01690). For p=1 a step moves only the largest entries of the gradient, fewer as the
    perturbation becomes sparser, and there is no momentum (Croce and Hein 2021, https://arxiv.org/abs/2103.01208).
    Reads `losses`: see `raiopt.attacks.search.published`.

    Args:
        steps: The number of steps of the search, which determines the checkpoints.
        lr: Multiplies the paper's initial step size: 2 epsilon, or epsilon for p=1.
        q: For p=1, the q of `SteepestProjectedOptim` up to the first checkpoint.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = AdaptiveStepOptim([x], p=math.inf, epsilon=0.5, steps=10)
    >>> (losses := x @ torch.tensor([3.0, -4.0])).sum().backward()
    >>> optimizer.param_groups[0]["losses"] = losses.detach()
    >>> optimizer.step()
    >>> x
    tensor([[-0.5000,  0.5000]], requires_grad=True)
    """

    traits = Traits(sets_own_steps=True)

    _limits: ClassVar = {"steps": {"low": 0, "integer": True}}

    def __init__(
        self,
        params: Params,
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

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        entries = float(math.prod(param.shape[1:]))
        return {
            **super()._init_state(param, optim_group),  # x_k, its number k, and x_k - x_k-1
            "x_best": torch.zeros_like(param),
            "g_best": torch.zeros_like(param),
            "f_best": math.inf,
            "f_last": math.inf,
            "successes": 0.0,
            "eta": 1.0 if self.p == 1 else 2.0,  # eta in units of epsilon
            **({"entries": entries, "moved": (1 - optim_group["q"]) * entries} if self.p == 1 else {}),
            **({"eta_was_halved": 1.0, "f_best_before": math.inf} if self.p != 1 else {}),
        }

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        s, W = self._state(param, optim_group), checkpoints(optim_group["steps"], self.p)
        f = self._published("losses", optim_group, param).to(s.f_best.dtype)
        s.successes += (f < s.f_last) & (s.f_last < math.inf)
        s.f_last = f
        better = f < s.f_best
        for best, now in ((s.x_best, param), (s.g_best, param.grad), (s.f_best, f)):
            torch.where(better, now, best, out=best)
        if s.k in W:
            steps = s.k - max((w for w in W if w < s.k), default=0)
            restart = self._follow_sparsity(s) if self.p == 1 else self._halve(s, s.successes < RHO * steps)
            torch.where(restart, s.x_best, param, out=param)
            torch.where(restart, s.g_best, param.grad, out=param.grad)
            s.displacement *= ~restart
            s.successes = 0.0
        super()._pre_step_transform_(param, optim_group)
        param.grad.mul_(s.eta)

    def _halve(self, s: State, condition_1: Tensor) -> Tensor:
        """Halves eta where one of the paper's conditions holds, and returns a mask of these data, (N, 1, ...)."""
        condition_2 = (s.eta_was_halved == 0) & (s.f_best >= s.f_best_before)
        halved = condition_1 | condition_2
        s.eta /= 1 + halved.float()
        s.eta_was_halved, s.f_best_before = halved, s.f_best
        return halved

    def _follow_sparsity(self, s: State) -> Tensor:
        """Adapts eta and the number of moved entries; returns where the best point became sparser, (N, 1, ...)."""
        entries = (s.x_best != 0).flatten(1).sum(1).view_as(s.entries)
        sparser = entries < L1_SPARSER * s.entries
        s.eta = torch.where(sparser, 1.0, (s.eta / L1_DIVISOR).clamp(min=L1_SMALLEST_ETA))
        s.entries, s.moved = entries, entries / L1_DIVISOR
        return sparser

    def _direct_(self, gradient: Tensor, state: State, group: dict[str, Any]) -> None:
        if self.p == 1:
            gradient.mul_(transforms.top_mask(gradient.abs(), state.moved.clamp(min=1)))
            transforms.normalize_(gradient.sign_(), 1)
        else:
            super()._direct_(gradient, state, group)
