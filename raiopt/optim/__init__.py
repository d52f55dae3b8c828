"""Optimizers that transform gradients and parameters around any torch optimizer."""

from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.chain import ChainedParamTransformingOptimizer
from raiopt.optim.gradients import (
    ClampedGradientOptimizer,
    L1NormedGradientOptim,
    L2NormedGradientOptim,
    SignedGradientOptim,
)
from raiopt.optim.projections import (
    ClampedParameterOptimizer,
    L2ProjectedOptim,
    LinfProjectedOptim,
    ProjectedParameterOptimizer,
)

__all__ = [
    "ChainedParamTransformingOptimizer",
    "ClampedGradientOptimizer",
    "ClampedParameterOptimizer",
    "L1NormedGradientOptim",
    "L2NormedGradientOptim",
    "L2ProjectedOptim",
    "LinfProjectedOptim",
    "ParamTransformingOptimizer",
    "ProjectedParameterOptimizer",
    "SignedGradientOptim",
]
