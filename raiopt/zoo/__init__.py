"""Models and data: the built-in digits, torchvision's models and data sets, image folders, and your own."""

from __future__ import annotations

from torch import Tensor

from raiopt import checks
from raiopt.zoo.data import Batch, ImageData, Shard
from raiopt.zoo.datasets import torchvision_data, torchvision_data_sets
from raiopt.zoo.digits import digits, digits_robust, digits_standard
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
    "digits_robust",
    "digits_standard",
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

_BUILT_IN = {"digits_robust": digits_robust, "digits_standard": digits_standard}


def load_model(name: str) -> Classifier:
    """Returns a classifier by name: "digits_robust", "digits_standard", or one of torchvision with published weights.

    It is frozen and in eval mode; a second call returns the same object.

    Examples:
        >>> load_model("digits_robust").num_classes
        10
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    checks.choice("name", name, [*_BUILT_IN, *torchvision_models()])
    return torchvision_model(name, weights="DEFAULT")


def load_data(name: str) -> tuple[Tensor, Tensor]:
    """Returns images (N, 3, 64, 64) in [0, 1] and labels (N,): "digits" (500 test images) or "digits_train" (1,297).

    Examples:
        >>> images, labels = load_data("digits")
        >>> images.shape, labels[:4]
        (torch.Size([500, 3, 64, 64]), tensor([2, 2, 3, 0]))
    """
    data = digits("test" if checks.choice("name", name, ("digits", "digits_train")) == "digits" else "train")
    batch = next(data.batches(len(data)))
    assert batch.labels is not None
    return batch.images, batch.labels
