"""Runs one attack on some samples: the search, then the verification of its results."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raiopt.attacks.attack import Attack
from raiopt.attacks.grid import to_8bit
from raiopt.attacks.rows import Rows, Samples, take_rows, with_rows
from raiopt.attacks.search_result import SearchResult, best_rows, of_samples
from raiopt.attacks.search_state import search_rows
from raiopt.attacks.targets import nearest
from raiopt.attacks.verify import Ball, Claim, Verification, verify

log = logging.getLogger("raiopt")
Model = Callable[[Tensor], Tensor]
FINAL_RANK = 4
"""The rank of a result that no further stage can improve; see `Prober.rank`."""


@dataclass(frozen=True)
class StageHistory:
    """The history of one stage on n samples: tensors of n rows.

    Args:
        attacked: Whether the stage attacked the sample, at any radius.
        succeeded: Whether the stage succeeded, at any radius.
        forward_passes, backward_passes: Summed over all radii.
        steps, gains, fooled_at: The fields of `SearchResult` for its last search.
    """

    attacked: Tensor
    succeeded: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    steps: Tensor
    gains: Tensor
    fooled_at: Tensor

    @classmethod
    def empty(cls, count: int, like: Tensor) -> "StageHistory":
        """Returns the history before the stage attacked any of `count` samples, with traces as long as `like`."""
        numbers = torch.zeros(count, dtype=torch.int64, device=like.device)
        gains = like.new_full((count, like.shape[1]), float("nan"))
        flags = numbers.bool()
        return cls(flags, flags, numbers, numbers, numbers, gains, torch.zeros_like(gains, dtype=torch.bool))


@dataclass(frozen=True)
class ProbeResult:
    """The result of an attack on n samples: tensors with one row per sample unless stated otherwise.

    Args:
        delta: The perturbed minus the clean images, in the shape of the images.
        parameter: The perturbation's parameter if it differs from `delta`: n rows, or one shared by all samples.
        places: The positions of patches, (n, 2).
        epsilon: The radius of each sample if the attack has several radii.
        ball: The ball that must contain the parameter.
        shared: Whether all samples share the parameter.
        coupled: Whether samples depend on each other, so that one iterate was kept for all.
        fixed_batch: Whether all samples had to stay in the batch until the end.
        stride: `search` records the losses of every `stride`-th step.
        broken_at: (n, radii): the radii at which a search succeeded, if there are several.
        stage: The number of the stage that succeeded, else of the last gradient-based one, if any; None without stages.
        history: The history of each stage; None for a stage that attacked no sample.
    """

    search: SearchResult
    verification: Verification
    delta: Tensor
    parameter: Tensor | None
    places: Tensor | None
    epsilon: Tensor | None
    ball: Ball
    shared: bool
    coupled: bool
    fixed_batch: bool
    stride: Tensor
    broken_at: Tensor | None = None
    stage: Tensor | None = None
    history: Sequence[StageHistory | None] = ()

    @property
    def bounded(self) -> Tensor:
        """The tensor that the ball constrains: the perturbation's parameter."""
        return self.delta if self.parameter is None else self.parameter


