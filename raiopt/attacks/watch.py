"""What a search finds out about each row, and the watch that collects it while the search runs."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raiopt.attacks.question import Attack
from raiopt.attacks.rows import Rows, any_of_sample
from raiopt.attacks.start import Start

STOPPED = ("fooled", "steps", "passes", "not_finite")
"""Why the search for a row ended; `Search.stopped` holds positions in it."""
FOOLED, STEPS, PASSES, NOT_FINITE = range(4)


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
    gains: Tensor  # (n, steps + 1): the loss, negative if targeted; rows that left keep their last
    fooled_at: Tensor  # (n, steps + 1); likewise
    zero_gradients: Tensor  # the number of steps whose gradient was exactly zero
    zero_at_start: Tensor  # whether the first one was
    stopped: Tensor  # positions in STOPPED, which stand in the order in which they count for a sample of several rows
    steps: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    restart: Tensor
    goal: Tensor


class Watch:
    """Observes a search: keeps the best iterate of each row, its losses, why it ended, and how many passes it took.

    What it keeps has all rows; `index` are the numbers of those that are still in the batch, and `open` says which of
    them are not decided yet.
    """

    def __init__(self, attack: Attack, rows: Rows, start: Start) -> None:
        n, device = len(rows), rows.labels.device
        self.attack, self.start = attack, start
        self.coupled = start.coupled
        self.index = torch.arange(n, device=device)
        self.open = torch.ones(n, dtype=torch.bool, device=device)
        self.parameter = start.parameter.detach().clone()
        wide = (n, attack.steps + 1)
        count, flag = torch.zeros_like(rows.labels), torch.zeros_like(self.open)
        self.found = Search(
            prediction=rows.labels.clone(),
            loss=torch.full((n,), float("nan"), device=device),
            fooled=flag.clone(),
            claimed=flag.clone(),
            best_step=count.clone(),
            first_fooled=count - 1,
            not_finite=count - 1,
            score=torch.full((n,), float("-inf"), device=device),
            gains=torch.full(wide, float("nan"), device=device),
            fooled_at=torch.zeros(wide, dtype=torch.bool, device=device),
            zero_gradients=count.clone(),
            zero_at_start=flag.clone(),
            stopped=count + STEPS,
            steps=count.clone(),
            forward_passes=count.clone(),
            backward_passes=count.clone(),
            restart=rows.restarts,
            goal=rows.goals,
        )
        self.step = -1

    def evaluated(self, rows: Rows, kept: Tensor, logits: Tensor, losses: Tensor) -> None:
        """Takes note of the next iterate, of which `kept` is the parameter, and decides the rows that end with it."""
        self.step += 1
        found, losses = self.found, losses.float()
        finite = logits.isfinite().all(1) & losses.isfinite()
        prediction = logits.argmax(1)
        fooled = finite & (prediction == rows.goals if self.attack.targeted else prediction != rows.labels)
        gains = -losses if self.attack.targeted else losses
        found.forward_passes[self.index] += 1
        found.gains[self.index, self.step] = gains
        found.fooled_at[self.index, self.step] = fooled
        self._first(found.not_finite, ~finite)
        self._first(found.first_fooled, fooled)
        better = self._better(kept, gains, fooled)
        for store, value in (
            (found.prediction, prediction),
            (found.loss, losses),
            (found.fooled, fooled),
            (found.claimed, finite & (prediction != rows.labels)),
            (found.best_step, self.step),
        ):
            self._write(store, better, value)
        if self.attack.stop == "fooled":
            self._decide(fooled.all().expand_as(fooled) if self.coupled else self._with_siblings(rows, fooled), FOOLED)
        if not self.coupled:
            self._decide(~finite, NOT_FINITE)
        limited = rows.steps < self.attack.steps
        self._decide((rows.steps <= self.step) & limited, PASSES)
        self._decide((rows.steps <= self.step) & ~limited, STEPS)

    def _with_siblings(self, rows: Rows, fooled: Tensor) -> Tensor:
        return fooled if self.attack.rows == 1 else any_of_sample(rows, fooled & self.open)

    def _better(self, kept: Tensor, gains: Tensor, fooled: Tensor) -> Tensor:
        """Says for each row in the batch whether this iterate is better than those before, and keeps its parameter."""
        if self.attack.best_by == "norm":
            gains = torch.where(fooled, -self.start.ball.norms(kept).float(), gains)
        score = gains.nan_to_num(nan=float("-inf"))
        before, won = self.found.score[self.index], self.found.fooled[self.index]
        if self.step == 0 or not self.attack.use_best:
            better = self.open
        elif self.coupled:
            ours, theirs = (scores.nan_to_num(neginf=0.0).sum() for scores in (score, before))
            better = _higher((fooled.sum(), ours), (won.sum(), theirs)) & self.open
        else:
            better = _higher((fooled, score), (won, before)) & self.open
        self._write(self.found.score, better, score)
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
        elif len(chosen):
            self.parameter.index_copy_(0, self.index[chosen], kept.index_select(0, chosen))

    def differentiated(self, parameter: Tensor) -> None:
        """Takes note of the parameter's gradient; a row that is not finite ends, or is zeroed where none can leave."""
        gradient = parameter.grad
        assert gradient is not None  # check_perturbed saw that the images depend on it
        found, at = self.found, self.index
        total = gradient.abs().sum() if self.start.shared else gradient.reshape(len(gradient), -1).abs().sum(1)
        finite, zero = total.isfinite(), (total == 0) & self.open
        found.backward_passes[at] += 1
        found.zero_gradients[at] += zero
        if self.step == 0:
            found.zero_at_start[at] = zero
        self._first(found.not_finite, ~finite)
        if self.coupled:
            gradient.copy_(torch.where(finite.view(finite.shape + (1,) * (gradient.ndim - finite.ndim)), gradient, 0))
        else:
            self._decide(~finite, NOT_FINITE)
        found.steps[at] += self.open

    def keep(self, index: Tensor) -> None:
        """Goes on with these rows of the batch alone."""
        self.index, self.open = self.index[index], self.open[index]

    def _decide(self, ends: Tensor, why: int) -> None:
        """Closes the rows that end, and says why."""
        self._write(self.found.stopped, ends & self.open, why)
        self.open = self.open & ~ends

    def _first(self, known: Tensor, happened: Tensor) -> None:
        self._write(known, happened & self.open & (known[self.index] < 0), self.step)

    def _write(self, store: Tensor, where: Tensor, value: Any) -> None:
        store[self.index] = torch.where(where, value, store[self.index])

    def result(self) -> Search:
        """Returns what was found; in its traces, rows that ended go on with their last value."""
        width = self.found.gains.shape[1]
        until = torch.minimum(torch.arange(width, device=self.index.device), self.found.steps[:, None])
        return replace(
            self.found, gains=self.found.gains.gather(1, until), fooled_at=self.found.fooled_at.gather(1, until)
        )


def _higher(new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]) -> Tensor:
    """Says where the first of the pair is larger, or the second where the first are equal."""
    return (new[0] > old[0]) | ((new[0] == old[0]) & (new[1] > old[1]))
