"""What one job of a process leaves to the next: its model, made ready for a search, and its data, read and hashed."""

import hashlib
import json
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

from raiopt.attacks import Inference, ModelView
from raiopt.zoo import Batch, Classifier, ImageData

log = logging.getLogger("raiopt")
T = TypeVar("T")
KEPT = 4


class Memory:
    """Keeps the models and data that jobs asked for last, four of each, for the next job of the same process.

    They are known by being the same objects, which the loaders of `raiopt.zoo` return for equal arguments; a model
    whose weights were written to since is another. A job computes and records what it would in a process of its own,
    but for `channels_last: null`, which stays as it was decided first, and kernels of torch.compile, which by then were
    made for more sizes of a batch. Images are not read again when their files change.

    Args:
        room: How many bytes of images may be kept.

    >>> from raiopt.zoo import digits, load_model
    >>> memory = Memory()
    >>> memory.weights_hash(load_model("digits_robust"))[:8], memory.data(digits(limit=2)).hash(batch_size=1)[:8]
    ('2b434e34', 'd085fb68')
    """

    def __init__(self, room: int = 512 * 2**20) -> None:
        self.room = room
        self._hashes: dict[Hashable, str] = {}
        self._classes: dict[Hashable, int] = {}
        self._views: dict[Hashable, tuple[ModelView, list[logging.LogRecord]]] = {}
        self._data: dict[Hashable, ReadData] = {}

    def weights_hash(self, model: Classifier) -> str:
        """Returns `model.weights_hash()`."""
        return _recalled(self._hashes, _state(model), model.weights_hash)

    def classes(self, model: Classifier, data: ImageData) -> int:
        """Returns how many classes the model tells apart.

        Raises:
            ValueError: If its output is not (N, classes).
        """
        return _recalled(self._classes, (*_state(model), data.shape), lambda: _classes(model, data.image(0)))

    def view(
        self, model: Classifier, options: Inference, images: Tensor, first: str, known: Mapping[str, Any] | None
    ) -> ModelView:
        """Returns a view of the model that is prepared on these images; what was logged about it is logged again.

        Args:
            first: A hash of the images.
            known: As in `ModelView.prepare`.
        """
        key = (*_state(model), options, images.shape, first, json.dumps(known))
        new = key not in self._views
        view, told = _recalled(self._views, key, lambda: _prepared(model, options, images, known))
        for record in [] if new else told:
            log.log(record.levelno, "%s", record.getMessage())
        return view

    def data(self, data: ImageData) -> "ReadData":
        """Returns the data as they are kept."""
        labels = None if data.labels is None else tuple(data.labels.tolist())
        key = (id(data.read), tuple(data.ids), tuple(data.names), labels)  # `select` makes new objects that read alike
        return _recalled(self._data, key, lambda: ReadData(data, self._has_room))

    def _has_room(self, size: int) -> bool:
        """Says whether so many bytes may be kept, after data of earlier jobs gave way."""
        while (full := sum(kept.size for kept in self._data.values()) + size > self.room) and len(self._data) > 1:
            del self._data[next(iter(self._data))]
        return not full


class ReadData:
    """Data of which each image is read once as long as there is room, and the hash of all of them up to each one.

    Args:
        has_room: Whether so many bytes more may be kept.
    """

    def __init__(self, data: ImageData, has_room: Callable[[int], bool]) -> None:
        self.size = 0
        self._original, self._has_room = data, has_room
        self._data = replace(data, read=self._read)
        self._images: dict[int, Tensor] = {}
        self._digests: list[Any] = []  # up to each of the first samples, of those that are kept

    def __len__(self) -> int:
        return len(self._original)

    def _read(self, number: int) -> Tensor:
        if number in self._images:
            return self._images[number]
        image = self._original.read(number)
        if self._has_room(image.nbytes):
            self._images[number] = image.clone()  # the data may write into theirs
            self.size += image.nbytes
        return image

    def batches(self, size: int) -> Iterator[tuple[Batch, str]]:
        """Yields all samples in order, `size` at a time, each batch with the hash of the data up to its end."""
        digest, done = hashlib.sha256(), 0
        for batch in self._data.batches(size):
            for position, number in enumerate(batch.ids):
                if done < len(self._digests):
                    digest = self._digests[done]
                else:
                    digest = _fed(digest, batch, position)
                    if number in self._images and len(self._digests) == done:
                        self._digests.append(digest)
                done += 1
            yield batch, digest.hexdigest()

    def hash(self, batch_size: int) -> str:
        """Returns the hash of all names, labels and pixels, which takes so many images at a time."""
        if len(self._digests) == len(self._original):
            return self._digests[-1].hexdigest()
        *_, (_, found) = self.batches(batch_size)
        return found


def _fed(digest: Any, batch: Batch, position: int) -> Any:
    """Returns the digest with one sample more, so that no hash depends on the batch size."""
    digest, label = digest.copy(), "" if batch.labels is None else int(batch.labels[position])
    digest.update(f"{batch.names[position]} {label}\n".encode())
    digest.update(batch.images[position].contiguous().numpy().tobytes())
    return digest


def _recalled(kept: dict[Hashable, T], key: Hashable, make: Callable[[], T]) -> T:
    """Returns what is kept under a key, or is made now; what was asked for longest ago leaves."""
    value = kept.pop(key) if key in kept else make()
    kept[key] = value
    for oldest in list(kept)[:-KEPT]:
        del kept[oldest]
    return value


def _state(model: Classifier) -> tuple[Hashable, ...]:
    """Returns the model, and what changes if something is written to its weights or they are moved."""
    tensors = chain(model.parameters(), model.buffers())
    return model, model.mean.device, tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


@torch.no_grad()
def _classes(model: Classifier, image: Tensor) -> int:
    logits = model(image[None].to(model.mean.device))
    if logits.ndim != 2 or len(logits) != 1:
        raise ValueError(f"The model {model.name} must return logits (N, classes), not shape {tuple(logits.shape)}.")
    return logits.shape[1]


def _prepared(
    model: Classifier, options: Inference, images: Tensor, known: Mapping[str, Any] | None
) -> tuple[ModelView, list[logging.LogRecord]]:
    heard: list[logging.LogRecord] = []

    def listen(record: logging.LogRecord) -> bool:
        heard.append(record)
        return True

    view = ModelView(model, options)
    log.addFilter(listen)  # a handler would keep Python from printing warnings where nobody set logging up
    try:
        view.prepare(images, known)
    finally:
        log.removeFilter(listen)
    return view, heard
