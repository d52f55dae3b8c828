"""Frank-Wolfe: each step moves towards the point of the ball that minimises the linearised loss.

Frank and Wolfe 1956; Jaggi 2013, http://proceedings.mlr.press/v28/jaggi13.html.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from raiopt import checks, transforms
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.inner import Params
from raiopt.optim.projections import project_
from raiopt.optim.signatures import with_defaults
from raiopt.optim.sparse import L1qNormedGradientOptim
from raiopt.optim.traits import Traits


class FrankWolfe(Optimizer):
    """Moves each parameter to x_t+1 = (1 - a) x_t - a s grad: the step of the Frank-Wolfe method.

    It is the inner optimizer of the classes below, which replace the gradient by minus the vertex. In step t, counted
    from 0, a is lr / (lr + t), or `lr` itself without the schedule. With lr=2 and the schedule, the first step does not
    depend on the start.

    Args:
        params: The parameters, or groups with their own hyperparameters.
        lr: At least 0; at most 1 without the schedule.
        lmo_scaling_factor: The s above.
        use_default_lr_schedule: Whether a decreases with the steps.

    >>> x = torch.tensor([4.0], requires_grad=True)
    >>> optimizer = FrankWolfe([x], lr=0.25, use_default_lr_schedule=False)
    >>> x.grad = torch.tensor([-1.0])
    >>> optimizer.step()
    >>> x
    tensor([3.2500], requires_grad=True)
    """

    #: Every entry is updated independently; see `raiopt.attacks.rows`.
    elementwise = True

    def __init__(
        self, params: ParamsT, *, lr: float = 2.0, lmo_scaling_factor: float = 1.0, use_default_lr_schedule: bool = True
    ) -> None:
        own = {"lr": lr, "lmo_scaling_factor": lmo_scaling_factor, "use_default_lr_schedule": use_default_lr_schedule}
        super().__init__(params, own)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group after checking its hyperparameters."""
        values = {**self.defaults, **param_group}
        share = (
            ""
            if values["use_default_lr_schedule"]
            else "With use_default_lr_schedule=False it is the weight of the vertex."
        )
        checks.number("lr", values["lr"], low=0, high=1 if share else None, remedy=share)
        checks.number("lmo_scaling_factor", values["lmo_scaling_factor"])
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Moves each parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state, lr = self.state[param], group["lr"]
                steps = state["step"] = state.get("step", -1) + 1
                share = lr if not group["use_default_lr_schedule"] else lr / (lr + steps) if lr else 0.0
                param.mul_(1 - share).add_(param.grad, alpha=-share * group["lmo_scaling_factor"])
        return loss


class _InBall(ParamTransformingOptimizer):
    """Replaces each datum of the gradient by minus the vertex that minimises <vertex, gradient> over ball and box.

    A datum whose gradient is zero does not move.
    """

    traits = Traits(sets_own_steps=True)
    _vertex: Callable[..., Tensor]

    def __init__(
        self,
        params: Params,
        *,
        epsilon: float | Tensor,
        lr: float = 2.0,
        use_default_lr_schedule: bool = True,
        **shared: Any,
    ) -> None:
        options = _options(shared, lr=lr, use_default_lr_schedule=use_default_lr_schedule)
        super().__init__(params, FrankWolfe, **with_defaults(options, epsilon=epsilon))

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            box = (optim_group.get(name) for name in ("lower", "upper"))
            # The support point of minus the gradient; the inner optimizer flips the sign back.
            idle = param.grad == 0 if self.traits.ball == math.inf else _is_zero(param.grad)
            type(self)._vertex(param.grad.neg_(), optim_group["epsilon"], *box).neg_()
            param.grad.addcmul_(param, idle.to(param.dtype), value=-1)

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, optim_group, self.traits.ball)


def _options(shared: dict[str, Any], **own: Any) -> dict[str, Any]:
    """Returns all keyword arguments for the parent; raises if one of them is an inner optimizer."""
    if "InnerOpt" in shared:
        raise TypeError(
            "InnerOpt cannot be chosen: Frank-Wolfe makes the step itself, and so cannot be a member of a chain."
        )
    return {**shared, **own}


