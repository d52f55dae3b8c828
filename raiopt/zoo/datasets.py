"""torchvision's data sets for classification, by name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from raiopt import checks
from raiopt.zoo.data import ImageData, check_labels, positions
from raiopt.zoo.folders import class_indices
from raiopt.zoo.geometry import Geometry, pixels, square
from raiopt.zoo.loading import once
from raiopt.zoo.picture_files import only_pictures

# fmt: off
NAMES = (  # data sets whose samples are (PIL image, class index)
    "Caltech101", "Caltech256", "CIFAR10", "CIFAR100", "CLEVRClassification", "Country211", "DTD", "EuroSAT",
    "FakeData", "FashionMNIST", "FER2013", "FGVCAircraft", "Flowers102", "Food101", "GTSRB", "ImageNet", "Imagenette",
    "KMNIST", "LFWPeople", "MNIST", "OxfordIIITPet", "PCAM", "Places365", "QMNIST", "RenderedSST2", "SEMEION",
    "StanfordCars", "STL10", "SUN397", "SVHN", "USPS",
)
# fmt: on


def torchvision_data_sets() -> list[str]:
    """Returns the names that `torchvision_data` accepts."""
    return list(NAMES)


@once
def torchvision_data(
    name: str,
    root: str,
    *,
    split: str = "test",
    download: bool = False,
    size: int | None = None,
    limit: int | None = None,
    indices: Sequence[int] | str | None = None,
    geometry: Geometry | None = None,
    categories: tuple[str, ...] | None = None,
    num_classes: int | None = None,
) -> ImageData:
    """A torchvision data set by name.

    Args:
        name: The name of the data set; `raiopt list data` shows all.
        root: The folder of the files, as torchvision's class expects it.
        download: Download the files to `root` first.
        split: "test" or "train", or a name of the data set's own splits. A data set without splits is used whole, and
            only "test" is accepted.
        size: Resize and crop images to `size` by `size` pixels; None: as the model's weights expect, or unchanged.
        limit: Use at most this number of samples, after `indices`; None: all.
        indices: Positions in the data, `[3,1,7]`, or a slice, `"10:20"` or `::-1`; None: all.
        geometry, categories, num_classes: Properties of the model; see `Classifier`.
    """
    checks.choice("data.name", name, NAMES)
    source = _opened(name, root, split, download)
    ids = positions(len(source), limit, indices)
    names = [f"{name}/{split}/{i}" for i in ids]
    geometry = geometry if size is None else square(size)

    def read(i: int) -> Tensor:
        image, _ = _sample(name, source, i)
        return pixels(image) if geometry is None else geometry.apply(image)

    known = _known_labels(name, source)
    labels = torch.tensor([_sample(name, source, i)[1] for i in ids]) if known is None else known[ids]
    classes = _class_names(source, categories)
    count = len(classes) if classes else getattr(source, "num_classes", None if known is None else len(known.unique()))
    if classes is not None and categories is not None and set(classes) <= set(categories):
        index_of = class_indices(classes, categories, num_classes)
        labels = torch.tensor([index_of[classes[label]] for label in labels.tolist()])
        count = num_classes
    data = ImageData(name, ids, names, labels, read, classes, count)
    check_labels(data, num_classes)
    return data


def _opened(name: str, root: str, split: str, download: bool) -> Any:
    from raiopt.zoo.vision import datasets

    make = getattr(datasets, name)
    accepted = _parameters(make)
    arguments: dict[str, Any] = {"root": root} if "root" in accepted else {}
    if "train" in accepted:
        arguments["train"] = checks.choice("data.split", split, ("test", "train")) == "train"
    elif "split" in accepted:
        arguments["split"] = split
    else:
        checks.choice("data.split", split, ("test",))
    if "download" in accepted:
        arguments["download"] = download
    elif download:
        raise ValueError(f"data.download=true has no effect: torchvision cannot download {name}; copy it to {root!r}.")
    try:
        with only_pictures():
            return make(**arguments)
    except (RuntimeError, OSError, ImportError) as error:
        remedy = "give data.download=true, or copy them there" if "download" in accepted else "copy them there"
        raise ValueError(
            f"torchvision cannot open {name} in data.root={root!r} ({error}). If files are missing: {remedy}."
        ) from error


def _parameters(make: type) -> set[str]:
    """Returns the names of a class's arguments, including its parents' if it passes **kwargs on."""
    names: set[str] = set()
    for parent in inspect.getmro(make):
        parameters = inspect.signature(parent.__init__).parameters
        names |= parameters.keys()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def _sample(name: str, source: Any, number: int) -> tuple[Image.Image, int]:
    with only_pictures():
        image, label = source[number]
    if not isinstance(image, Image.Image):
        raise TypeError(f"data.name={name} returns {type(image).__name__}, not a PIL image.")
    return image, int(label)


def _known_labels(name: str, source: Any) -> Tensor | None:
    """Returns all labels (N,) from the data set's own list; None if the samples must be read to get them."""
    for attribute in ("targets", "labels"):
        known = getattr(source, attribute, None)
        if known is not None and len(known) == len(source) and int(known[0]) == _sample(name, source, 0)[1]:
            return torch.as_tensor(known).to(torch.int64)
    return None


def _class_names(source: Any, categories: Sequence[str] | None) -> tuple[str, ...] | None:
    """Returns the name of each class, choosing the model's name among synonyms; None if the data set has no names."""
    classes = getattr(source, "classes", getattr(source, "categories", None))
    if classes is None:
        return None
    known = set(categories or ())
    synonyms = [(entry,) if isinstance(entry, str) else tuple(entry) for entry in classes]
    return tuple(next((name for name in names if name in known), names[0]) for names in synonyms)
