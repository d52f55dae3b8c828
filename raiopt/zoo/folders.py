"""A folder of images, with or without a subfolder for each class, and the mapping of class names to labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from raiopt import checks
from raiopt.zoo.data import ImageData, check_labels, positions
from raiopt.zoo.geometry import Geometry, pixels, square
from raiopt.zoo.loading import once
from raiopt.zoo.picture_files import content_hash, opened

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
LABELS = ("folder", "predicted")


@once
def image_folder(
    root: str,
    *,
    labels: Literal["folder", "predicted"] = "folder",
    size: int | None = None,
    limit: int | None = None,
    indices: Sequence[int] | str | None = None,
    geometry: Geometry | None = None,
    categories: tuple[str, ...] | None = None,
    num_classes: int | None = None,
) -> ImageData:
    """A folder of images, sorted by path, in a subfolder for each class.

    Args:
        root: The folder.
        labels: "folder": the name of the subfolder is the class, a category of the model; if not all names are, the
            sorted names are the classes in order. "predicted": the model's prediction of the clean image is the label,
            and subfolders do not matter.
        size: Resize and crop images to `size` by `size` pixels; None: as the model's weights expect, or unchanged.
        limit: Use at most this number of samples, after `indices`; None: all.
        indices: Positions in the data, `[3,1,7]`, or a slice, `"10:20"` or `::-1`; None: all.
        geometry, categories, num_classes: Properties of the model; see `Classifier`.
    """
    checks.choice("data.labels", labels, LABELS)
    folder, files, ids = _chosen(root, limit, indices)
    geometry = geometry if size is None else square(size)
    every_label = classes = count = None
    if labels == "folder":
        folders = [_class_folder(root, file) for file in files]
        classes = tuple(sorted(set(folders)))
        index_of = class_indices(classes, categories, num_classes)
        every_label = torch.tensor([index_of[name] for name in folders])
        count = num_classes or len(classes)

    def read(i: int) -> Tensor:
        with opened(folder / files[i]) as image:
            return pixels(image) if geometry is None else geometry.apply(image)

    _check_images([folder / files[i] for i in ids], same_size=geometry is None)
    data = ImageData(
        name=folder.resolve().name,
        ids=ids,
        names=[files[i] for i in ids],
        labels=None if every_label is None else every_label[ids],
        read=read,
        classes=classes,
        num_classes=count,
        files_hash=cache(partial(content_hash, folder, [files[i] for i in ids])),
    )
    check_labels(data, num_classes)
    return data


def image_folder_hash(root: str, limit: int | None = None, indices: Sequence[int] | str | None = None) -> str:
    """Returns `ImageData.files_hash()` of `image_folder` with these arguments, without decoding any image."""
    folder, files, ids = _chosen(root, limit, indices)
    return content_hash(folder, [files[i] for i in ids])


def _chosen(root: str, limit: int | None, indices: Sequence[int] | str | None) -> tuple[Path, list[str], list[int]]:
    """Returns the folder, the sorted paths of all its images, and the positions of the selected ones."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ValueError(f"data.root={root!r} is not a folder.")
    files = sorted(_image_files(folder))
    if not files:
        raise ValueError(f"data.root={root!r} contains no images ({', '.join(SUFFIXES)}).")
    return folder, files, positions(len(files), limit, indices)


def class_indices(names: Sequence[str], categories: Sequence[str] | None, num_classes: int | None) -> dict[str, int]:
    """Returns the model's class index for each class name of the data.

    Names are matched if all of them are categories of the model; otherwise, if data and model have the same number of
    classes, the sorted names get the indices in order.

    Examples:
        >>> class_indices(["ox", "cat"], ("cat", "dog", "ox"), 3)
        {'ox': 2, 'cat': 0}
        >>> class_indices(["a", "b"], ("cat", "dog"), 2)
        {'a': 0, 'b': 1}
    """
    known = list(categories or ())
    if known and set(names) <= set(known):
        ambiguous = [name for name in names if known.count(name) > 1]
        if ambiguous:
            raise ValueError(
                f"The class {ambiguous[0]!r} is the name of several categories of the model; remove this class."
            )
        return {name: known.index(name) for name in names}
    if num_classes not in (None, len(names)):
        unknown = [name for name in names if name not in known]
        raise ValueError(
            f"The data have {len(names)} classes and the model {num_classes}, and not all class names are the model's "
            f"categories (e.g. {unknown[0]!r}). Name the folders after the categories, or give data.labels=predicted."
        )
    return {name: index for index, name in enumerate(sorted(names))}


def _image_files(folder: Path) -> list[str]:
    """Returns the paths of all images below the folder, relative to it, with forward slashes."""
    return [
        Path(directory, file).relative_to(folder).as_posix()
        for directory, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(SUFFIXES)
    ]


def _class_folder(root: str, file: str) -> str:
    name, slash, _ = file.partition("/")
    if not slash:
        raise ValueError(
            f"{file} is in data.root={root!r} itself and not in a class folder. Put each image into a folder named "
            "after its class, or give data.labels=predicted to use the model's prediction as label."
        )
    return name


def _check_images(files: list[Path], *, same_size: bool) -> None:
    """Raises a ValueError that names the first file that is damaged or differs in size from the first one."""
    first: tuple[int, int] | None = None
    for file in files:
        size = _verified_size(file)
        first = first or size
        if same_size and size != first:
            raise ValueError(
                f"{files[0]} is {first[0]}x{first[1]} pixels and {file} {size[0]}x{size[1]}; all images of a run must "
                "have the same size: give data.size, e.g. data.size=224."
            )


def _verified_size(file: Path) -> tuple[int, int]:
    """Returns (width, height) of a complete image; decodes it only if no cheaper check proves that it is complete."""
    with opened(file) as image:
        if image.format == "PNG":
            image.verify()
        elif image.format != "JPEG" or not _ends_as_jpeg(file):
            image.load()
        return image.size


def _ends_as_jpeg(file: Path) -> bool:
    with file.open("rb") as stream:
        stream.seek(-2, os.SEEK_END)
        return stream.read() == b"\xff\xd9"
