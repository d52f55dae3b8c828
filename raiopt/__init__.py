"""Adversarial attacks on image classifiers, in which every attack is an optimizer.

The names below are loaded on first use, so that importing raiopt does not import torch.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "attacks": "gradient_ascent random_restart",
    "batching": "as_batch",
    "library": "attack",
    "optim": """
        ALMAOptim AdaptiveStepOptim CWOptim ChainedParamTransformingOptimizer ClampedGradientOptimizer
        ClampedParameterOptimizer DDNOptim FMNOptim FrankWolfe L0ProjectedOptim L1FrankWolfe L1NormedGradientOptim
        L1ProjectedOptim L1qFrankWolfe L1qNormedGradientOptim L2FrankWolfe L2NormedGradientOptim L2ProjectedOptim
        LinfFrankWolfe LinfNormedGradientOptim LinfProjectedOptim LookaheadGradientOptim LpNormedGradientOptim
        MomentumGradientOptim ParamTransformingOptimizer ProjectedParameterOptimizer SignedGradientOptim SquareOptim
        SteepestGradientOptim SteepestProjectedOptim TopQGradientOptimizer Traits VarianceTunedGradientOptim
    """,
    "perturbations": "AdditivePerturbation AffinePerturbation PatchPerturbation evaluating freeze frozen negate",
    "reports.runs": "load_run load_runs",
    "results.arrays": "to_xarray",
    "results.shards": "load_samples",
    "results.tables": "load_sweep",
    "zoo": "load_data load_model",
}
_HOME = {name: f"raiopt.{module}" for module, names in _NAMES.items() for name in names.split()}
_MODULES = ("attacks", "optim", "perturbations", "reports", "results", "sampling", "transforms", "zoo")
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"raiopt.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'raiopt' has no attribute {name!r}; it offers {', '.join(__all__)}.")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
