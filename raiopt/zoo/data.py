"""The data of an attack: images in [0, 1] with stable ids, names and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from raiopt import checks


class Batch(NamedTuple):
    """Consecutive samples of an `ImageData`: images (n, C, H, W), and labels (n,) or None."""

    ids: list[int]
    names: list[str]
    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images that are read on demand; the batch size does not change how an image is read.

    Args:
        ids: Each sample's index in the whole data set, independent of selection and order.
        names: For example "digits/0017", or a file's path below the data set's folder.
        labels: int64 (N,); None: the model's own prediction of the clean image is the label.
        read: Returns the pixels (C, H, W) of the sample with this id.
        files_hash: Returns a hash of the files of all selected samples, before they are divided into shards. It reads
            all of them, so it is called only where the hash is recorded. None: the data has no files.

    Examples:
        >>> grey = lambda id: torch.full((1, 2, 2), id / 2)
        >>> data = ImageData("grey", [0, 1], ["grey/0", "grey/1"], torch.tensor([0, 1]), grey)
        >>> [batch.images.shape for batch in data.select(indices="::-1").batches(2)]
        [torch.Size([2, 1, 2, 2])]
    """

    name: str
    ids: list[int]
    names: list[str]
    labels: Tensor | None
    read: Callable[[int], Tensor]
    classes: tuple[str, ...] | None = None
    num_classes: int | None = None
    files_hash: Callable[[], str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def shape(self) -> torch.Size:
        """The shape (C, H, W) of every image."""
        return self._checked(0).shape

    def image(self, position: int) -> Tensor:
        """Returns float32 pixels (C, H, W) in [0, 1], or raises a ValueError that names the sample."""
        image = self._checked(position)
        if image.shape != self.shape:
            raise ValueError(
                f"{self.names[position]} has the shape {tuple(image.shape)}, but {self.names[0]} has "
                f"{tuple(self.shape)}; all images of a run must have one shape: give data.size, e.g. data.size=224."
            )
        return image

    def batches(self, size: int) -> Iterator[Batch]:
        """Yields all samples in order, `size` at a time."""
        checks.number("batch_size", size, low=1, integer=True)
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            images = torch.stack([self.image(position) for position in range(part.start, part.stop)])
            labels = None if self.labels is None else self.labels[part]
            yield Batch(self.ids[part], self.names[part], images, labels)

    def select(self, limit: int | None = None, indices: Sequence[int] | str | None = None) -> ImageData:
        """Returns the first `limit` of the samples at these positions, in this order.

        Args:
            indices: Positions in this data set, or a slice as text: "10:20", "::-1".
        """
        chosen = positions(len(self), limit, indices)
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, ids=[self.ids[i] for i in chosen], names=[self.names[i] for i in chosen], labels=labels)

    def _checked(self, position: int) -> Tensor:
        image = self.read(self.ids[position])
        check_pixels(image, self.names[position])
        return image.float()


