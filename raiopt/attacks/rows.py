"""The rows of a batch (each one sample, restart, goal class and radius), and the selection of rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop

T = TypeVar("T")
ELEMENTWISE = (SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, ASGD, NAdam, RAdam, RMSprop, Rprop)
"""Torch optimizers that update every entry independently; other classes declare this by `elementwise = True`."""


@dataclass(frozen=True)
class Samples:
    """The attacked samples of a batch: tensors of n rows."""

    ids: Tensor
    images: Tensor
    labels: Tensor
    goals: Tensor  # the classes (n, targets) that the losses refer to: the label, or targets
    clean: Tensor  # logits of the clean images


@dataclass(frozen=True)
class Rows(Samples):
    """The rows of a batch, several per sample: tensors of n rows; `goals` (n,) has one class per row."""

    samples: Tensor  # the position of the row's sample among the attacked samples
    restarts: Tensor
    steps: Tensor  # the largest number of steps
    epsilon: Tensor | None  # replaces the optimizer's epsilon

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, index: Tensor) -> "Rows":
        """Returns the rows with these indices."""
        taken = take_rows(self, index)
        has_targets = self.goals is not self.labels  # criteria check this, too
        return taken if has_targets else replace(taken, goals=taken.labels)


def take_rows(held: T, index: Tensor) -> T:
    """Returns the dataclass with only these rows of each tensor."""
    return _rowwise(held, held, lambda mine, _: mine.index_select(0, index))


def with_rows(held: T, index: Tensor, other: T) -> T:
    """Returns the dataclass with the rows at these indices replaced by the rows of `other`, for every tensor."""
    return _rowwise(held, other, lambda mine, new: mine.index_copy(0, index, new))


def joined(parts: Sequence[T]) -> T:
    """Returns the concatenation of several dataclasses of tensors along their rows."""
    values = {f.name: [getattr(part, f.name) for part in parts] for f in fields(parts[0])}  # pyright: ignore[reportArgumentType]
    return replace(parts[0], **{name: torch.cat(tensors) for name, tensors in values.items()})  # pyright: ignore[reportArgumentType, reportReturnType]


def _rowwise(held: T, other: T, change: Callable[[Tensor, Tensor], Tensor]) -> T:
    changes: dict[str, Any] = {}
    for field in fields(held):  # pyright: ignore[reportArgumentType]
        mine, new = getattr(held, field.name), getattr(other, field.name)
        if isinstance(mine, Tensor):
            changes[field.name] = change(mine, new)
        elif is_dataclass(mine):
            changes[field.name] = _rowwise(mine, new, change)
    return replace(held, **changes)  # pyright: ignore[reportArgumentType, reportReturnType]


def inner_is_elementwise(optimizer: Optimizer) -> bool:
    """Returns whether the optimizer, or its inner one, is known to update every entry independently."""
    inner = getattr(optimizer, "inner_opt", optimizer)
    return getattr(inner, "elementwise", type(inner) in ELEMENTWISE)


def select_rows(optimizer: Optimizer, parameter: Tensor, index: Tensor) -> None:
    """Keeps only these rows of a parameter, its gradient, and all optimizer tensors with the same number of rows."""
    count, grad = len(parameter), parameter.grad
    parameter.grad = None
    parameter.data = parameter.data.index_select(0, index)
    parameter.grad = None if grad is None else grad.index_select(0, index)
    for group in (
        optimizer.param_groups
    ):  # ndim is checked because a bound that broadcasts may have as many channels as there are rows
        _select_within(group, count, index, lambda value: value.ndim == parameter.ndim)
    for held in (optimizer.state, *optimizer.state.values()):
        if isinstance(held, dict):
            _select_within(held, count, index, lambda value: value.ndim > 0)


def _select_within(held: dict[Any, Any], count: int, index: Tensor, has_rows: Callable[[Tensor], bool]) -> None:
    for name, value in held.items():
        if isinstance(value, Tensor) and has_rows(value) and len(value) == count:
            held[name] = value.index_select(0, index.to(value.device))


def any_of_sample(rows: Rows, happened: Tensor) -> Tensor:
    """Returns a mask of the rows whose sample has any row where `happened` is true."""
    marked = happened.new_zeros(int(rows.samples.max()) + 1)
    return marked.index_put((rows.samples[happened],), happened.new_ones(()))[rows.samples]