def _is_zero(gradient: Tensor) -> Tensor:
    """Returns a mask (N, 1, ...) of the data with a zero gradient, for which all vertices are equally good."""
    return transforms.norms(gradient, math.inf) == 0


class LinfFrankWolfe(_InBall):
    """Frank-Wolfe in the Linf ball: moves each datum towards the corner that minimises the linearised loss.

    With a box, it is the corner of the intersection of ball and box. The new point lies between two points of a convex
    set, so it stays inside; a start outside is projected. `grad_scale` multiplies the corner: leave it at 1.

    Args:
        epsilon: See `ProjectedParameterOptimizer`.
        lr: See `FrankWolfe`.
        use_default_lr_schedule: Step t, counted from 0, moves each datum by the fraction lr / (lr + t) of the way to
            the vertex; False: by the fraction lr.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = LinfFrankWolfe([x], epsilon=0.5)
    >>> x.backward(gradient=torch.tensor([[3.0, -4.0]]))
    >>> optimizer.step()
    >>> x
    tensor([[-0.5000,  0.5000]], requires_grad=True)
    """

    traits = replace(_InBall.traits, ball=math.inf)
    _vertex = transforms.support_linf_


class L2FrankWolfe(_InBall):
    """Frank-Wolfe in the L2 ball: moves each datum towards the point that minimises the linearised loss.

    With a box, it is the exact minimizer over ball and box: see `raiopt.transforms.support_l2_`. The arguments are
    those of `LinfFrankWolfe`.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = L2FrankWolfe([x], epsilon=0.5)
    >>> x.backward(gradient=torch.tensor([[3.0, -4.0]]))
    >>> optimizer.step()
    >>> x
    tensor([[-0.3000,  0.4000]], requires_grad=True)
    """

    traits = replace(_InBall.traits, ball=2)
    _vertex = transforms.support_l2_


class L1FrankWolfe(_InBall):
    """Frank-Wolfe in the L1 ball: moves each datum towards the vertex that minimises the linearised loss.

    Without a box, only the vertex entry where the gradient is largest is nonzero; with a box, the entries with the
    largest gradients move to their bounds until epsilon is used up. The arguments are those of `LinfFrankWolfe`.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = L1FrankWolfe([x], epsilon=0.5)
    >>> x.backward(gradient=torch.tensor([[3.0, -4.0]]))
    >>> optimizer.step()
    >>> x
    tensor([[0.0000, 0.5000]], requires_grad=True)
    """

    traits = replace(_InBall.traits, ball=1)
    _vertex = transforms.support_l1_


class L1qFrankWolfe(L1qNormedGradientOptim):
    """Frank-Wolfe in the L1 ball towards the mean of the vertices of the gradient's largest entries.

    The vertices are those of the whole ball: with a box, the step is projected onto ball and box.

    Args:
        epsilon: See `LinfFrankWolfe`.
        lr: See `FrankWolfe`.
        use_default_lr_schedule: See `FrankWolfe`.
        q: See `TopQGradientOptimizer`.

    >>> x = torch.zeros(1, 4, requires_grad=True)
    >>> optimizer = L1qFrankWolfe([x], epsilon=1.0, q=0.5)
    >>> x.backward(gradient=torch.tensor([[0.5, 1.0, -2.5, 0.3]]))
    >>> optimizer.step()
    >>> x
    tensor([[ 0.0000, -0.5000,  0.5000,  0.0000]], requires_grad=True)
    """

    traits = replace(_InBall.traits, ball=1)

    def __init__(
        self,
        params: Params,
        *,
        epsilon: float | Tensor,
        q: float,
        lr: float = 2.0,
        use_default_lr_schedule: bool = True,
        **shared: Any,
    ) -> None:
        options = _options(shared, lr=lr, use_default_lr_schedule=use_default_lr_schedule)
        super().__init__(params, FrankWolfe, q=q, **with_defaults(options, epsilon=epsilon))

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            idle = _is_zero(param.grad)
            super()._pre_step_transform_(param=param, optim_group=optim_group)
            param.grad.mul_(optim_group["epsilon"]).addcmul_(param, idle.to(param.dtype), value=-1)

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, optim_group, 1)
