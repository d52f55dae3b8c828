"""All public optimizers, one row each: every law is parametrized over them. A new optimizer is one new row."""

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
    L1NormedGradientOptim,
    L2NormedGradientOptim,
    L2ProjectedOptim,
    LinfProjectedOptim,
    ParamTransformingOptimizer,
    ProjectedParameterOptimizer,
    SignedGradientOptim,
)

EPSILON = 0.5


@dataclass(frozen=True)
class Row:
    """An optimizer, and what it promises."""

    make: Callable[..., ParamTransformingOptimizer]
    #: Arguments that it cannot be built without.
    required: dict[str, Any] = field(default_factory=dict)
    #: The norm that each datum of the gradient has after its transform.
    norm: float | None = None
    #: The ball that each datum of the parameter lies in after the step.
    ball: float | None = None
    #: The bounds that each entry of the parameter lies in after the step.
    bounds: tuple[float, float] = (-math.inf, math.inf)
    #: The transform of the gradient and of the parameter belong to the entry: how it is split makes no difference.
    elementwise: bool = False

    def __str__(self) -> str:
        return getattr(self.make, "__name__", "chain")

    def build(self, params: Any, **kwargs: Any) -> ParamTransformingOptimizer:
        """The optimizer, with the required arguments unless others are given."""
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

TABLE = [
    Row(ParamTransformingOptimizer, elementwise=True),
    Row(SignedGradientOptim, elementwise=True),
    Row(L1NormedGradientOptim, norm=1),
    Row(L2NormedGradientOptim, norm=2),
    Row(ClampedGradientOptimizer, {"clamp_min": -0.25, "clamp_max": 0.5}, elementwise=True),
    Row(ProjectedParameterOptimizer, {"p": 2, "epsilon": EPSILON}, ball=2),
    Row(ProjectedParameterOptimizer, {"p": math.inf, "epsilon": EPSILON}, ball=math.inf, elementwise=True),
    Row(L2ProjectedOptim, {"epsilon": EPSILON}, norm=2, ball=2),
    Row(LinfProjectedOptim, {"epsilon": EPSILON}, ball=math.inf, elementwise=True),
    Row(ClampedParameterOptimizer, {"clamp_min": -0.25, "clamp_max": 0.5}, bounds=(-0.25, 0.5), elementwise=True),
    Row(partial(ChainedParamTransformingOptimizer, *_L1_IN_L2), norm=1, ball=2),
]
NORMED = [row for row in TABLE if row.norm is not None]
WITH_BALL = [row for row in TABLE if row.ball is not None]