@dataclass(frozen=True)
class Shard:
    """One of `count` consecutive parts of a data set.

    Args:
        index: The option data.shard: 0 to `count` - 1.
        count: The option data.num_shards.

    Examples:
        >>> grey = lambda id: torch.full((1, 2, 2), id / 20)
        >>> data = ImageData("grey", list(range(20)), [f"grey/{id}" for id in range(20)], None, grey)
        >>> [Shard(index, 3).select(data, batch_size=4).ids[0] for index in range(3)]
        [0, 4, 12]
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        checks.shard(self.index, self.count)

    def select(self, data: ImageData, batch_size: int) -> ImageData:
        """Returns this part of the data.

        With at least `count` full batches, the shards are made of whole batches of the undivided data, so that every
        sample is in the same batch as without shards and all results are identical bit for bit; shards then differ in
        size by at most one batch. With less data they differ by at most one sample.

        Raises:
            ValueError: If there are fewer samples than shards.
        """
        checks.number("batch_size", batch_size, low=1, integer=True)
        if len(data) < self.count:
            raise ValueError(f"data.num_shards={self.count} must be at most {len(data)}, the number of samples.")
        unit = batch_size if len(data) // batch_size >= self.count else 1
        units = -(-len(data) // unit)
        start, stop = (index * units // self.count * unit for index in (self.index, self.index + 1))
        return data.select(indices=range(start, min(stop, len(data))))


def shard_of(shard: int | None = None, num_shards: int | None = None) -> Shard | None:
    """Returns the shard that a job attacks, or None if it attacks all samples.

    Args:
        shard: The part of the data that this job attacks, from 0 to `num_shards` - 1; None: all.
        num_shards: The number of parts that the data are divided into.

    Raises:
        TypeError, ValueError: If one is given without the other, or a number is out of range.
    """
    asked = checks.shard(shard, num_shards)
    return Shard(shard, num_shards) if asked else None  # pyright: ignore[reportArgumentType]  # checked


_INDICES = 'must be a list like [3,1,7] or a slice like "10:20" or "::-1".'


def positions(count: int, limit: int | None = None, indices: Sequence[int] | str | None = None) -> list[int]:
    """Returns the first `limit` of the positions that `indices` selects in a data set of `count` samples.

    Examples:
        >>> positions(10, limit=3, indices="::-2")
        [9, 7, 5]
    """
    if limit is not None:
        checks.number("data.limit", limit, low=1, integer=True)
    if not count:
        raise ValueError("The data set is empty.")
    if not isinstance(indices, Sequence | None):
        raise TypeError(f"data.indices={indices!r} {_INDICES}")
    if isinstance(indices, str):
        chosen = _sliced(count, indices)
    else:
        chosen = list(range(count)) if indices is None else [_position(index, count) for index in indices]
    if len(set(chosen)) < len(chosen):
        twice = next(index for index in chosen if chosen.count(index) > 1)
        raise ValueError(f"data.indices contains {twice} twice; each sample can be selected only once.")
    if not chosen:
        raise ValueError(f"data.indices={indices!r} selects none of the {count} samples.")
    return chosen[:limit]


def _sliced(count: int, text: str) -> list[int]:
    parts = text.split(":")
    with suppress(ValueError):  # not numbers, or a step of 0
        if len(parts) in (2, 3):
            return list(range(count))[slice(*(int(part) if part.strip() else None for part in parts))]
    raise ValueError(f"data.indices={text!r} {_INDICES}")


def _position(index: int, count: int) -> int:
    checks.number("data.indices", index, integer=True)
    if not 0 <= index < count:
        raise ValueError(f"data.indices contains {index}, but the data set has {count} samples: 0 to {count - 1}.")
    return int(index)


def check_pixels(image: Tensor, name: str) -> None:
    """Raises a ValueError that names the sample unless the image is a float tensor (C, H, W) with values in [0, 1]."""
    if image.ndim != 3 or image.numel() == 0:
        raise ValueError(f"{name} has the shape {tuple(image.shape)}; an image must be (channels, height, width).")
    if not image.is_floating_point():
        raise ValueError(
            f"{name} has the type {image.dtype}; pixels must be floating-point numbers in [0, 1]: divide by 255."
        )
    if not ((image >= 0) & (image <= 1)).all():  # NaN fails too
        low, high = image.min().item(), image.max().item()
        raise ValueError(
            f"{name} has values from {low:.4g} to {high:.4g}; pixels must lie in [0, 1]. "
            "Normalisation belongs to the model: set model.mean and model.std."
        )


def check_labels(data: ImageData, num_classes: int | None) -> None:
    """Raises a ValueError if data and model have different numbers of classes, or a label is out of range."""
    if num_classes is None:
        return
    if data.num_classes not in (None, num_classes):
        raise ValueError(
            f"The data set {data.name} has {data.num_classes} classes and the model {num_classes}; "
            "they must agree, unless all class names of the data are among the categories of the model's weights."
        )
    if data.labels is None:
        return
    outside = (data.labels < 0) | (data.labels >= num_classes)
    if outside.any():
        first = int(outside.nonzero()[0])
        raise ValueError(
            f"{data.names[first]} has the label {int(data.labels[first])}; "
            f"labels must lie between 0 and {num_classes - 1}, the model's classes."
        )
