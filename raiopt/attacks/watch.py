"""What a search finds out about each row, and the watch that collects it while the search runs."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raiopt.attacks.question import Attack
from raiopt.attacks.rows import Rows, any_of_sample, joined, take_rows
from raiopt.attacks.start import Start
from raiopt.transforms.looking import can_look

STOPPED = ("fooled", "steps", "passes", "not_finite")
"""Why the search for a row ended; `Search.stopped` holds positions in it."""
FOOLED, STEPS, PASSES, NOT_FINITE = range(4)
ROUNDING = 2**-16
"""The gap between two logits, relative to the largest logit, that rounding in float32 may explain."""


@dataclass(frozen=True)
class Search:
    """What a search found for n rows, or for n samples: tensors of n rows."""

    prediction: Tensor
    loss: Tensor
    fooled: Tensor  # whether the iterate that was kept does what the attack is after: leave the label, reach the goal
    claimed: Tensor  # whether it is not assigned to its label
    best_step: Tensor
    first_fooled: Tensor  # -1: never
    not_finite: Tensor  # the step of the first output or gradient that was not finite; -1: none
    score: Tensor  # by which the iterate was best
    gains: Tensor  # (n, steps + 1): the loss, negative towards a target; rows that left keep their last
    fooled_at: Tensor  # (n, steps + 1); likewise; of many steps, every `Attack.stride`-th
    zero_gradients: Tensor  # the number of steps whose gradient was exactly zero
    zero_at_start: Tensor  # whether the first one was
    stopped: Tensor  # positions in STOPPED, which stand in the order in which they count for a sample of several rows
    steps: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    restart: Tensor
    goal: Tensor
    spread: Tensor  # of a sample with several rows towards one class: the standard deviation of their best gains


class Watch:
    """Observes a search: keeps the best iterate of each row, its losses, why it ended, and how many passes it took.

    `found` and `parameter` concern the rows that are still in the batch, `open` says which of them are not decided yet;
    what was found for those that left stands in `left`. `losses`, which the optimizer makes small, and `fooled` are
    those of the last iterate.
    """

    losses: Tensor
    fooled: Tensor

    def __init__(self, attack: Attack, rows: Rows, start: Start) -> None:
        self.attack, self.start, self.coupled = attack, start, start.coupled
        self.index = torch.arange(len(rows), device=rows.labels.device)
        self.open = torch.ones_like(self.index, dtype=torch.bool)
        self.parameter = start.parameter.detach().clone()
        self.found = _nothing_yet(rows, attack.steps // attack.stride)
        self.until_fooled = attack.stop == "fooled" and not start.smallest
        self.by_norm = attack.by_norm(smallest=start.smallest)
        self.left: list[tuple[Tensor, Tensor, Search]] = []
        self.step = -1

    def evaluated(self, rows: Rows, kept: Tensor, logits: Tensor, losses: Tensor) -> None:
        """Takes note of the next iterate, of which `kept` is the parameter, and decides the rows that end with it."""
        self.step += 1
        found, losses = self.found, losses.float()
        finite = logits.isfinite().all(1) & losses.isfinite()
        prediction = logits.argmax(1)
        left_label = finite & (prediction != rows.labels)
        fooled = finite & (prediction == rows.goals) if self.attack.targeted else left_label
        gains = -losses if self.attack.towards else losses
        self.losses, self.fooled = -gains, fooled
        norms = self.start.ball.norms(kept) if self.by_norm or self.start.smallest else None
        if self.by_norm:  # the smallest norm lies at the decision boundary, where a batch of another size may differ
            beyond = _beyond_rounding(logits)
            fooled, left_label = fooled & beyond, left_label & beyond
        if norms is not None and self.start.smallest:  # which may look outside of the ball
            fooled, left_label = (which & self.start.counts(norms) for which in (fooled, left_label))
        found.forward_passes.add_(1)
        if self.step % self.attack.stride == 0:
            found.gains[:, self.step // self.attack.stride] = gains
            found.fooled_at[:, self.step // self.attack.stride] = fooled
        if not self.coupled:
            self._first(found.not_finite, ~finite)
            self._decide(~finite, NOT_FINITE)
        self._first(found.first_fooled, fooled)
        better = self._better(kept, gains, fooled, norms)
        for store, value in (
            (found.prediction, prediction),
            (found.loss, losses),
            (found.fooled, fooled),
            (found.claimed, left_label),
            (found.best_step, self.step),
        ):
            _write(store, better, value)
        if self.until_fooled:
            self._decide(fooled.all().expand_as(fooled) if self.coupled else self._with_siblings(rows, fooled), FOOLED)
        self._decide(rows.steps <= self.step, torch.where(rows.steps < self.attack.steps, PASSES, STEPS))

    def _with_siblings(self, rows: Rows, fooled: Tensor) -> Tensor:
        return fooled if self.attack.rows == 1 else any_of_sample(rows, fooled & self.open)

    def _better(self, kept: Tensor, gains: Tensor, fooled: Tensor, norms: Tensor | None) -> Tensor:
        """Says for each row in the batch whether this iterate is better than those before, and keeps its parameter."""
        if self.by_norm and norms is not None:
            norms = norms.float()
            gains = torch.where(fooled, -(norms.amax() if self.start.shared else norms), gains)
        score = gains.nan_to_num(nan=float("-inf"))
        before, won = self.found.score, self.found.fooled
        if self.step == 0 or not self.attack.use_best:
            better = self.open
        elif self.coupled:
            ours, theirs = (scores.nan_to_num(neginf=0.0).sum() for scores in (score, before))
            better = _higher((fooled.sum(), ours), (won.sum(), theirs)) & self.open
        else:
            better = _higher((fooled, score), (won, before)) & self.open
        _write(self.found.score, better, score)
        self._keep_parameter(kept, better)
        return better

    def _keep_parameter(self, kept: Tensor, better: Tensor) -> None:
        if self.start.shared:
            if better.any():
                self.parameter.copy_(kept)
            return
        chosen = better.nonzero().flatten()
        if len(chosen) == len(self.parameter):
            self.parameter.copy_(kept)
        else:
            self.parameter.index_copy_(0, chosen, kept.index_select(0, chosen))

    def differentiated(self, parameter: Tensor) -> None:
        """Takes note of the parameter's gradient; a row that is not finite ends, or is zeroed where none can leave."""
        gradient = parameter.grad
        assert gradient is not None  # check_perturbed saw that the images depend on it
        found, total = self.found, _magnitudes(gradient, shared=self.start.shared)
        finite, zero = total.isfinite(), (total == 0) & self.open
        found.backward_passes.add_(1)
        found.zero_gradients.add_(zero)
        if self.step == 0:
            found.zero_at_start.copy_(zero.expand_as(found.zero_at_start))
        self._first(found.not_finite, ~finite)
        if self.coupled:
            gradient.copy_(torch.where(finite.view(finite.shape + (1,) * (gradient.ndim - finite.ndim)), gradient, 0))
        else:
            self._decide(~finite, NOT_FINITE)

    def stepped(self) -> None:
        """Takes note of a step of the rows that are not decided."""
        self.found.steps.add_(self.open)

    def passed(self, *, forward: int, backward: int) -> None:
        """Takes note of further passes of all rows in the batch."""
        self.found.forward_passes.add_(forward)
        self.found.backward_passes.add_(backward)

    def keep(self, stay: Tensor) -> None:
        """Goes on with these rows of the batch alone."""
        leaves = torch.ones_like(self.open).index_fill(0, stay, False).nonzero().flatten()
        self.left.append((self.index[leaves], self.parameter[leaves], take_rows(self.found, leaves)))
        self.found, self.parameter = take_rows(self.found, stay), self.parameter[stay]
        self.index, self.open = self.index[stay], self.open[stay]
        self.losses, self.fooled = self.losses[stay], self.fooled[stay]

    def _decide(self, ends: Tensor, why: int | Tensor) -> None:
        """Closes the rows that end, and says why."""
        _write(self.found.stopped, ends & self.open, why)
        self.open = self.open & ~ends

    def _first(self, known: Tensor, happened: Tensor) -> None:
        _write(known, happened & self.open & (known < 0), self.step)

    def result(self) -> tuple[Search, Tensor]:
        """Returns what was found for all rows, and their parameter; traces of rows that ended go on as they ended."""
        found, parameter = self.found, self.parameter
        if self.left:
            parts = [*self.left, (self.index, parameter, found)]
            order = torch.cat([part[0] for part in parts]).argsort()
            parameter = torch.cat([part[1] for part in parts])[order]
            found = take_rows(joined([part[2] for part in parts]), order)
        noted = torch.arange(found.gains.shape[1], device=parameter.device)
        until = torch.minimum(noted, found.steps[:, None] // self.attack.stride)
        return replace(found, gains=found.gains.gather(1, until), fooled_at=found.fooled_at.gather(1, until)), parameter


def _nothing_yet(rows: Rows, noted: int) -> Search:
    count, shape = torch.zeros_like(rows.labels), (len(rows), noted + 1)
    flag, number = torch.zeros_like(count, dtype=torch.bool), torch.zeros_like(count, dtype=torch.float32)
    return Search(
        prediction=rows.labels.clone(),
        loss=number.fill_(float("nan")),
        fooled=flag,
        claimed=flag.clone(),
        best_step=count,
        first_fooled=count - 1,
        not_finite=count - 1,
        score=torch.full_like(number, float("-inf")),
        gains=number.new_full(shape, float("nan")),
        fooled_at=flag.new_zeros(shape),
        zero_gradients=count.clone(),
        zero_at_start=flag.clone(),
        stopped=count + STEPS,
        steps=count.clone(),
        forward_passes=count.clone(),
        backward_passes=count.clone(),
        restart=rows.restarts,
        goal=rows.goals,
        spread=torch.full_like(number, float("nan")),
    )


def _beyond_rounding(logits: Tensor) -> Tensor:
    """Says for each row whether its largest logit exceeds the second by more than rounding explains."""
    if logits.shape[1] < 2:
        return torch.ones_like(logits[:, 0], dtype=torch.bool)
    first, second = logits.float().topk(2).values.unbind(1)
    return first - second > ROUNDING * logits.float().abs().amax(1)


def _write(store: Tensor, where: Tensor, value: int | Tensor) -> None:
    """Writes the value, one for all or one a row, where it is asked for."""
    store.copy_(torch.where(where, value, store))


def _magnitudes(gradient: Tensor, *, shared: bool) -> Tensor:
    """Returns a number for each row, or one for all, that is 0 or not finite if the gradient is."""
    rows = gradient.reshape(1 if shared else len(gradient), -1)
    total = rows.sum(1)  # several times as fast as the sum of magnitudes, and as good unless it is 0 or not finite
    if not can_look(total) or not (total.isfinite() & (total != 0)).all():
        total = rows.abs().sum(1)
    return total[0] if shared else total


def _higher(new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]) -> Tensor:
    """Says where the first of the pair is larger, or the second where the first are equal."""
    return (new[0] > old[0]) | ((new[0] == old[0]) & (new[1] > old[1]))
