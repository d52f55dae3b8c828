"""What an attack reads: images in [0, 1] with stable ids, names and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from raiopt import checks


class Batch(NamedTuple):
    """Consecutive samples of an `ImageData`: images (n, C, H, W), labels (n,) or None as there."""

    ids: list[int]
    names: list[str]
    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images that are read when asked for, each the same way whatever the batch.

    Args:
        ids: each sample's index in the whole data set; no selection or order changes it.
        names: "digits/0017", or a file's path below the data set's folder.
        labels: int64 (N,); None where the model's own clean prediction is the label.
        read: the pixels (C, H, W) of the sample with this id.
        files_hash: returns a hash of the files of all samples that were chosen, before they were cut into shards; all
            of them are read for it, so it is called only for what is recorded. None: there are no such files.

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
        """(C, H, W), which all images must share."""
        return self._checked(0).shape

    def image(self, position: int) -> Tensor:
        """Returns float32 (C, H, W) in [0, 1]; what does not fit is a ValueError that names the sample."""
        image = self._checked(position)
        if image.shape != self.shape:
            raise ValueError(
                f"{self.names[position]} has the shape {tuple(image.shape)} and {self.names[0]} {tuple(self.shape)}; "
                "all images of a run must share one: give data.size=..., e.g. data.size=224."
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
        """Returns the samples at these positions, in the order given; then the first `limit` of them.

        Args:
            indices: positions in this data set, or a slice as text: "10:20", "::-1".
        """
        chosen = positions(len(self), limit, indices)
        labels = None if self.labels is None else self.labels[chosen]
        ids, names = [self.ids[i] for i in chosen], [self.names[i] for i in chosen]
        return ImageData(self.name, ids, names, labels, self.read, self.classes, self.num_classes, self.files_hash)

    def _checked(self, position: int) -> Tensor:
        image = self.read(self.ids[position])
        check_pixels(image, self.names[position])
        return image.float()


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a data set, numbered from 0, in the order of the data.

    Args:
        index: data.shard, below `count`.
        count: data.num_shards, at least 1.

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
        """Returns this part of the data; the sizes of the parts differ by one batch at most.

        If there are whole batches enough for all shards, each of its batches is one of the undivided data: so samples
        meet the same others, and the results are the same bit for bit. Else the sizes differ by one sample at most.

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


def positions(count: int, limit: int | None = None, indices: Sequence[int] | str | None = None) -> list[int]:
    """Returns the positions out of range(count) that `data.indices` and then `data.limit` leave.

    Examples:
        >>> positions(10, limit=3, indices="::-2")
        [9, 7, 5]
    """
    if limit is not None:
        checks.number("data.limit", limit, low=1, integer=True)
    if not count:
        raise ValueError("The data set is empty.")
    if not isinstance(indices, Sequence | None):
        raise TypeError(f'data.indices={indices!r} must be a list like [3,1,7] or a slice like "10:20" or "::-1".')
    if isinstance(indices, str):
        chosen = list(range(count))[_slice(indices)]
    else:
        chosen = list(range(count)) if indices is None else [_position(index, count) for index in indices]
    if len(set(chosen)) < len(chosen):
        twice = next(index for index in chosen if chosen.count(index) > 1)
        raise ValueError(f"data.indices holds {twice} twice; each sample may be chosen once.")
    if not chosen:
        raise ValueError(f"data.indices={indices!r} selects none of the {count} samples.")
    return chosen[:limit]


def _slice(text: str) -> slice:
    parts = text.split(":")
    try:
        if len(parts) not in (2, 3):
            raise ValueError
        parsed = slice(*(int(part) if part.strip() else None for part in parts))
        range(1)[parsed]  # refuses a step of 0
    except ValueError:
        raise ValueError(
            f'data.indices={text!r} must be a list like [3,1,7] or a slice like "10:20" or "::-1".'
        ) from None
    return parsed


def _position(index: int, count: int) -> int:
    checks.number("data.indices", index, integer=True)
    if not 0 <= index < count:
        raise ValueError(f"data.indices holds {index}, but the data set has {count} samples: 0 to {count - 1}.")
    return int(index)


def check_pixels(image: Tensor, name: str) -> None:
    """Raises a ValueError that names the sample, unless the image is floating (C, H, W) with all values in [0, 1]."""
    if image.ndim != 3 or image.numel() == 0:
        raise ValueError(f"{name} has the shape {tuple(image.shape)}; an image must be (channels, height, width).")
    if not image.is_floating_point():
        raise ValueError(
            f"{name} has the type {image.dtype}; pixels must be floating numbers in [0, 1]: divide by 255."
        )
    if not ((image >= 0) & (image <= 1)).all():  # NaN fails too
        low, high = image.min().item(), image.max().item()
        raise ValueError(
            f"{name} has values from {low:.4g} to {high:.4g}; pixels must lie in [0, 1]. "
            "Normalisation belongs to the model: model.mean, model.std."
        )


def check_labels(data: ImageData, num_classes: int | None) -> None:
    """Raises a ValueError if data and model have different numbers of classes, or a label is none of the model's."""
    if num_classes is None:
        return
    if data.num_classes not in (None, num_classes):
        raise ValueError(
            f"The data set {data.name} has {data.num_classes} classes and the model {num_classes}; "
            "they must agree, unless all class names of the data are categories that the model's weights publish."
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
