"""The search over one batch: the loop of every attack, and what it leaves of each sample."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from raiopt.attacks.question import Attack
from raiopt.attacks.rows import Rows, take_rows
from raiopt.attacks.start import Start, prepare
from raiopt.attacks.watch import Search, Watch
from raiopt.perturbations.solver import differentiate, evaluate

SPARE = 1 / 16
"""Rows leave when they are at least this share of the batch: a batch of a new size costs the set-up of its kernels.

With a limit on the passes they leave at once: what waits in the batch passes the model with it."""


def search(
    model: Callable[[Tensor], Tensor], attack: Attack, rows: Rows, on_step: Callable[[], None]
) -> tuple[Search, Tensor, Start]:
    """Returns what was found for each row, the parameter that was kept, and the start that it belongs to.

    A step: evaluate, take note and decide, differentiate, let decided rows leave, move.
    """
    start = prepare(attack, rows)
    if not start.independent:  # one row cannot stop before the others
        rows = replace(rows, steps=rows.steps.min().expand_as(rows.steps))
    watch = Watch(attack, rows, start)
    last = int(rows.steps.max())
    spare = SPARE if attack.max_passes is None else 0.0
    for step in range(last + 1):
        with torch.set_grad_enabled(step < last and not start.gradient_free):
            kept, logits, losses = _evaluated(model, attack, rows, start)
        watch.evaluated(rows, kept, logits.detach(), losses.detach())
        on_step()
        if step == last or not watch.open.any():
            break
        if not start.gradient_free:
            differentiate(losses.sum(), start.optimizer, targeted=attack.towards)
            watch.differentiated(start.parameter)
        watch.stepped()
        del logits, losses  # their graph holds on to the number of rows
        stay = watch.open.nonzero().flatten()
        if not len(stay):
            break
        if start.independent and len(stay) <= (1 - spare) * len(rows):
            rows = rows.take(stay)
            start.keep(stay)
            watch.keep(stay)
        start.move(watch.losses, watch.fooled, partial(_gradient, model, attack, rows, start, watch))
    start.optimizer.zero_grad(set_to_none=True)
    return *watch.result(), start


def _evaluated(
    model: Callable[[Tensor], Tensor], attack: Attack, rows: Rows, start: Start
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the parameter as it is kept, the logits and the losses."""
    perturbed, kept = start.perturbed(rows.images)
    criterion = partial(attack.criterion, labels=rows.labels, clean=rows.clean)
    return kept, *evaluate(model, perturbed, rows.goals, criterion)


def _gradient(model: Callable[[Tensor], Tensor], attack: Attack, rows: Rows, start: Start, watch: Watch) -> Tensor:
    """Returns the gradient, of what the optimizer makes small, at the parameter's value of this moment."""
    with torch.enable_grad():
        losses = _evaluated(model, attack, rows, start)[2]
        total = losses.sum() if attack.towards else -losses.sum()
        gradient = torch.autograd.grad(total, start.parameter)[0]
    watch.passed(forward=1, backward=1)
    return gradient


def best_rows(found: Search, rows: Rows) -> Tensor:
    """Returns for each sample the number of its best row: one that fools before one that does not, then by score."""
    order = torch.argsort(found.score, stable=True)
    for key in (found.fooled, rows.samples):
        order = order[torch.argsort(key[order].long(), stable=True)]
    ends = rows.samples[order].diff().nonzero().flatten()
    return order[torch.cat([ends, ends.new_tensor([len(order) - 1])])]


def of_samples(found: Search, rows: Rows, best: Tensor) -> Search:
    """Returns what was found for each sample: that of its best row, and what all of its rows come to."""
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
        first_fooled=torch.where(first == never, -1, first),
        not_finite=torch.where(lowest < 0, -1, over(found.not_finite, "amax")),
        gains=over(found.gains, "amax"),
        fooled_at=over(found.fooled_at, "amax"),
        zero_gradients=over(found.zero_gradients, "amin"),
        zero_at_start=over(found.zero_at_start, "amin"),
        stopped=over(found.stopped, "amin"),
        steps=over(found.steps, "amax"),
        forward_passes=over(found.forward_passes, "sum"),
        backward_passes=over(found.backward_passes, "sum"),
        spread=torch.where(one_goal, variance.sqrt(), torch.nan),
    )
