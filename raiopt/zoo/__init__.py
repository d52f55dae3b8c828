"""Models and data: built-in digits, torchvision's models and data sets, image folders, and one's own."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from raiopt import checks
from raiopt.zoo.data import Batch, ImageData, Shard
from raiopt.zoo.datasets import torchvision_data, torchvision_data_sets
from raiopt.zoo.digits import digits, digits_model
from raiopt.zoo.factories import python_data, python_model
from raiopt.zoo.folders import image_folder
from raiopt.zoo.geometry import Geometry
from raiopt.zoo.models import Classifier
from raiopt.zoo.pretrained import torchvision_model, torchvision_models

__all__ = [
    "Batch",
    "Classifier",
    "Geometry",
    "ImageData",
    "Shard",
    "digits",
    "digits_model",
    "image_folder",
    "load_data",
    "load_model",
    "python_data",
    "python_model",
    "torchvision_data",
    "torchvision_data_sets",
    "torchvision_model",
    "torchvision_models",
]

_MODELS: dict[str, Literal["robust", "standard"]] = {"digits_robust": "robust", "digits_standard": "standard"}
_DATA: dict[str, Literal["test", "train"]] = {"digits": "test", "digits_train": "train"}


def load_model(name: str) -> Classifier:
    """Returns "digits_robust", "digits_standard", or a torchvision classifier with its default published weights.

    Frozen and in eval mode; a second call gives the same object.

    Examples:
        >>> load_model("digits_robust").num_classes
        10
    """
    if name in _MODELS:
        return digits_model(_MODELS[name])
    checks.choice("name", name, [*_MODELS, *torchvision_models()])
    return torchvision_model(name, weights="DEFAULT")


def load_data(name: str) -> tuple[Tensor, Tensor]:
    """Returns images (N, 3, 64, 64) in [0, 1] and labels (N,): "digits" (500 test images) or "digits_train" (1,297).

    Examples:
        >>> images, labels = load_data("digits")
        >>> images.shape, labels[:4]
        (torch.Size([500, 3, 64, 64]), tensor([2, 2, 3, 0]))
    """
    data = digits(_DATA[checks.choice("name", name, _DATA)])
    batch = next(data.batches(len(data)))
    assert batch.labels is not None
    return batch.images, batch.labels
