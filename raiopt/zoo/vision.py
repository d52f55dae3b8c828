"""The only place where torchvision is imported: raiopt uses `vision.models`, `vision.datasets`, ... from here.

With a CPU build of torch and a CUDA build of torchvision, which pip may install, `import torchvision` fails because the
compiled operators cannot be loaded. Classifiers need none of them, so declaring two schemas is enough.
"""

from __future__ import annotations

import sys
import warnings

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: torch.library.Library | None = None  # a schema exists as long as its Library


def _import_torchvision() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        import torchvision  # noqa: F401


def _declare_operators() -> None:
    global _declared
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # partly imported modules would make the second import fail
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
