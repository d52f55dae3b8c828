"""Optimizers that transform gradients and parameters around any torch optimizer."""

from raiopt.optim.adaptive import AdaptiveStepOptim, SteepestProjectedOptim
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.chain import ChainedParamTransformingOptimizer
from raiopt.optim.frank_wolfe import FrankWolfe, L1FrankWolfe, L1qFrankWolfe, L2FrankWolfe, LinfFrankWolfe
from raiopt.optim.gradients import (
    ClampedGradientOptimizer,
    L1NormedGradientOptim,
    L2NormedGradientOptim,
    LinfNormedGradientOptim,
    LpNormedGradientOptim,
    SignedGradientOptim,
    SteepestGradientOptim,
)
from raiopt.optim.momentum import LookaheadGradientOptim, MomentumGradientOptim, VarianceTunedGradientOptim
from raiopt.optim.penalties import ALMAOptim, CWOptim
from raiopt.optim.projections import (
    ClampedParameterOptimizer,
    L0ProjectedOptim,
    L1ProjectedOptim,
    L2ProjectedOptim,
    LinfProjectedOptim,
    ProjectedParameterOptimizer,
)
from raiopt.optim.smallest import DDNOptim, FMNOptim
from raiopt.optim.sparse import L1qNormedGradientOptim, TopQGradientOptimizer
from raiopt.optim.square import SquareOptim
from raiopt.optim.traits import Traits, traits_of

__all__ = [
    "ALMAOptim",
    "AdaptiveStepOptim",
    "CWOptim",
    "ChainedParamTransformingOptimizer",
    "ClampedGradientOptimizer",
    "ClampedParameterOptimizer",
    "DDNOptim",
    "FMNOptim",
    "FrankWolfe",
    "L0ProjectedOptim",
    "L1FrankWolfe",
    "L1NormedGradientOptim",
    "L1ProjectedOptim",
    "L1qFrankWolfe",
    "L1qNormedGradientOptim",
    "L2FrankWolfe",
    "L2NormedGradientOptim",
    "L2ProjectedOptim",
    "LinfFrankWolfe",
    "LinfNormedGradientOptim",
    "LinfProjectedOptim",
    "LookaheadGradientOptim",
    "LpNormedGradientOptim",
    "MomentumGradientOptim",
    "ParamTransformingOptimizer",
    "ProjectedParameterOptimizer",
    "SignedGradientOptim",
    "SquareOptim",
    "SteepestGradientOptim",
    "SteepestProjectedOptim",
    "TopQGradientOptimizer",
    "Traits",
    "VarianceTunedGradientOptim",
    "traits_of",
]
