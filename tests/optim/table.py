"""The public optimizers that need nothing but gradients, one row each: every law is parametrized over them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from raiopt.optim import (
    ChainedParamTransformingOptimizer,
    ClampedGradientOptimizer,
    ClampedParameterOptimizer,
    L0ProjectedOptim,
    L1FrankWolfe,
    L1NormedGradientOptim,
    L1ProjectedOptim,
    L1qFrankWolfe,
    L1qNormedGradientOptim,
    L2FrankWolfe,
    L2NormedGradientOptim,
    L2ProjectedOptim,
    LinfFrankWolfe,
    LinfNormedGradientOptim,
    LinfProjectedOptim,
    LpNormedGradientOptim,
    MomentumGradientOptim,
    ParamTransformingOptimizer,
    ProjectedParameterOptimizer,
    SignedGradientOptim,
    SteepestGradientOptim,
    TopQGradientOptimizer,
)

EPSILON = 0.5
ENTRIES = 2


@dataclass(frozen=True)
class Row:
    """An optimizer and its documented properties."""

    make: Callable[..., ParamTransformingOptimizer]
    #: Arguments that it cannot be built without.
    required: dict[str, Any] = field(default_factory=dict)
    #: The norm that each datum of the gradient has after its transform.
    norm: float | None = None
    #: The transform keeps the direction of each datum of the gradient.
    parallel: bool = False
    #: The ball that each datum of the parameter lies in after the step.
    ball: float | None = None
    #: The bounds that each entry of the parameter lies in after the step.
    bounds: tuple[float, float] = (-math.inf, math.inf)
    #: The transform of the gradient and of the parameter belong to the entry: how it is split makes no difference.
    elementwise: bool = False
    #: Moves to the vertex of the set that the gradient selects, whatever the start and the learning rate.
    frank_wolfe: bool = False

    def __str__(self) -> str:
        name = getattr(self.make, "__name__", "chain")
        return f"{name}({self.required['p']})" if "p" in self.required else name

    @property
    def radius(self) -> float:
        return self.required.get("epsilon", EPSILON)

    def build(self, params: Any, **kwargs: Any) -> ParamTransformingOptimizer:
        """The optimizer, with the required arguments unless others are given."""
        if self.frank_wolfe:  # which is an inner optimizer of its own
            kwargs = {**kwargs, "lr": min(kwargs.get("lr", 1.0), 1.0)}
            kwargs.pop("InnerOpt", None)
        return self.make(params=params, **{**self.required, **kwargs})

    def step(self, x: Tensor, gradient: Tensor, lr: Any = 1.0, **group: Any) -> tuple[Tensor, Tensor]:
        """The parameter and its gradient after a step from x; group values are written into the group."""
        param = x.detach().clone().requires_grad_()
        param.grad = gradient.clone()
        arguments = {name: group.pop(name) for name in ("param_ndim", "InnerOpt") if name in group}
        optimizer = self.build([param], lr=lr, **arguments)
        optimizer.param_groups[0].update(group)
        optimizer.step()
        return param.detach(), param.grad


_L1_IN_L2 = (L1NormedGradientOptim, partial(ProjectedParameterOptimizer, p=2, epsilon=EPSILON))
_MI_FGSM = (L1NormedGradientOptim, MomentumGradientOptim, SignedGradientOptim)
_RADIUS = {"epsilon": EPSILON}
_FIXED = {**_RADIUS, "use_default_lr_schedule": False}

TABLE = [
    Row(ParamTransformingOptimizer, elementwise=True, parallel=True),
    Row(SignedGradientOptim, elementwise=True),
    Row(L1NormedGradientOptim, norm=1, parallel=True),
    Row(L2NormedGradientOptim, norm=2, parallel=True),
    Row(LinfNormedGradientOptim, norm=math.inf, parallel=True),
    Row(LpNormedGradientOptim, {"p": 3}, norm=3, parallel=True),
    Row(SteepestGradientOptim, {"p": 1}, norm=1),
    Row(SteepestGradientOptim, {"p": 1.5}, norm=1.5),
    Row(SteepestGradientOptim, {"p": 2}, norm=2, parallel=True),
    Row(SteepestGradientOptim, {"p": math.inf}, norm=math.inf, elementwise=True),
    Row(TopQGradientOptimizer, {"q": 0.4}),
    Row(L1qNormedGradientOptim, {"q": 0.4}, norm=1),
    Row(MomentumGradientOptim, {"mu": 0.9}, elementwise=True, parallel=True),
    Row(ClampedGradientOptimizer, {"clamp_min": -0.25, "clamp_max": 0.5}, elementwise=True),
    Row(ProjectedParameterOptimizer, {"p": 0, "epsilon": ENTRIES}, ball=0, parallel=True),
    Row(ProjectedParameterOptimizer, {"p": 1, **_RADIUS}, ball=1, parallel=True),
    Row(ProjectedParameterOptimizer, {"p": 2, **_RADIUS}, ball=2, parallel=True),
    Row(ProjectedParameterOptimizer, {"p": math.inf, **_RADIUS}, ball=math.inf, elementwise=True, parallel=True),
    Row(L0ProjectedOptim, {"epsilon": ENTRIES}, norm=2, ball=0, parallel=True),
    Row(L1ProjectedOptim, {"q": 0.4, **_RADIUS}, norm=1, ball=1),
    Row(L2ProjectedOptim, _RADIUS, norm=2, ball=2, parallel=True),
    Row(LinfProjectedOptim, _RADIUS, ball=math.inf, elementwise=True),
    Row(ClampedParameterOptimizer, {"clamp_min": -0.25, "clamp_max": 0.5}, bounds=(-0.25, 0.5), elementwise=True),
    Row(partial(ChainedParamTransformingOptimizer, *_L1_IN_L2), norm=1, ball=2, parallel=True),
    Row(partial(ChainedParamTransformingOptimizer, *_MI_FGSM)),
    Row(LinfFrankWolfe, _FIXED, ball=math.inf, elementwise=True, frank_wolfe=True),
    Row(L2FrankWolfe, _FIXED, ball=2, frank_wolfe=True),
    Row(L1FrankWolfe, _FIXED, ball=1, frank_wolfe=True),
    Row(L1qFrankWolfe, {"q": 0.4, **_FIXED}, ball=1, frank_wolfe=True),
]
NORMED = [row for row in TABLE if row.norm is not None]
WITH_BALL = [row for row in TABLE if row.ball is not None]
PROJECTING = [row for row in WITH_BALL if not row.frank_wolfe]
FRANK_WOLFE = [row for row in TABLE if row.frank_wolfe]
WITH_INNER = [row for row in TABLE if not row.frank_wolfe]
