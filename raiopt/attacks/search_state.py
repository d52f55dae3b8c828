"""A search over the rows of a batch; each row is one sample, one restart and one goal class."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raiopt.attacks.attack import Attack
from raiopt.attacks.best import Best
from raiopt.attacks.rows import Rows, any_of_sample, joined, take_rows
from raiopt.attacks.search import Problem, search
from raiopt.attacks.search_result import FOOLED, NOT_FINITE, PASSES, STEPS, SearchResult, Trace
from raiopt.attacks.start import Start, prepare
from raiopt.transforms.looking import can_read_cheaply

MIN_LEAVING_SHARE = 1 / 16
"""Decided rows leave when they are at least this share of the batch: each new batch size costs the setup of kernels.

With a limit on the passes they leave at once, because each row in the batch passes the model."""
ROUNDING = 2**-16
"""The relative gap between two logits that float32 rounding may explain."""


def search_rows(
    model: Callable[[Tensor], Tensor], attack: Attack, rows: Rows, on_step: Callable[[], None]
) -> tuple[SearchResult, Tensor, Start]:
    """Returns the result for each row, the parameter that was kept, and the start of the search."""
    start = prepare(attack, rows)
    if not start.independent:  # no row can stop before the others
        rows = replace(rows, steps=rows.steps.min().expand_as(rows.steps))
    state = SearchState(model, attack, rows, start, on_step)
    search(state, int(rows.steps.max()))
    return *state.result(), start


class SearchState(Problem):
    """The rows in the batch, the best iterate of each, its trace, and which of them are still undecided.

    Rows that left the batch are stored in `left`, with their indices and results.
    """

    losses: Tensor  # of the last iterate, in the sign that the optimizer minimizes
    fooled: Tensor

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        attack: Attack,
        rows: Rows,
        start: Start,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.attack, self.rows, self.start, self.on_step = model, attack, rows, start, on_step
        self.optimizer, self.schedule, self.needs_gradient = (
            start.optimizer,
            start.schedule,
            not start.traits.gradient_free,
        )
        self.step, self.best, self.all_decided = -1, Best(), False
        self.trace = Trace.empty(rows, 1 + attack.steps // attack.stride)
        self.index = torch.arange(len(rows), device=rows.labels.device)
        self.undecided = torch.ones_like(self.index, dtype=torch.bool)
        self.left: list[tuple[Tensor, Tensor, SearchResult]] = []
        self.stops_when_fooled = attack.stop == "fooled" and not start.traits.smallest_norm
        self.by_norm = attack.by_norm(smallest=start.traits.smallest_norm)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the parameter to keep (quantized if requested), the logits and the losses."""
        perturbed, kept = self.start.perturbed(self.rows.images)
        logits = self.model(perturbed)
        return (
            kept,
            logits,
            self.attack.criterion(logits, self.rows.goals, labels=self.rows.labels, clean=self.rows.clean),
        )

    def objective(self, losses: Tensor) -> Tensor:
        """Returns the sum of the losses, negated if they are maximized."""
        return losses.sum() if self.attack.towards else -losses.sum()

    def record(self, kept: Tensor, output: Tensor, losses: Tensor) -> None:
        """Records an iterate, whose parameter is `kept`, and marks the rows whose search ends with it."""
        self.step += 1
        trace, rows, losses = self.trace, self.rows, losses.float()
        finite = output.isfinite().all(1) & losses.isfinite()
        prediction = output.argmax(1)
        claimed = finite & (prediction != rows.labels)
        fooled = finite & (prediction == rows.goals) if self.attack.targeted else claimed
        gains = -losses if self.attack.towards else losses
        self.losses, self.fooled = -gains, fooled
        score = gains
        if self.by_norm or self.start.traits.smallest_norm:
            norms = self.start.ball.norms(kept)
            if self.start.traits.smallest_norm:  # its iterates may lie outside the ball
                fooled, claimed = (flags & self.start.counts(norms) for flags in (fooled, claimed))
            if self.by_norm:
                # Such iterates lie at the decision boundary, where rounding can flip them at another batch size.
                certain = _beyond_rounding(output)
                fooled, claimed = fooled & certain, claimed & certain
                norms = norms.float()
                score = torch.where(fooled, -(norms.amax() if self.start.shared else norms), gains)
        trace.forward_passes.add_(1)
        if self.step % self.attack.stride == 0:
            trace.gains[:, self.step // self.attack.stride] = gains
            trace.fooled_at[:, self.step // self.attack.stride] = fooled
        if not self.start.coupled:
            self._first_time(trace.not_finite, ~finite)
            self._decide(~finite, NOT_FINITE)
            if self.step == 0:  # later such iterates are never kept
                prediction = torch.where(finite, prediction, rows.labels)
                losses = losses.masked_fill(~finite, torch.nan)
        self._first_time(trace.first_fooled, fooled)
        self._keep_best(
            parameter=kept,
            prediction=prediction,
            loss=losses,
            fooled=fooled,
            claimed=claimed,
            best_step=torch.full_like(prediction, self.step),
            score=score.nan_to_num(nan=float("-inf")),
        )
        if self.stops_when_fooled:
            self._decide(fooled.all().expand_as(fooled) if self.start.coupled else self._with_siblings(fooled), FOOLED)
        self._decide(rows.steps <= self.step, torch.where(rows.steps < self.attack.steps, PASSES, STEPS))
        self.all_decided = not bool(self.undecided.any())
        self.on_step()

    def _with_siblings(self, fooled: Tensor) -> Tensor:
        return fooled if self.attack.rows == 1 else any_of_sample(self.rows, fooled & self.undecided)

    def _keep_best(self, *, fooled: Tensor, score: Tensor, **values: Tensor) -> None:
        """Keeps the values of the rows for which this iterate is the best so far; coupled rows change together."""
        if self.attack.use_best and not self.start.coupled:
            self.best.update([fooled, score], self.undecided, **values)
            return
        scores, among = [fooled.long()], self.undecided
        if self.start.coupled:
            scores, among = [fooled.sum(), score.nan_to_num(neginf=0.0).sum()], None
        if not self.attack.use_best:
            scores = [torch.full_like(scores[0], self.step)]
        self.best.update(scores, among, fooled=fooled, score=score, **values)

    def is_decided(self) -> bool:
        """Whether all rows are decided."""
        return self.all_decided

    def check_gradient(self) -> None:
        """Decides rows whose gradient is not finite; where no row can leave, such gradients are set to zero."""
        gradient = self.start.parameter.grad
        assert gradient is not None  # check_perturbed made sure that the images depend on the parameter
        trace, total = self.trace, _magnitudes(gradient, shared=self.start.shared)
        finite, zero = total.isfinite(), (total == 0) & self.undecided
        trace.backward_passes.add_(1)
        trace.zero_gradients.add_(zero)
        if self.step == 0:
            trace.zero_at_start.copy_(zero.expand_as(trace.zero_at_start))
        self._first_time(trace.not_finite, ~finite)
        if self.start.coupled:
            gradient.copy_(torch.where(finite.view(finite.shape + (1,) * (gradient.ndim - finite.ndim)), gradient, 0))
        else:
            self._decide(~finite, NOT_FINITE)

    def before_step(self) -> None:
        """Counts a step for the undecided rows, and removes decided rows from the batch once there are enough."""
        self.trace.steps.add_(self.undecided)
        stay = self.undecided.nonzero().flatten()
        self.all_decided = not len(stay)
        least = MIN_LEAVING_SHARE if self.attack.max_passes is None else 0.0
        if self.start.independent and 0 < len(stay) <= (1 - least) * len(self.rows):
            self.keep(stay)

    def keep(self, stay: Tensor) -> None:
        """Continues with only these rows of the batch."""
        leave = torch.ones_like(self.undecided).index_fill(0, stay, False).nonzero().flatten()
        self.left.append((self.index[leave], *self._taken(leave)))
        self.best.take(stay)
        self.rows, self.trace = self.rows.take(stay), take_rows(self.trace, stay)
        self.index, self.undecided = self.index[stay], self.undecided[stay]
        self.losses, self.fooled = self.losses[stay], self.fooled[stay]
        self.start.keep(stay)

    def published(self) -> dict[str, Any]:
        """Returns the values that the optimizer may read during its next step."""
        return {"losses": self.losses, "fooled": self.fooled, "generators": self.start.generators}

    def gradient(self) -> Tensor:
        """Returns the gradient of the objective at the parameter's current value, and counts the passes."""
        self.trace.forward_passes.add_(1)
        self.trace.backward_passes.add_(1)
        return super().gradient()

    def _decide(self, ends: Tensor, reason: int | Tensor) -> None:
        """Marks these rows as decided and stores the reason."""
        _write(self.trace.stopped, ends & self.undecided, reason)
        self.undecided = self.undecided & ~ends

    def _first_time(self, known: Tensor, happened: Tensor) -> None:
        _write(known, happened & self.undecided & (known < 0), self.step)

    def _taken(self, index: Tensor | None) -> tuple[Tensor, SearchResult]:
        """Returns the kept parameter and the result of these rows of the batch; None: of all."""
        kept = {**dict(zip(("fooled", "score"), self.best.scores, strict=False)), **self.best.values}
        values = {name: value if index is None else value[index] for name, value in kept.items()}
        trace = self.trace if index is None else take_rows(self.trace, index)
        return values.pop("parameter"), SearchResult(**vars(trace), **values)

    def result(self) -> tuple[SearchResult, Tensor]:
        """Returns the result and the parameter of all rows; traces of stopped rows repeat their last value."""
        parameter, found = self._taken(None)
        if self.left:
            numbers, parameters, results = zip(*self.left, (self.index, parameter, found), strict=True)
            order = torch.cat(numbers).argsort()
            parameter, found = torch.cat(parameters)[order], take_rows(joined(results), order)
        columns = torch.arange(found.gains.shape[1], device=parameter.device)
        until = torch.minimum(columns, found.steps[:, None] // self.attack.stride)
        return replace(found, gains=found.gains.gather(1, until), fooled_at=found.fooled_at.gather(1, until)), parameter


def _beyond_rounding(logits: Tensor) -> Tensor:
    """Returns for each row whether its two largest logits differ by more than the rounding error."""
    if logits.shape[1] < 2:
        return torch.ones_like(logits[:, 0], dtype=torch.bool)
    first, second = logits.float().topk(2).values.unbind(1)
    return first - second > ROUNDING * logits.float().abs().amax(1)


def _write(store: Tensor, where: Tensor, value: int | Tensor) -> None:
    """Writes the value, a scalar or one per row, where the mask is true."""
    store.copy_(torch.where(where, value, store))


def _magnitudes(gradient: Tensor, *, shared: bool) -> Tensor:
    """Returns a number for each row, or one for all, that is 0 or not finite if the gradient is."""
    rows = gradient.reshape(1 if shared else len(gradient), -1)
    total = rows.sum(1)  # several times as fast as the sum of magnitudes, and sufficient unless it is 0 or not finite
    if not can_read_cheaply(total) or not (total.isfinite() & (total != 0)).all():
        total = rows.abs().sum(1)
    return total[0] if shared else total
