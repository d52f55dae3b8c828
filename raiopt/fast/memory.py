"""A cache shared by the jobs of a process: models prepared for a search, and data already read and hashed."""

import hashlib
import json
import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

from raiopt.fast import Inference, ModelView
from raiopt.zoo import Batch, Classifier, ImageData

log = logging.getLogger("raiopt")
T = TypeVar("T")
MAX_KEPT_ENTRIES = 4


class Memory:
    """Keeps the four most recently used models and data sets for the next jobs of the same process.

    Keys are the objects themselves, which the loaders of `raiopt.zoo` return again for equal arguments; a model with
    modified weights counts as a new model. A job computes and records the same results as in its own process, except
    that `channels_last: null` keeps its first decision and that torch.compile has kernels for more batch sizes. Images
    are not read again when their files change.

    Args:
        capacity_bytes: The largest total size of cached images.

    >>> from raiopt.zoo import digits, load_model
    >>> memory = Memory()
    >>> memory.weights_hash(load_model("digits_robust"))[:8], memory.data(digits(limit=2)).hash(batch_size=1)[:8]
    ('2b434e34', 'd085fb68')
    """

    def __init__(self, capacity_bytes: int = 512 * 2**20) -> None:
        self.capacity_bytes = capacity_bytes
        self._hashes, self._classes = dict[Hashable, str](), dict[Hashable, int]()
        self._views = dict[Hashable, tuple[ModelView, list[logging.LogRecord]]]()
        self._data = dict[Hashable, ReadData]()

    def weights_hash(self, model: Classifier) -> str:
        """Returns `model.weights_hash()`."""
        return _cached(self._hashes, _state(model), model.weights_hash)

    def classes(self, model: Classifier, data: ImageData) -> int:
        """Returns the number of classes of the model.

        Raises:
            ValueError: If its output is not (N, classes).
        """
        return _cached(self._classes, (*_state(model), data.shape), lambda: _classes(model, data.image(0)))

    def view(
        self, model: Classifier, options: Inference, images: Tensor, first: str, known: Mapping[str, Any] | None
    ) -> ModelView:
        """Returns a view of the model, prepared on these images; its log messages are repeated for each job.

        Args:
            first: A hash of the images.
            known: As in `ModelView.prepare`.
        """
        key = (*_state(model), options, images.shape, first, json.dumps(known))
        new = key not in self._views
        view, records = _cached(self._views, key, lambda: _prepared(model, options, images, known))
        for record in [] if new else records:
            log.log(record.levelno, "%s", record.getMessage())
        return view

    def data(self, data: ImageData) -> "ReadData":
        """Returns the cached form of the data."""
        labels = None if data.labels is None else tuple(data.labels.tolist())
        key = (
            id(data.read),
            tuple(data.ids),
            tuple(data.names),
            labels,
        )  # `select` returns new objects with the same `read`
        return _cached(self._data, key, lambda: ReadData(data, self._reserve))

    def _reserve(self, size: int) -> bool:
        """Returns whether this many additional bytes may be kept, removing data of earlier jobs if necessary."""
        while sum(kept.size for kept in self._data.values()) + size > self.capacity_bytes:
            if len(self._data) <= 1:
                return False
            del self._data[next(iter(self._data))]
        return True


class ReadData:
    """Data with a cache of images, as capacity allows, and with the hash of the data up to each image.

    Args:
        reserve: Called with a number of bytes, returns whether that many more may be kept.
    """

    def __init__(self, data: ImageData, reserve: Callable[[int], bool]) -> None:
        self.size = 0
        self._original, self._reserve = data, reserve
        self._data = replace(data, read=self._read)
        self._images: dict[int, Tensor] = {}
        self._digests: list[Any] = []  # of the data up to each of the first samples, as far as these are kept

    def __len__(self) -> int:
        return len(self._original)

    def _read(self, number: int) -> Tensor:
        if number in self._images:
            return self._images[number]
        image = self._original.read(number)
        if self._reserve(image.nbytes):
            self._images[number] = image.clone()  # the data set may reuse its own tensor
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
                    digest = _extended(digest, batch, position)
                    if number in self._images and len(self._digests) == done:
                        self._digests.append(digest)
                done += 1
            yield batch, digest.hexdigest()

    def hash(self, batch_size: int) -> str:
        """Returns the hash of all names, labels and pixels, reading `batch_size` images at a time."""
        if len(self._digests) == len(self._original):
            return self._digests[-1].hexdigest()
        *_, (_, found) = self.batches(batch_size)
        return found


def _extended(digest: Any, batch: Batch, position: int) -> Any:
    """Returns the digest updated by one sample; working per sample makes the hash independent of the batch size."""
    digest, label = digest.copy(), "" if batch.labels is None else int(batch.labels[position])
    digest.update(f"{batch.names[position]} {label}\n".encode())
    digest.update(batch.images[position].contiguous().numpy().tobytes())
    return digest


def _cached(kept: dict[Hashable, T], key: Hashable, make: Callable[[], T]) -> T:
    """Returns the value for a key, creating it if missing; evicts the least recently used entry."""
    value = kept.pop(key) if key in kept else make()
    kept[key] = value
    for oldest in list(kept)[:-MAX_KEPT_ENTRIES]:
        del kept[oldest]
    return value


def _state(model: Classifier) -> tuple[Hashable, ...]:
    """Returns a key that changes when the model's weights are written to or moved."""
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
    records: list[logging.LogRecord] = []

    def collect(record: logging.LogRecord) -> bool:
        records.append(record)
        return True

    view = ModelView(model, options)
    log.addFilter(collect)  # a filter, because a handler would disable Python's default printing of warnings
    try:
        view.prepare(images, known)
    finally:
        log.removeFilter(collect)
    return view, records
