"""Find the smallest changes of an input that break an image classifier: an attack is an optimizer.

The names below are loaded on first use, so that importing raiopt does not import torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "ALMAOptim": "raiopt.optim",
    "AdaptiveStepOptim": "raiopt.optim",
    "AdditivePerturbation": "raiopt.perturbations",
    "AffinePerturbation": "raiopt.perturbations",
    "CWOptim": "raiopt.optim",
    "ChainedParamTransformingOptimizer": "raiopt.optim",
    "ClampedGradientOptimizer": "raiopt.optim",
    "ClampedParameterOptimizer": "raiopt.optim",
    "DDNOptim": "raiopt.optim",
    "FMNOptim": "raiopt.optim",
    "FrankWolfe": "raiopt.optim",
    "L0ProjectedOptim": "raiopt.optim",
    "L1FrankWolfe": "raiopt.optim",
    "L1NormedGradientOptim": "raiopt.optim",
    "L1ProjectedOptim": "raiopt.optim",
    "L1qFrankWolfe": "raiopt.optim",
    "L1qNormedGradientOptim": "raiopt.optim",
    "L2FrankWolfe": "raiopt.optim",
    "L2NormedGradientOptim": "raiopt.optim",
    "L2ProjectedOptim": "raiopt.optim",
    "LinfFrankWolfe": "raiopt.optim",
    "LinfNormedGradientOptim": "raiopt.optim",
    "LinfProjectedOptim": "raiopt.optim",
    "LookaheadGradientOptim": "raiopt.optim",
    "LpNormedGradientOptim": "raiopt.optim",
    "MomentumGradientOptim": "raiopt.optim",
    "ParamTransformingOptimizer": "raiopt.optim",
    "PatchPerturbation": "raiopt.perturbations",
    "ProjectedParameterOptimizer": "raiopt.optim",
    "SignedGradientOptim": "raiopt.optim",
    "SquareOptim": "raiopt.optim",
    "SteepestGradientOptim": "raiopt.optim",
    "SteepestProjectedOptim": "raiopt.optim",
    "TopQGradientOptimizer": "raiopt.optim",
    "VarianceTunedGradientOptim": "raiopt.optim",
    "as_batch": "raiopt.batching",
    "attack": "raiopt.library",
    "gradient_ascent": "raiopt.perturbations",
    "load_data": "raiopt.zoo",
    "load_model": "raiopt.zoo",
    "load_run": "raiopt.reports.runs",
    "load_runs": "raiopt.reports.runs",
    "load_samples": "raiopt.results.shards",
    "load_sweep": "raiopt.results.tables",
    "random_restart": "raiopt.perturbations",
    "to_xarray": "raiopt.results.arrays",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raiopt' has no attribute {name!r}; it offers {', '.join(__all__)}.")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
