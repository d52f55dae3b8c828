"""Several attacks in sequence, each on the samples that are still robust."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raiopt.attacks.attack import Attack
from raiopt.attacks.prober import FINAL_RANK, Prober, ProbeResult, StageHistory
from raiopt.attacks.rows import take_rows, with_rows
from raiopt.attacks.start import Start

COMMON_SETTINGS = ("epsilons", "max_passes", "attack_misclassified", "quantize", "verify_8bit", "seed")
"""The settings that must be the same in all stages."""


@dataclass(frozen=True)
class Stage:
    """One of several attacks.

    Args:
        name: The name of the stage in tables and records.
        words: The command-line options given for the stage, kept for the record.
    """

    name: str
    attack: Attack
    words: Sequence[str] = ()


def check_together(stages: Sequence[Stage], starts: Sequence[Start]) -> None:
    """Raises unless samples are independent and all stages have one ball and the same common settings.

    Args:
        starts: The start of each stage, from `try_parts`.
    """
    first, ball = stages[0], starts[0].ball
    for stage, start in zip(stages, starts, strict=True):
        if start.coupled:
            raise ValueError(
                f"stages.{stage.name} needs samples that are independent, but they share the perturbation or its ball: "
                "give each sample its own (additive, param_ndim=-1), or leave the stages out."
            )
        if not start.ball.is_same(ball):
            raise ValueError(
                f"stages.{stage.name} searches in {start.ball}, but stages.{first.name} in {ball}: all stages must "
                "have the same ball."
            )
        for name in COMMON_SETTINGS:
            if getattr(stage.attack, name) != getattr(first.attack, name):
                raise ValueError(f"stages.{stage.name} has another {name} than stages.{first.name}: give all the same.")


class Stages:
    """Attacks samples with several probers in sequence; `history` holds the history of each on the n samples."""

    def __init__(self, probers: Sequence[Prober]) -> None:
        self.probers = probers
        self.history: list[StageHistory | None] = [None] * len(probers)
        self.columns = max(1 + prober.attack.steps // prober.attack.stride for prober in probers)

    def can_go_on(self, spent: Tensor) -> Tensor:
        """Returns a mask of the n samples that at least one stage may attack after `spent` passes each."""
        return torch.stack([prober.can_go_on(spent) for prober in self.probers]).any(0)

    def __call__(self, chosen: Tensor, epsilon: Tensor | None, spent: Tensor) -> ProbeResult:
        """Attacks the chosen samples; the result of each comes from the stage that succeeded.

        For a robust sample it comes from the last gradient-based stage, whose trace shows gradient masking.
        """
        record, passes = None, torch.zeros(2, len(chosen), dtype=torch.int64, device=chosen.device)
        ranks = torch.zeros_like(chosen)
        for number, prober in enumerate(self.probers):
            spent_now = spent + passes.sum(0)
            may = prober.affords(spent_now) & prober.has_goal[chosen]
            at = ((ranks < FINAL_RANK) & may).nonzero().flatten()
            if not len(at):
                continue
            result = prober(chosen[at], None if epsilon is None else epsilon[at], spent_now[at])
            self._add_to_history(number, chosen[at], result)
            passes[:, at] += torch.stack([result.search.forward_passes, result.search.backward_passes])
            rank = prober.rank(result)
            kept = (rank >= ranks[at]).nonzero().flatten()
            ranks[at] = rank.maximum(ranks[at])
            result = replace(_with_columns(result, self.columns), stage=torch.full_like(at, number))
            record = _spread(result, at, len(chosen)) if record is None else record
            record = with_rows(record, at[kept], take_rows(result, kept))
        assert record is not None  # `can_go_on` is true for each, so at least one stage attacks it
        return replace(record, search=replace(record.search, forward_passes=passes[0], backward_passes=passes[1]))

    def _add_to_history(self, number: int, index: Tensor, result: ProbeResult) -> None:
        found = result.search
        past = self.history[number] or StageHistory.empty(len(self.probers[0].samples.ids), found.gains)
        latest = {name: getattr(found, name) for name in ("steps", "gains", "fooled_at")}
        sums = {name: getattr(found, name) for name in ("forward_passes", "backward_passes")}
        self.history[number] = replace(
            past,
            attacked=past.attacked.index_fill(0, index, True),
            succeeded=past.succeeded.index_copy(0, index, past.succeeded[index] | result.verification.broken),
            **{name: getattr(past, name).index_copy(0, index, value) for name, value in latest.items()},
            **{name: getattr(past, name).index_add(0, index, value) for name, value in sums.items()},
        )


def _spread(result: ProbeResult, index: Tensor, count: int) -> ProbeResult:
    """Returns a result of `count` samples with the rows of this one at `index`; other rows are overwritten later."""
    places = torch.zeros(count, dtype=torch.int64, device=index.device)
    return take_rows(result, places.index_copy(0, index, torch.arange(len(index), device=index.device)))


def _with_columns(result: ProbeResult, columns: int) -> ProbeResult:
    """Returns a result whose traces have this many columns, the last one repeated."""
    found = result.search
    index = torch.arange(columns, device=found.gains.device).clamp(max=found.gains.shape[1] - 1)
    gains, fooled_at = (trace.index_select(1, index) for trace in (found.gains, found.fooled_at))
    return replace(result, search=replace(found, gains=gains, fooled_at=fooled_at))