@dataclass(frozen=True)
class Prober:
    """Attacks samples with the fast model, then repeats with the plain model where only the fast one was fooled.

    Args:
        p: The order of the ball's norm.
        passes_per_step: Forward and backward passes per row and step.
    """

    fast: Model
    plain: Model
    attack: Attack
    samples: Samples
    on_step: Callable[[], None]
    p: float | None = None
    passes_per_step: int = 2

    @property
    def has_goal(self) -> Tensor:
        """Mask (n,) of the samples that have a target other than their label; all true if there are no targets."""
        goals, labels = self.samples.goals, self.samples.labels
        return (goals != labels[:, None]).any(1) if self.attack.towards else torch.ones_like(labels, dtype=torch.bool)

    def rank(self, result: ProbeResult) -> Tensor:
        """Returns a rank (n,) of how informative the result is for each sample.

        1: a gradient-free search failed, 2: a gradient-based search failed, 3: the sample was broken but missed its
        target, 4: the attack reached its goal.
        """
        rank = torch.full_like(result.search.goal, 1 if self.passes_per_step == 1 else 2)  # 1 pass: without gradients
        broken, reached = result.verification.broken, result.verification.prediction == result.search.goal
        final = broken & (reached | (not self.attack.targeted))
        return rank.masked_fill(broken, 3).masked_fill(final, FINAL_RANK)

    def take(self, index: Tensor) -> "Prober":
        """Returns a prober for only these samples."""
        return replace(self, samples=take_rows(self.samples, index))

    def can_go_on(self, spent: Tensor) -> Tensor:
        """Returns a mask of the n samples that may still be attacked after `spent` passes each."""
        return self.affords(spent) & self.has_goal

    def affords(self, spent: Tensor) -> Tensor:
        """Returns a mask of the samples whose limit on passes, after `spent`, allows aiming and one more step."""
        before = self.attack.passes_to_aim(self.samples.clean.shape[1])
        return self.attack.can_go_on(spent + before, self.passes_per_step)

    def __call__(self, chosen: Tensor, epsilon: Tensor | None, spent: Tensor) -> ProbeResult:
        """Attacks the chosen samples, each with its own radius (None: the optimizer's).

        Args:
            spent: The passes already spent on each of them.
        """
        if "malt" not in self.attack.rules:
            return self._attacked(chosen, epsilon, spent)
        count, goals = self.attack.num_targets, self.samples.goals.clone()
        first = self.attack.rules.index("malt") * count
        images, labels = self.samples.images[chosen], self.samples.labels[chosen]
        goals[chosen, first : first + count], backward = nearest(self.fast, images, labels, count, self.p)
        prober = replace(self, samples=replace(self.samples, goals=goals))
        result = prober._attacked(chosen, epsilon, spent + 1 + backward)
        return _with_passes(result, torch.ones_like(spent), torch.full_like(spent, backward))

    def _attacked(self, chosen: Tensor, epsilon: Tensor | None, spent: Tensor) -> ProbeResult:
        result = self._search(self.fast, chosen, epsilon, self.attack.steps_after(spent, self.passes_per_step))
        found, verification = result.search, result.verification
        spent = spent + found.forward_passes + found.backward_passes
        missed = found.claimed & ~verification.broken & self.attack.can_go_on(spent, self.passes_per_step)
        missed = missed.nonzero().flatten()
        if self.fast is self.plain or result.coupled or not len(missed):
            return result
        log.info("%d samples fooled only the faster model: they are attacked again with the original.", len(missed))
        steps = self.attack.steps_after(spent[missed], self.passes_per_step)
        again = self._search(self.plain, chosen[missed], None if epsilon is None else epsilon[missed], steps)
        again = replace(again, search=replace(again.search, claimed=found.claimed[missed]))
        again = _with_passes(again, found.forward_passes[missed], found.backward_passes[missed])
        return with_rows(result, missed, again)

    def _search(self, model: Model, chosen: Tensor, epsilon: Tensor | None, steps: Tensor) -> ProbeResult:
        rows = rows_of(self.samples, self.attack, chosen, epsilon, steps)
        found, parameter, start = search_rows(model, self.attack, rows, self.on_step)
        best = best_rows(found, rows)
        images, labels = self.samples.images[chosen], self.samples.labels[chosen]
        claim = start.claim(parameter, best)
        verification = verify(self.plain, images, labels, claim)
        if self.attack.verify_8bit and claim.parameter_is_delta:
            verification = replace(
                verification, broken_8bit=self._broken_8bit(claim, images, labels, verification.broken)
            )
        return ProbeResult(
            search=of_samples(found, rows, best),
            verification=verification,
            delta=claim.delta(images),
            parameter=None if claim.parameter_is_delta else claim.parameter,
            places=claim.places,
            epsilon=epsilon,
            ball=start.ball if epsilon is None else replace(start.ball, epsilon=None),
            shared=start.shared,
            coupled=start.coupled,
            fixed_batch=not start.independent,
            stride=torch.full_like(chosen, self.attack.stride),
        )

    def _broken_8bit(self, claim: Claim, images: Tensor, labels: Tensor, broken: Tensor) -> Tensor:
        """Returns a mask of the samples that are still broken after rounding to 8 bits inside the ball."""
        flags, index = torch.zeros_like(broken), broken.nonzero().flatten()
        if len(index):
            part = claim.take(index)
            rounded = replace(part, parameter=to_8bit(images[index], part.parameter, part.ball))
            flags[index] = verify(self.plain, images[index], labels[index], rounded).broken
        return flags


def _with_passes(result: ProbeResult, forward: Tensor, backward: Tensor) -> ProbeResult:
    """Returns the result with these numbers of passes added for each sample."""
    found = result.search
    forward, backward = found.forward_passes + forward, found.backward_passes + backward
    return replace(result, search=replace(found, forward_passes=forward, backward_passes=backward))


def rows_of(samples: Samples, attack: Attack, chosen: Tensor, epsilon: Tensor | None, steps: Tensor) -> Rows:
    """Returns the rows of the chosen samples, one for each restart and target; rows of one sample are adjacent."""
    position = torch.arange(len(chosen), device=chosen.device).repeat_interleave(attack.rows)
    number, targets = torch.arange(attack.rows, device=chosen.device).repeat(len(chosen)), samples.goals.shape[1]
    taken = take_rows(samples, chosen[position])
    goals = taken.goals.gather(1, (number % targets)[:, None])[:, 0] if attack.towards else taken.labels
    rows = Rows(
        **{**vars(taken), "goals": goals},
        samples=position,
        restarts=number // targets,
        steps=steps[position],
        epsilon=None if epsilon is None else epsilon[position],
    )
    is_other = goals != rows.labels  # the label itself is never a target
    return rows.take(is_other.nonzero().flatten()) if attack.towards and not is_other.all() else rows
