"""Several attacks, one after another: each on the samples that no earlier one broke."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raiopt.attacks.question import Attack
from raiopt.attacks.rows import take_rows, with_rows
from raiopt.attacks.start import Start
from raiopt.attacks.trial import FOUND, Past, Trial, Trier

SAME = ("epsilons", "curve", "max_passes", "attack_misclassified", "quantize", "verify_8bit", "seed")
"""What all stages of a question have in common."""


@dataclass(frozen=True)
class Stage:
    """One of several attacks.

    Args:
        name: In tables and records.
        words: What was typed for it; a record tells them.
    """

    name: str
    attack: Attack
    words: Sequence[str] = ()


def check_together(stages: Sequence[Stage], starts: Sequence[Start]) -> None:
    """Raises unless samples are independent, and all stages look in one ball and ask the same.

    Args:
        starts: Of each stage, as `tried` returns it.
    """
    first, ball = stages[0], starts[0].ball
    for stage, start in zip(stages, starts, strict=True):
        if start.coupled:
            raise ValueError(
                f"stages.{stage.name} needs samples that are independent, but they share the perturbation or its ball: "
                "give each sample its own (perturbation=additive, optim.param_ndim=-1), or leave the stages out."
            )
        if str(start.ball) != str(ball):
            raise ValueError(
                f"stages.{stage.name} looks in {start.ball}, and stages.{first.name} in {ball}: all stages must have "
                "one ball. Take another optim, or give optim.ball."
            )
        for name in SAME:
            if getattr(stage.attack, name) != getattr(first.attack, name):
                raise ValueError(f"stages.{stage.name} has another {name} than stages.{first.name}: give all the same.")


class Stages:
    """Tries samples as a `Trier` does, with several triers in a row; `past` says what each did to the n samples."""

    def __init__(self, triers: Sequence[Trier]) -> None:
        self.triers = triers
        self.past: list[Past | None] = [None] * len(triers)
        self.width = max(1 + trier.attack.steps // trier.attack.stride for trier in triers)

    def can_go_on(self, spent: Tensor) -> Tensor:
        """Says which of the n samples, which spent so many passes, any stage may try."""
        return torch.stack([trier.can_go_on(spent) for trier in self.triers]).any(0)

    def __call__(self, chosen: Tensor, epsilon: Tensor | None, spent: Tensor) -> Trial:
        """Tries the chosen samples; what is found of each is that of the stage that broke it.

        Of one that none broke it is that of the last stage along gradients, whose signs of trouble say something.
        """
        found, passes = None, torch.zeros(2, len(chosen), dtype=torch.int64, device=chosen.device)
        ranks = torch.zeros_like(chosen)
        for number, trier in enumerate(self.triers):
            so_far = spent + passes.sum(0)
            may = trier.affords(so_far) & trier.has_goal[chosen]
            at = ((ranks < FOUND) & may).nonzero().flatten()
            if not len(at):
                continue
            trial = trier(chosen[at], None if epsilon is None else epsilon[at], so_far[at])
            self._note(number, chosen[at], trial)
            passes[:, at] += torch.stack([trial.search.forward_passes, trial.search.backward_passes])
            rank = trier.rank(trial)
            kept = (rank >= ranks[at]).nonzero().flatten()
            ranks[at] = rank.maximum(ranks[at])
            trial = replace(_widened(trial, self.width), stage=torch.full_like(at, number))
            found = _spread(trial, at, len(chosen)) if found is None else found
            found = with_rows(found, at[kept], take_rows(trial, kept))
        assert found is not None  # `can_go_on` said of each that a stage tries it
        return replace(found, search=replace(found.search, forward_passes=passes[0], backward_passes=passes[1]))

    def _note(self, number: int, index: Tensor, trial: Trial) -> None:
        found = trial.search
        past = self.past[number] or Past.nothing(len(self.triers[0].samples.ids), found.gains)
        self.past[number] = replace(
            past,
            tried=past.tried.index_fill(0, index, True),
            broke=past.broke.index_copy(0, index, past.broke[index] | trial.verdict.broken),
            forward_passes=past.forward_passes.index_add(0, index, found.forward_passes),
            backward_passes=past.backward_passes.index_add(0, index, found.backward_passes),
            steps=past.steps.index_copy(0, index, found.steps),
            gains=past.gains.index_copy(0, index, found.gains),
            fooled_at=past.fooled_at.index_copy(0, index, found.fooled_at),
        )


def _spread(trial: Trial, index: Tensor, count: int) -> Trial:
    """Returns a trial of `count` samples that has this one's rows at these places; others come later."""
    places = torch.zeros(count, dtype=torch.int64, device=index.device)
    return take_rows(trial, places.index_copy(0, index, torch.arange(len(index), device=index.device)))


def _widened(trial: Trial, width: int) -> Trial:
    """Returns a trial whose traces have so many columns, the last one repeated."""
    found = trial.search
    columns = torch.arange(width, device=found.gains.device).clamp(max=found.gains.shape[1] - 1)
    gains, fooled_at = (trace.index_select(1, columns) for trace in (found.gains, found.fooled_at))
    return replace(trial, search=replace(found, gains=gains, fooled_at=fooled_at))
