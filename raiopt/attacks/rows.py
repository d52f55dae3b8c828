"""The rows of a batch, each a sample under one restart, towards one class, in one ball; and how rows are selected."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop, Rprop

T = TypeVar("T")
ELEMENTWISE = (SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, ASGD, NAdam, RAdam, RMSprop, Rprop)
"""Optimizers of torch that treat every entry separately; other classes declare it by `elementwise = True`."""


@dataclass(frozen=True)
class Samples:
    """The samples of a batch that are attacked: tensors of n rows."""

    ids: Tensor
    images: Tensor
    labels: Tensor
    goals: Tensor  # the classes (n, targets) that the losses refer to: the label, or targets
    clean: Tensor  # logits of the clean images


@dataclass(frozen=True)
class Rows(Samples):
    """The rows of a batch, several for each sample: tensors of n rows; `goals` has the one class (n,) of each."""

    samples: Tensor  # the position among the samples that are attacked
    restarts: Tensor
    steps: Tensor  # the largest number of steps
    epsilon: Tensor | None  # in place of the optimizer's

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, index: Tensor) -> "Rows":
        """Returns the rows with these numbers."""
        taken = take_rows(self, index)
        has_targets = self.goals is not self.labels  # criteria check this, too
        return taken if has_targets else replace(taken, goals=taken.labels)


def take_rows(held: T, index: Tensor) -> T:
    """Returns a dataclass with only these rows of each of its tensors."""
    return _rowwise(held, held, lambda mine, _: mine.index_select(0, index))


def with_rows(held: T, index: Tensor, other: T) -> T:
    """Returns a dataclass in which the rows with these numbers are those of `other`, tensor by tensor."""
    return _rowwise(held, other, lambda mine, new: mine.index_copy(0, index, new))


def joined(parts: Sequence[T]) -> T:
    """Returns a dataclass of tensors with the rows of several, one after another."""
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
    """Says whether the optimizer, or its inner one, is known to treat every entry of its parameter separately."""
    inner = getattr(optimizer, "inner_opt", optimizer)
    return getattr(inner, "elementwise", type(inner) in ELEMENTWISE)


def select_rows(optimizer: Optimizer, parameter: Tensor, index: Tensor) -> None:
    """Keeps only these rows of a parameter, its gradient, and all tensors of the optimizer with as many rows."""
    count, grad = len(parameter), parameter.grad
    parameter.grad = None
    parameter.data = parameter.data.index_select(0, index)
    parameter.grad = None if grad is None else grad.index_select(0, index)
    for group in optimizer.param_groups:  # a bound that broadcasts may have as many channels as there are rows
        _select_within(group, count, index, lambda value: value.ndim == parameter.ndim)
    for held in (optimizer.state, *optimizer.state.values()):
        if isinstance(held, dict):
            _select_within(held, count, index, lambda value: value.ndim > 0)


def _select_within(held: dict[Any, Any], count: int, index: Tensor, has_rows: Callable[[Tensor], bool]) -> None:
    for name, value in held.items():
        if isinstance(value, Tensor) and has_rows(value) and len(value) == count:
            held[name] = value.index_select(0, index.to(value.device))


def any_of_sample(rows: Rows, happened: Tensor) -> Tensor:
    """Says for each row whether it happened to any row of the same sample."""
    marked = happened.new_zeros(int(rows.samples.max()) + 1)
    return marked.index_put((rows.samples[happened],), happened.new_ones(()))[rows.samples]
