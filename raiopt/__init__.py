"""Find the smallest changes of an input that break an image classifier: an attack is an optimizer.

The names below are loaded on first use, so that importing raiopt does not import torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "as_batch": "raiopt.batching",
    "AdditivePerturbation": "raiopt.perturbations",
    "ChainedParamTransformingOptimizer": "raiopt.optim",
    "ClampedGradientOptimizer": "raiopt.optim",
    "ClampedParameterOptimizer": "raiopt.optim",
    "L1NormedGradientOptim": "raiopt.optim",
    "L2NormedGradientOptim": "raiopt.optim",
    "L2ProjectedOptim": "raiopt.optim",
    "LinfProjectedOptim": "raiopt.optim",
    "ParamTransformingOptimizer": "raiopt.optim",
    "ProjectedParameterOptimizer": "raiopt.optim",
    "SignedGradientOptim": "raiopt.optim",
    "gradient_ascent": "raiopt.perturbations",
    "load_data": "raiopt.zoo",
    "load_model": "raiopt.zoo",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raiopt' has no attribute {name!r}; it offers {', '.join(__all__)}.")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
