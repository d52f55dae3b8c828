"""The one door to torchvision: every use of it in raiopt reads `vision.models`, `vision.datasets`, ... from here.

A CPU build of torch beside a CUDA build of torchvision (what plain pip may give) fails on `import torchvision`, because
the compiled operators are not loaded. Classifiers need none of them, so two declared schemas are enough.
"""

from __future__ import annotations

import sys
import warnings

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: torch.library.Library | None = None  # a schema lives as long as its Library


def _import_torchvision() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        import torchvision  # noqa: F401


def _declare_operators() -> None:
    global _declared
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported: a second import would find them and fail otherwise
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            _declared.define(operator + _SCHEMA)


try:
    _import_torchvision()
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    _declare_operators()
    _import_torchvision()

from torchvision import datasets, models  # noqa: E402
from torchvision.transforms import InterpolationMode, functional  # noqa: E402

__all__ = ["InterpolationMode", "datasets", "functional", "models"]
