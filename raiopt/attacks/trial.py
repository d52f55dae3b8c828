"""One trial: a search for each of some samples, and the check of what it claims."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raiopt.attacks.grid import to_8bit
from raiopt.attacks.question import Attack
from raiopt.attacks.rows import Rows, take_rows, with_rows
from raiopt.attacks.search import best_rows, of_samples, search
from raiopt.attacks.targets import nearest
from raiopt.attacks.verify import Ball, Claim, Verdict, verify
from raiopt.attacks.watch import Search

log = logging.getLogger("raiopt")
Model = Callable[[Tensor], Tensor]
FOUND = 4
"""The rank of what a targeted search brought to its target, or any other to another class; see `Trier.rank`."""


@dataclass(frozen=True)
class Samples:
    """The n samples of a batch that are attacked: tensors of n rows; `goals` (n, targets), `clean` their logits."""

    ids: Tensor
    images: Tensor
    labels: Tensor
    goals: Tensor
    clean: Tensor


@dataclass(frozen=True)
class Past:
    """What one of several stages did to n samples: tensors of n rows.

    Args:
        tried: Whether it tried the sample, at any radius; likewise `broke`, and the passes in all.
        steps: Of its last search, as `gains` and `fooled_at`, which are like those of `Search`.
    """

    tried: Tensor
    broke: Tensor
    forward_passes: Tensor
    backward_passes: Tensor
    steps: Tensor
    gains: Tensor
    fooled_at: Tensor

    @classmethod
    def nothing(cls, count: int, like: Tensor) -> "Past":
        """Returns that of a stage that has tried none of `count` samples; its traces are as long as `like`."""
        numbers = torch.zeros(count, dtype=torch.int64, device=like.device)
        gains = like.new_full((count, like.shape[1]), float("nan"))
        flags = numbers.bool()
        return cls(flags, flags, numbers, numbers, numbers, gains, torch.zeros_like(gains, dtype=torch.bool))


@dataclass(frozen=True)
class Trial:
    """What a trial came to: tensors of n rows, one for each sample, where nothing else is said.

    Args:
        delta: What the perturbed images differ by from the clean ones, of their shape.
        parameter: Of the perturbation, where it is not `delta`: n rows, or one that all samples share.
        places: Of patches, (n, 2).
        epsilon: The radius of each sample, where several are tried.
        ball: Held the parameter.
        shared: All samples share the parameter.
        coupled: Samples act together, so that one iterate was kept for all.
        whole: No sample could leave the batch.
        broken_at: (n, radii): the radii at which a search broke it, where several are tried.
        stride: `search` notes the losses of every so many steps.
        stage: Of several, the number of that which broke it, else of the last that tried it along gradients, if any.
        past: What each of several stages did; None if it tried no sample.
    """

    search: Search
    verdict: Verdict
    delta: Tensor
    parameter: Tensor | None
    places: Tensor | None
    epsilon: Tensor | None
    ball: Ball
    shared: bool
    coupled: bool
    whole: bool
    stride: Tensor
    broken_at: Tensor | None = None
    stage: Tensor | None = None
    past: Sequence[Past | None] = ()

    @property
    def bounded(self) -> Tensor:
        """What the ball holds: the perturbation's parameter."""
        return self.delta if self.parameter is None else self.parameter


