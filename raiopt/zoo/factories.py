"""Your own model, data set or perturbation: an importable function, given as "package.module:function"."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.machinery import PathFinder
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from raiopt.perturbations import PerturbationModel
from raiopt.zoo.data import ImageData, check_labels, check_pixels, positions
from raiopt.zoo.geometry import Geometry, pixels, square
from raiopt.zoo.loading import once
from raiopt.zoo.models import Classifier


def imported(name: str, path: str) -> Callable[..., Any]:
    """Returns the function named by "package.module:function"; modules in the current folder are found too.

    Args:
        name: The option with the path, for error messages.

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
            raise  # the module was found, but something that it imports was not
        raise ValueError(
            f"{name}={path!r}: there is no module {error.name!r}. Install it, or run from the folder that contains it."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"{name}={path!r}: {module.__file__ or module_name} has no function {attribute!r}.")
    return function


@contextmanager
def _current_folder(package: str) -> Iterator[None]:
    """Puts the current folder first in sys.path while one of its packages is imported, and last afterwards.

    So its modules are found, but do not shadow installed modules that are imported later. For an installed package, the
    folder is last from the start.
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


def _factory(group: str, path: str, kwargs: Mapping[str, Any] | None) -> Callable[..., Any]:
    """Returns the function named by `path` with its keyword arguments."""
    if not isinstance(kwargs, Mapping | None):
        raise TypeError(f"{group}.kwargs={kwargs!r} must be a mapping, as in {{depth: 3}}.")
    return partial(imported(f"{group}.factory", path), **(kwargs or {}))


def _made(group: str, path: str, kwargs: Mapping[str, Any] | None) -> Any:
    """Returns the result of the function; an error that it raises becomes a ValueError with the function's name."""
    factory = _factory(group, path, kwargs)
    try:
        return factory()
    except Exception as error:
        raise ValueError(f"{group}.factory={path!r} raised {type(error).__name__}: {error}") from error


@once
def python_model(
    factory: str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Classifier:
    """A torch.nn.Module that your function returns, from normalised images to logits.

    Args:
        factory: The function, as `package.module:function`; modules in the current folder are found too.
        kwargs: Keyword arguments of the function, as in `{depth: 3}`.
        mean: Mean that is subtracted from the pixels in [0, 1]: one number, or one per channel; None: 0.
        std: Standard deviation that the pixels are divided by: one number, or one per channel; None: 1.
    """
    net = _made("model", factory, kwargs)
    if not isinstance(net, nn.Module):
        raise TypeError(f"model.factory={factory!r} must return a torch.nn.Module, not {type(net).__name__}.")
    return Classifier(net, name=factory, mean=mean, std=std).frozen()


def python_perturbation(images: Tensor, *, factory: str, kwargs: Mapping[str, Any] | None = None) -> PerturbationModel:
    """A perturbation that your function returns for a batch of images.

    Args:
        factory: The function, as `package.module:function`; it is called with the images (N, C, H, W).
        kwargs: Further keyword arguments of the function, as in `{size: 3}`.
    """
    made = _factory("perturbation", factory, kwargs)(images)
    if not isinstance(made, PerturbationModel):
        raise TypeError(
            f"perturbation.factory={factory!r} must return a perturbation, callable and with parameters(), "
            f"not {type(made).__name__}. See help(raiopt.perturbations.PerturbationModel)."
        )
    return made


@once
def python_data(
    factory: str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    size: int | None = None,
    limit: int | None = None,
    indices: Sequence[int] | str | None = None,
    geometry: Geometry | None = None,
    num_classes: int | None = None,
) -> ImageData:
    """Images and labels, or a data set of pairs (image, label), that your function returns.

    The function returns either a pair of images (N, C, H, W) in [0, 1] and labels (N,) or None, or a map-style data set
    of pairs (image, label). Images in it are tensors (C, H, W) in [0, 1], which are used unchanged, or PIL images.
    Labels are class indices of the model.

    Args:
        factory: The function, as `package.module:function`; modules in the current folder are found too.
        kwargs: Keyword arguments of the function, as in `{depth: 3}`.
        size: Resize and crop PIL images to `size` by `size` pixels; None: as the model's weights expect, or unchanged.
        limit: Use at most this number of samples, after `indices`; None: all.
        indices: Positions in the data, `[3,1,7]`, or a slice, `"10:20"` or `::-1`; None: all.
        geometry, num_classes: Properties of the model; see `Classifier`.
    """
    made = _made("data", factory, kwargs)
    if isinstance(made, (tuple, list)) and len(made) == 2 and hasattr(made[0], "shape"):
        made = _pairs(factory, *made)
    if not (hasattr(made, "__len__") and hasattr(made, "__getitem__")):
        raise TypeError(
            f"data.factory={factory!r} must return (images, labels) or a data set with a length and indices, "
            f"not {type(made).__name__}."
        )
    geometry = geometry if size is None else square(size)
    ids = positions(len(made), limit, indices)
    names = [f"{factory}/{i}" for i in ids]
    if size is not None and not isinstance(_pair(factory, made[ids[0]])[0], Image.Image):
        raise ValueError(f"data.size={size} has no effect: {factory} returns tensors, which are not resized.")

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
        raise TypeError(f"data.factory={factory!r} must contain pairs (image, label), not {type(sample).__name__}.")
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


def _pairs(factory: str, images: Any, labels: Any) -> list[tuple[Tensor, Tensor | None]]:
    images = torch.as_tensor(images)
    if images.ndim != 4:
        raise ValueError(f"The images of {factory} have the shape {tuple(images.shape)}, not (N, C, H, W).")
    for i, image in enumerate(images):
        check_pixels(image, f"{factory}/{i}")
    if labels is None:
        return [(image, None) for image in images]
    labels = torch.as_tensor(labels)
    if labels.shape != (len(images),):
        raise ValueError(f"The labels of {factory} have the shape {tuple(labels.shape)}, not ({len(images)},).")
    return list(zip(images, labels, strict=True))
