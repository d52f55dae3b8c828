"""The result of a search for each row of a batch, and for each sample (which may have several rows)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raiopt.attacks.rows import Rows, take_rows

STOPPED = ("fooled", "steps", "passes", "not_finite")
"""Reasons why the search for a row ended; `Trace.stopped` contains indices into this tuple."""
FOOLED, STEPS, PASSES, NOT_FINITE = range(4)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What is recorded during the search for n rows, or for n samples: tensors of n rows."""

    first_fooled: Tensor  # the first step whose iterate fools the model; -1: none
    not_finite: Tensor  # the step of the first output or gradient that was not finite; -1: none
    gains: Tensor  # (n, steps + 1): the loss, negated if there is a target; stopped rows repeat their last
    fooled_at: Tensor  # (n, steps + 1): whether the iterate fools; both record every `Attack.stride`-th step
    zero_gradients: Tensor  # the number of steps whose gradient was exactly zero
    zero_at_start: Tensor  # whether the gradient of the first step was exactly zero
    stopped: Tensor  # indices into STOPPED, which is sorted by precedence for a sample of several rows
    steps: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    restart: Tensor
    goal: Tensor
    spread: Tensor  # for a sample with several rows towards one class: the standard deviation of their best gains

    @classmethod
    def empty(cls, rows: Rows, columns: int) -> "Trace":
        """Returns the trace before the first iterate, with room for the losses of `columns` evaluations."""
        count, shape = torch.zeros_like(rows.labels), (len(rows), columns)
        unknown = torch.full_like(count, torch.nan, dtype=torch.float32)
        names = ("zero_gradients", "steps", "forward_passes", "backward_passes")
        return cls(
            **{name: count.clone() for name in names},
            first_fooled=count - 1,
            not_finite=count - 1,
            gains=unknown.new_full(shape, torch.nan),
            fooled_at=torch.zeros(shape, dtype=torch.bool, device=count.device),
            zero_at_start=count.bool(),
            stopped=count + STEPS,
            restart=rows.restarts,
            goal=rows.goals,
            spread=unknown,
        )


@dataclass(frozen=True, kw_only=True)
class SearchResult(Trace):
    """The trace of n rows, or of n samples, and the properties of the iterate that was kept for each."""

    prediction: Tensor
    loss: Tensor
    fooled: Tensor  # whether the iterate reaches the attack's goal: leave the label, or reach the target
    claimed: Tensor  # whether the model's prediction differs from the label
    best_step: Tensor
    score: Tensor  # the score by which the iterate was best


def best_rows(found: SearchResult, rows: Rows) -> Tensor:
    """Returns for each sample the index of its best row: rows that fool the model come first, then the score."""
    order = torch.argsort(found.score, stable=True)
    for key in (found.fooled, rows.samples):
        order = order[torch.argsort(key[order].long(), stable=True)]
    ends = rows.samples[order].diff().nonzero().flatten()
    return order[torch.cat([ends, ends.new_tensor([len(order) - 1])])]


def of_samples(found: SearchResult, rows: Rows, best: Tensor) -> SearchResult:
    """Returns the result of each sample: that of its best row, with counts summed over all of its rows."""
    position = torch.searchsorted(rows.samples[best], rows.samples)

    def over(values: Tensor, how: str) -> Tensor:
        index = position.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
        numbers = values.long() if values.dtype == torch.bool else values
        made = numbers.new_zeros(len(best), *values.shape[1:])
        return made.scatter_reduce(0, index, numbers, how, include_self=False).to(values.dtype)

    never = torch.iinfo(torch.int64).max
    first = over(torch.where(found.first_fooled < 0, never, found.first_fooled), "amin")
    lowest = over(found.not_finite, "amin")
    highest = found.gains.nan_to_num(nan=float("-inf")).amax(1)
    off = (highest - over(highest, "mean")[position]) ** 2
    variance = over(off, "sum") / (torch.bincount(position) - 1)  # NaN where a sample has one row
    one_goal = over(found.goal, "amin") == over(found.goal, "amax")
    return replace(
        take_rows(found, best),
        **{name: over(getattr(found, name), "amax") for name in ("gains", "fooled_at", "steps")},
        **{name: over(getattr(found, name), "amin") for name in ("zero_gradients", "zero_at_start", "stopped")},
        **{name: over(getattr(found, name), "sum") for name in ("forward_passes", "backward_passes")},
        first_fooled=torch.where(first == never, -1, first),
        not_finite=torch.where(lowest < 0, -1, over(found.not_finite, "amax")),
        spread=torch.where(one_goal, variance.sqrt(), torch.nan),
    )
