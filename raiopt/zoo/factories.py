"""A model or a data set of one's own: any importable function, given as "package.module:function"."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from raiopt.zoo.data import ImageData, check_labels, check_pixels, positions
from raiopt.zoo.geometry import Geometry, pixels, square
from raiopt.zoo.loading import once
from raiopt.zoo.models import Classifier


def imported(name: str, path: str) -> Callable[..., Any]:
    """Returns the function that "package.module:function" names; modules of the current directory are found too.

    Args:
        name: the argument that gave the path, for error messages.

    Examples:
        >>> imported("model.factory", "math:sqrt")(9)
        3.0
    """
    module_name, colon, attribute = path.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(f'{name}={path!r} must be "package.module:function".')
    try:
        with _current_folder(module_name.partition(".")[0]):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module was found; something that it imports was not
        raise ValueError(
            f"{name}={path!r}: there is no module {error.name!r}. Install it, or run from the folder that holds it."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"{name}={path!r}: {module.__file__ or module_name} has no function {attribute!r}.")
    return function


@contextmanager
def _current_folder(package: str) -> Iterator[None]:
    """Has the current folder searched first while a package of it is imported, and from then on last.

    So its modules are found, but none of them takes the place of an installed one that something imports later. A
    package that is installed does not see the folder in front at all.
    """
    folder = os.getcwd()
    if folder in sys.path:
        yield
        return
    is_there = PathFinder.find_spec(package, [folder]) is not None
    sys.path.insert(0 if is_there else len(sys.path), folder)
    try:
        yield
    finally:
        if is_there and folder in sys.path:
            sys.path.remove(folder)
            sys.path.append(folder)


def _made(name: str, path: str, kwargs: Mapping[str, Any] | None) -> Any:
    """Returns what the function makes; an error of its own is raised again with the function's name."""
    if not isinstance(kwargs, Mapping | None):
        raise TypeError(f"{name.partition('.')[0]}.kwargs={kwargs!r} must be a mapping, as in {{depth: 3}}.")
    function = imported(name, path)
    try:
        return function(**(kwargs or {}))
    except Exception as error:
        raise ValueError(f"{name}={path!r} raised {type(error).__name__}: {error}") from error


@once
def python_model(
    factory: str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Classifier:
    """Returns the network that factory(**kwargs) makes: an nn.Module from normalised images to logits."""
    net = _made("model.factory", factory, kwargs)
    if not isinstance(net, nn.Module):
        raise TypeError(f"model.factory={factory!r} must return a torch.nn.Module, not {type(net).__name__}.")
    return Classifier(net, name=factory, mean=mean, std=std).frozen()


@once
def python_data(
    factory: str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    size: int | None = None,
    limit: int | None = None,
    indices: Sequence[int] | str | None = None,
    geometry: Geometry | None = None,
    categories: tuple[str, ...] | None = None,
    num_classes: int | None = None,
) -> ImageData:
    """Returns the data set that factory(**kwargs) makes.

    It is a pair (images (N, C, H, W) in [0, 1], labels (N,) or None), or a map-style data set of pairs (image, label)
    whose images are tensors (C, H, W) in [0, 1], taken as they are, or PIL images, which `size` or the model's geometry
    resizes. Labels are the model's class indices.
    """
    made = _made("data.factory", factory, kwargs)
    if isinstance(made, (tuple, list)) and len(made) == 2 and hasattr(made[0], "shape"):
        made = _Arrays(factory, *made)
    if not (hasattr(made, "__len__") and hasattr(made, "__getitem__")):
        raise TypeError(
            f"data.factory={factory!r} must return (images, labels) or a data set with a length and indices, "
            f"not {type(made).__name__}."
        )
    geometry = geometry if size is None else square(size)
    ids = positions(len(made), limit, indices)
    names = [f"{factory}/{i}" for i in ids]
    if size is not None and not isinstance(_pair(factory, made[ids[0]])[0], Image.Image):
        raise ValueError(f"data.size={size} has no effect: {factory} gives tensors, which are taken as they are.")

    def read(i: int) -> Tensor:
        image = _pair(factory, made[i])[0]
        if isinstance(image, Image.Image):
            return pixels(image) if geometry is None else geometry.apply(image)
        return torch.as_tensor(image)

    labels = _labels([_pair(factory, made[i])[1] for i in ids], names)
    data = ImageData(factory, ids, names, labels, read)
    check_labels(data, num_classes)
    data.image(0)
    return data


def _pair(factory: str, sample: Any) -> tuple[Any, Any]:
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise TypeError(f"data.factory={factory!r} must give pairs (image, label), not {type(sample).__name__}.")
    return sample[0], sample[1]


def _labels(given: list[Any], names: list[str]) -> Tensor | None:
    if all(label is None for label in given):
        return None
    for label, name in zip(given, names, strict=True):
        if not _is_integer(label):
            raise TypeError(f"{name} has the label {label!r}; a label must be one integer, the index of a class.")
    return torch.tensor([int(label) for label in given], dtype=torch.int64)


def _is_integer(label: Any) -> bool:
    tensor = torch.as_tensor(label) if hasattr(label, "dtype") or isinstance(label, int) else torch.tensor(0.5)
    return tensor.numel() == 1 and not tensor.is_floating_point() and tensor.dtype != torch.bool


class _Arrays:
    """Images and labels as a map-style data set."""

    def __init__(self, factory: str, images: Any, labels: Any) -> None:
        self.images = torch.as_tensor(images)
        self.labels = None if labels is None else torch.as_tensor(labels)
        if self.images.ndim != 4:
            raise ValueError(f"The images of {factory} have the shape {tuple(self.images.shape)}, not (N, C, H, W).")
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise ValueError(
                f"The labels of {factory} have the shape {tuple(self.labels.shape)}, not ({len(self.images)},)."
            )
        for i, image in enumerate(self.images):
            check_pixels(image, f"{factory}/{i}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor | None]:
        return self.images[i], None if self.labels is None else self.labels[i]