@dataclass(frozen=True)
class Trier:
    """Tries samples: with the fast model, and again with the plain one what fooled the fast one alone."""

    fast: Model
    plain: Model
    attack: Attack
    samples: Samples
    on_step: Callable[[], None]
    p: float | None = None  # the order of the ball's norm
    a_step: int = 2  # passes that a step takes

    @property
    def has_goal(self) -> Tensor:
        """Which of the n samples have a class to move towards, or from."""
        goals, labels = self.samples.goals, self.samples.labels
        return (goals != labels[:, None]).any(1) if self.attack.towards else torch.ones_like(labels, dtype=torch.bool)

    def rank(self, trial: Trial) -> Tensor:
        """Returns how much a trial says of each of its samples (n,); those of rank `FOUND` need no other stage."""
        rank = torch.full_like(trial.search.goal, 1 if self.a_step == 1 else 2)  # 1 pass: without gradients
        rank = rank.masked_fill(trial.verdict.broken, 3)
        reached = trial.verdict.prediction == trial.search.goal
        return rank.masked_fill(trial.verdict.broken & (reached | (not self.attack.targeted)), FOUND)

    def take(self, index: Tensor) -> "Trier":
        """Returns what tries these of the samples."""
        return replace(self, samples=take_rows(self.samples, index))

    def can_go_on(self, spent: Tensor) -> Tensor:
        """Says which of the n samples, which spent so many passes, may be tried."""
        return self.affords(spent) & self.has_goal

    def affords(self, spent: Tensor) -> Tensor:
        """Says which samples that spent so many passes may find their targets and take a step."""
        return self.attack.can_go_on(spent + self.attack.passes_to_aim(self.samples.clean.shape[1]), self.a_step)

    def __call__(self, chosen: Tensor, epsilon: Tensor | None, spent: Tensor) -> Trial:
        """Tries the chosen samples, each with its own radius (None: the optimizer's), after so many passes of each."""
        if "malt" in self.attack.rules:
            return self._aimed(chosen, epsilon, spent)
        return self._tried(chosen, epsilon, spent)

    def _aimed(self, chosen: Tensor, epsilon: Tensor | None, spent: Tensor) -> Trial:
        """Tries the chosen samples towards the classes whose boundaries are nearest."""
        count, goals = self.attack.num_targets, self.samples.goals.clone()
        first = self.attack.rules.index("malt") * count
        images, labels = self.samples.images[chosen], self.samples.labels[chosen]
        near, backward = nearest(self.fast, images, labels, count, self.p)
        goals[chosen, first : first + count] = near
        trier = replace(self, samples=replace(self.samples, goals=goals))
        trial = trier._tried(chosen, epsilon, spent + 1 + backward)
        found = trial.search
        forward, backward = found.forward_passes + 1, found.backward_passes + backward
        return replace(trial, search=replace(found, forward_passes=forward, backward_passes=backward))

    def _tried(self, chosen: Tensor, epsilon: Tensor | None, spent: Tensor) -> Trial:
        trial = self._try(self.fast, chosen, epsilon, self.attack.steps_after(spent, self.a_step))
        found, verdict = trial.search, trial.verdict
        spent = spent + found.forward_passes + found.backward_passes
        missed = (found.claimed & ~verdict.broken & self.attack.can_go_on(spent, self.a_step)).nonzero().flatten()
        if self.fast is self.plain or trial.coupled or not len(missed):
            return trial
        log.info("%d samples fooled the faster model alone: searched again with the plain one.", len(missed))
        steps = self.attack.steps_after(spent[missed], self.a_step)
        again = self._try(self.plain, chosen[missed], None if epsilon is None else epsilon[missed], steps)
        search = replace(
            again.search,
            claimed=found.claimed[missed],
            forward_passes=again.search.forward_passes + found.forward_passes[missed],
            backward_passes=again.search.backward_passes + found.backward_passes[missed],
        )
        return with_rows(trial, missed, replace(again, search=search))

    def _try(self, model: Model, chosen: Tensor, epsilon: Tensor | None, steps: Tensor) -> Trial:
        rows = rows_of(self.samples, self.attack, chosen, epsilon, steps)
        found, parameter, start = search(model, self.attack, rows, self.on_step)
        best = best_rows(found, rows)
        images, labels = self.samples.images[chosen], self.samples.labels[chosen]
        claim = start.claim(parameter, best)
        verdict = verify(self.plain, images, labels, claim)
        if self.attack.verify_8bit and claim.parameter_is_delta:
            verdict = replace(verdict, broken_8bit=self._broken_8bit(claim, images, labels, verdict.broken))
        return Trial(
            search=of_samples(found, rows, best),
            verdict=verdict,
            delta=claim.delta(images),
            parameter=None if claim.parameter_is_delta else claim.parameter,
            places=claim.places,
            epsilon=epsilon,
            ball=start.ball if epsilon is None else replace(start.ball, epsilon=None),
            shared=start.shared,
            coupled=start.coupled,
            whole=not start.independent,
            stride=torch.full_like(chosen, self.attack.stride),
        )

    def _broken_8bit(self, claim: Claim, images: Tensor, labels: Tensor, broken: Tensor) -> Tensor:
        """Says which of the broken samples stay so after rounding to 8 bits inside the ball."""
        result, index = torch.zeros_like(broken), broken.nonzero().flatten()
        if len(index):
            part = claim.take(index)
            rounded = replace(part, parameter=to_8bit(images[index], part.parameter, part.ball))
            result[index] = verify(self.plain, images[index], labels[index], rounded).broken
        return result


def rows_of(samples: Samples, attack: Attack, chosen: Tensor, epsilon: Tensor | None, steps: Tensor) -> Rows:
    """Returns the rows of the chosen samples, one for each restart and target, those of one sample side by side."""
    position = torch.arange(len(chosen), device=chosen.device).repeat_interleave(attack.rows)
    number = torch.arange(attack.rows, device=chosen.device).repeat(len(chosen))
    targets = samples.goals.shape[1]
    labels = samples.labels[chosen][position]
    goals = samples.goals[chosen][position, number % targets] if attack.towards else labels
    rows = Rows(
        samples=position,
        ids=samples.ids[chosen][position],
        images=samples.images[chosen[position]],
        labels=labels,
        goals=goals,
        clean=samples.clean[chosen[position]],
        restarts=number // targets,
        steps=steps[position],
        epsilon=None if epsilon is None else epsilon[position],
    )
    sensible = goals != labels
    return rows.take(sensible.nonzero().flatten()) if attack.towards and not sensible.all() else rows
