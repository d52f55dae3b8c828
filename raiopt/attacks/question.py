"""The question that an attack puts to a model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raiopt import checks
from raiopt.attacks.targets import RULES, candidates, ordered
from raiopt.perturbations.models import PerturbationModel


@dataclass(frozen=True, kw_only=True)
class Attack:
    """The question put to a model, apart from model and data.

    Args:
        optimizer: Called with the perturbation's parameters; moves them.
        perturbation: Called with images (n, C, H, W) and n generators, one a sample; see `PerturbationModel`.
        init: Called as `init(rows, generator=generator)`, with `epsilon=...` too where `epsilons` are given and it
            takes that; writes the start into rows of shape (1, ...): a sample's share of the parameter, or the shared
            one.
        criterion: Called as `criterion(logits, goals, labels=labels, clean=clean_logits)`; returns the loss of each
            sample, which the attack makes large, or small if there is a target. `goals` are the targets; the very
            tensor `labels` if there are none.
        schedule: Called with the optimizer and the number of steps, returns a scheduler of torch that is stepped after
            each step. If there is none, or it returns None, the learning rate stays.
        steps: At least 0; each image passes the model once more than that.
        stop: "fooled": a sample is done once it is fooled, unless the optimizer looks for the smallest perturbation;
            "never": all steps run, for the strongest loss.
        restarts: So many random starts of each sample run side by side; they end when one of them succeeds.
        max_passes: Of one sample, forward and backward, in all that the attack tries on it. None: no limit.
        use_best: Keep each sample's best iterate (fooled before not fooled, then as `best_by` says), else the last.
        best_by: "loss", or "norm": of iterates that fool, the one with the smallest norm (that of the ball, else L2).
            None: the norm if the optimizer looks for the smallest perturbation, else the loss.
        targeted: Only the class that `target` names counts as fooled, instead of any that is not the label.
        target: Move towards a class instead of away from the label: a number, "next" (those after the label),
            "least_likely" (smallest clean logits), "likely" (largest) or "malt" (nearest boundaries, see
            `raiopt.attacks.targets`); a list of them is tried side by side.
        num_targets: So many classes of the order that `target` gives are tried side by side; all but the label, if the
            model has no more.
        epsilons: Increasing radii, in place of the optimizer's: each sample's record is that of the smallest that
            breaks it.
        curve: How they are tried: "bisect", for an example for one epsilon is one for every larger one; or "all".
        attack_misclassified: Attack samples that are predicted wrong, too.
        quantize: Keep the perturbed images on the 8-bit grid of multiples of 1/255 all through the search.
        verify_8bit: Say of each broken sample whether it stays so after rounding to 8 bits.
        seed: With the sample's id and the number of the restart, the key of its random start.

    Raises:
        TypeError, ValueError: If one of the settings has no meaning, or no effect.
    """

    optimizer: Callable[[Iterable[Tensor]], Optimizer]
    perturbation: Callable[[Tensor, Sequence[Generator]], PerturbationModel]
    init: Callable[..., Any]
    criterion: Callable[..., Tensor]
    schedule: Callable[..., LRScheduler | None] | None = None
    steps: int
    stop: str = "fooled"
    restarts: int = 1
    max_passes: int | None = None
    use_best: bool = True
    best_by: str | None = None
    targeted: bool = False
    target: int | str | Sequence[int | str] | None = None
    num_targets: int = 1
    epsilons: Sequence[float] | None = None
    curve: str = "bisect"
    attack_misclassified: bool = False
    quantize: bool = False
    verify_8bit: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        checks.number("solver.steps", self.steps, low=0, integer=True)
        checks.number("solver.restarts", self.restarts, low=1, integer=True)
        checks.number("seed", self.seed, low=0, integer=True)
        checks.choice("solver.stop", self.stop, ["fooled", "never"])
        if self.best_by is not None:
            checks.choice("solver.best_by", self.best_by, ["loss", "norm"])
        checks.choice("solver.curve", self.curve, ["bisect", "all"])
        if self.best_by == "norm" and not self.use_best:
            raise ValueError("solver.best_by=norm has no effect with solver.use_best=false, which keeps the last.")
        self._check_target()
        if self.attack_misclassified and not self.targeted and self.stop == "fooled":
            raise ValueError(
                "solver.attack_misclassified=true has no effect with solver.stop=fooled: such samples are fooled from "
                "the start. Add solver.stop=never."
            )
        if self.epsilons is not None:
            self._check_epsilons(self.epsilons)
        if self.max_passes is not None:
            checks.number("solver.max_passes", self.max_passes, integer=True)
            self.check_passes()

    def _check_target(self) -> None:
        rules = self.rules
        if not rules and (self.targeted or self.target is not None):
            asked = "solver.targeted=true needs solver.target" if self.targeted else "solver.target=[] names none"
            raise ValueError(f"{asked}: a class, {', '.join(RULES)} or a list of these.")
        if len(set(rules)) < len(rules):
            raise ValueError(f"solver.target={rules} names a target twice: each is tried once.")
        for rule in rules:
            if isinstance(rule, str):
                checks.choice("solver.target", rule, [*RULES, "the number of a class"])
            else:
                checks.number("solver.target", rule, low=0, integer=True)
        checks.number("solver.num_targets", self.num_targets, low=1, integer=True)
        if self.num_targets > 1 and not (len(rules) == 1 and isinstance(rules[0], str)):
            raise ValueError(
                f"solver.num_targets={self.num_targets} needs one rule that orders the classes: solver.target="
                f"{', '.join(RULES[:-1])} or {RULES[-1]}; without, solver.num_targets=1."
            )

    def _check_epsilons(self, epsilons: Any) -> None:
        if isinstance(epsilons, str) or not isinstance(epsilons, Sequence) or not epsilons:
            raise TypeError(f"solver.epsilons={epsilons!r} must be a list of radii, as in [0.05,0.1,0.2].")
        for epsilon in epsilons:
            checks.number("solver.epsilons", epsilon, low=0)
        if any(a >= b for a, b in pairwise(epsilons)):
            raise ValueError(f"solver.epsilons={list(epsilons)} must increase: {sorted(set(epsilons))}.")

    def check_passes(self, a_step: int = 2, before: int = 0) -> None:
        """Raises unless each row may take a step, which is so many passes, after those that find the targets."""
        least = before + (1 + a_step + (before > 0) if self.steps else 1) * self.rows
        if self.max_passes is not None and self.max_passes < least:
            step = f"a step takes {a_step} forward and backward passes, and a forward pass shows what it did"
            beside = f", for each of {self.rows} restarts and targets" * (self.rows > 1)
            takes = step if self.steps else "an evaluation takes a forward pass"
            found = f", after {before} that find the nearest classes" * (before > 0)
            raise ValueError(f"solver.max_passes={self.max_passes} must be at least {least}: {takes}{beside}{found}.")

    @property
    def rules(self) -> list[int | str]:
        """The rules that name the targets."""
        if self.target is None:
            return []
        return list(self.target) if not isinstance(self.target, int | str) else [self.target]

    def passes_to_aim(self, classes: int) -> int:
        """Returns how many passes of a sample its targets take before the search."""
        return 1 + candidates(classes) if "malt" in self.rules else 0

    @property
    def towards(self) -> bool:
        """Whether the loss refers to targets, and is made small."""
        return self.target is not None

    @property
    def targets(self) -> int:
        """How many classes the losses of a sample refer to."""
        return max(self.num_targets, len(self.rules))

    @property
    def rows(self) -> int:
        """How many rows of a batch one sample takes: restarts times targets."""
        return self.restarts * self.targets

    @property
    def stride(self) -> int:
        """Every so many steps losses are noted, so that an attack of many steps leaves no endless trace."""
        return 1 + self.steps // 1000

    def most_steps(self, a_step: int = 2, before: int = 0) -> int:
        """Returns how many steps of so many passes a sample can take at most, after those that find its targets."""
        return int(self.steps_after(torch.tensor([before]), a_step))

    def for_classes(self, classes: int) -> "Attack":
        """Returns the question for a model of so many classes, of which there may be fewer than targets."""
        return replace(self, num_targets=max(1, min(self.num_targets, classes - 1)))

    def by_norm(self, *, smallest: bool) -> bool:
        """Says whether the iterate with the smallest norm is kept; `smallest`: the optimizer looks for that."""
        return (self.best_by or ("norm" if smallest else "loss")) == "norm"

    def steps_after(self, spent: Tensor, a_step: int = 2) -> Tensor:
        """Returns how many steps samples may take that spent so many passes; -1: not even an evaluation.

        With s steps a row passes the model `a_step` s + 1 times, and once more, backward, if others in its batch may
        take more steps: so it can be wherever something was spent before.
        """
        steps = torch.full_like(spent, self.steps)
        if self.max_passes is None:
            return steps
        waits = ((spent > 0) & (steps > 0)).long()
        return torch.minimum(steps, ((self.max_passes - spent) // self.rows - 1 - waits) // a_step)

    def can_go_on(self, spent: Tensor, a_step: int = 2) -> Tensor:
        """Says which samples that spent so many passes may take a step, or the evaluation if there are no steps."""
        return self.steps_after(spent, a_step) >= min(1, self.steps)

    def goals(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the classes (N, targets) that a sample's losses refer to: its targets, or its label alone.

        Those of "malt" are the likely ones here: see `raiopt.attacks.targets.nearest`.
        """
        if not self.towards:
            return labels[:, None]
        return torch.cat([ordered(rule, self.num_targets, logits, labels) for rule in self.rules], dim=1)


@contextmanager
def told_as(part: str) -> Iterator[None]:
    """Puts the name of the part of the attack in front of what is wrong with its settings."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{part}: {error}") from error
