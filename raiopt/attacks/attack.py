"""The settings of an attack."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raiopt import checks
from raiopt.attacks.targets import RULES, candidates, ordered
from raiopt.perturbations.models import PerturbationModel

OFFERED = {"perturbation": ("generators",), "init": ("generator", "epsilon"), "criterion": ("labels", "clean")}
"""Optional keyword arguments: passed to a part of an attack only if its signature has them."""


@dataclass(frozen=True)
class Adapted:
    """A wrapped function that drops keyword arguments missing from its signature."""

    function: Callable[..., Any]
    taken: frozenset[str]

    def __call__(self, *args: Any, **offered: Any) -> Any:
        return self.function(*args, **{name: value for name, value in offered.items() if name in self.taken})


def adapted(function: Any, offered: Iterable[str]) -> Any:
    """Returns a wrapper that can be called with all offered keyword arguments; None is returned unchanged."""
    if function is None or isinstance(function, Adapted):
        return function
    try:
        named = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions of torch have no signature
        named = {}
    return Adapted(function, frozenset(offered) & frozenset(named))


@dataclass(frozen=True, kw_only=True)
class Attack:
    """The settings of an attack, independent of the model and the data.

    Args:
        optimizer: Called with the perturbation's parameters, which it updates.
        perturbation: Called with images (n, C, H, W), and with `generators=`, one per sample, if its signature has
            that argument; see `PerturbationModel`.
        init: Called with a tensor of shape (1, ...), one sample's row of the parameter or the shared parameter, which
            it fills with the starting point. Also passed, if its signature has them: `generator=`, and `epsilon=`
            where `epsilons` are given. None: start at zero.
        criterion: Called with the logits and the classes (n,) that the losses refer to: the targets, or, without
            targets, the same tensor object as `labels`. Also passed, if its signature has them: `labels=`, and
            `clean=`, the logits of the clean images. Returns one loss per sample, which the attack maximizes, or
            minimizes if there is a target.
        schedule: Called with the optimizer and the number of steps; returns a learning rate scheduler of torch, which
            is stepped after each step. If it is None or returns None, the learning rate is constant.
        steps: The number of steps, at least 0; the model evaluates each image steps + 1 times.
        stop: "fooled" ends the search for a sample at the first success, unless the optimizer minimizes the norm;
            "never" takes all steps, for the strongest loss.
        restarts: The number of random starts per sample, which run in parallel until one of them succeeds.
        max_passes: The largest number of forward and backward passes per sample, over all searches. None: no limit.
        use_best: Keep each sample's best iterate (successful before unsuccessful, then by `best_by`), else the last.
        best_by: "loss", or "norm": keep the successful iterate with the smallest norm (the norm of the ball, or L2
            without a ball). None: the norm if the optimizer minimizes it, else the loss.
        targeted: Only the class that `target` names counts as success, instead of any other than the label.
        target: Move towards a class instead of away from the label: a number, "next" (those after the label),
            "least_likely" (smallest clean logits), "likely" (largest) or "malt" (nearest boundaries, see
            `raiopt.attacks.targets`), or a list of them, which are tried in parallel.
        num_targets: The number of target classes, in the order given by `target`, that are tried in parallel; at most
            all classes except the label.
        epsilons: Increasing radii that replace the optimizer's: each sample is recorded at the smallest radius at
            which its attack succeeded, found by bisection.
        attack_misclassified: Attack misclassified samples, too.
        quantize: Keep the perturbed images on the 8-bit grid, the multiples of 1/255, during the search.
        verify_8bit: Also record for each broken sample whether it is still broken after rounding to 8 bits.
        seed: The seed of random starts, combined with the sample's id and the number of the restart.

    Raises:
        TypeError, ValueError: If one of the settings is invalid, or has no effect.
    """

    optimizer: Callable[[Iterable[Tensor]], Optimizer]
    perturbation: Callable[..., PerturbationModel]
    init: Callable[..., Any] | None = None
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
    attack_misclassified: bool = False
    quantize: bool = False
    verify_8bit: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, offered in OFFERED.items():
            object.__setattr__(self, name, adapted(getattr(self, name), offered))
        checks.number("steps", self.steps, low=0, integer=True)
        checks.number("restarts", self.restarts, low=1, integer=True)
        checks.number("seed", self.seed, low=0, integer=True)
        checks.choice("stop", self.stop, ["fooled", "never"])
        checks.choice("best_by", self.best_by, [None, "loss", "norm"])
        if self.best_by == "norm" and not self.use_best:
            raise ValueError("best_by=norm has no effect with use_best=False, which keeps the last iterate.")
        self._check_target()
        if self.attack_misclassified and not self.targeted and self.stop == "fooled":
            raise ValueError(
                "attack_misclassified=True has no effect with stop=fooled: such samples are fooled from the start. Add "
                "stop=never."
            )
        if self.epsilons is not None:
            self._check_epsilons(self.epsilons)
        if self.max_passes is not None:
            checks.number("max_passes", self.max_passes, integer=True)
            self.check_passes()

    def _check_target(self) -> None:
        rules = self.rules
        if not rules and (self.targeted or self.target is not None):
            problem = "targeted=True needs target=..." if self.targeted else "target=[] names none"
            raise ValueError(f"{problem}: a class, {', '.join(RULES)} or a list of these.")
        if len(set(rules)) < len(rules):
            raise ValueError(f"target={rules} names a target twice: each is tried once.")
        for rule in rules:
            if isinstance(rule, str):
                checks.choice("target", rule, [*RULES, "the number of a class"])
            else:
                checks.number("target", rule, low=0, integer=True)
        checks.number("num_targets", self.num_targets, low=1, integer=True)
        if self.num_targets > 1 and not (len(rules) == 1 and isinstance(rules[0], str)):
            raise ValueError(
                f"num_targets={self.num_targets} needs one rule that orders the classes: target="
                f"{', '.join(RULES[:-1])} or {RULES[-1]}; else num_targets=1."
            )

    def _check_epsilons(self, epsilons: Any) -> None:
        if isinstance(epsilons, str) or not isinstance(epsilons, Sequence) or not epsilons:
            raise TypeError(f"epsilons={epsilons!r} must be a list of radii, as in [0.05,0.1,0.2].")
        for epsilon in epsilons:
            checks.number("epsilons", epsilon, low=0)
        if any(a >= b for a, b in pairwise(epsilons)):
            raise ValueError(f"epsilons={list(epsilons)} must increase: {sorted(set(epsilons))}.")

    def check_passes(self, passes_per_step: int = 2, before: int = 0) -> None:
        """Raises unless `max_passes` allows one step per row, after `before` passes for finding the targets."""
        least = before + (1 + passes_per_step + (before > 0) if self.steps else 1) * self.rows
        if self.max_passes is not None and self.max_passes < least:
            step = f"a step takes {passes_per_step} forward and backward passes, and its evaluation a forward pass"
            needs = step if self.steps else "an evaluation takes a forward pass"
            each = f", for each of {self.rows} restarts and targets" * (self.rows > 1)
            first = f", after {before} that find the nearest classes" * (before > 0)
            raise ValueError(f"max_passes={self.max_passes} must be at least {least}: {needs}{each}{first}.")

    @property
    def rules(self) -> list[int | str]:
        """The rules that name the targets."""
        if self.target is None:
            return []
        return list(self.target) if not isinstance(self.target, int | str) else [self.target]

    def passes_to_aim(self, classes: int) -> int:
        """Returns the number of passes that are needed to find a sample's targets before its search."""
        return 1 + candidates(classes) if "malt" in self.rules else 0

    @property
    def towards(self) -> bool:
        """Whether the loss refers to target classes and is minimized."""
        return self.target is not None

    @property
    def targets(self) -> int:
        """The number of classes that the losses of a sample refer to."""
        return max(self.num_targets, len(self.rules))

    @property
    def rows(self) -> int:
        """The number of rows of a batch that one sample takes: restarts times targets."""
        return self.restarts * self.targets

    @property
    def stride(self) -> int:
        """The interval of steps at which losses are recorded, which limits the length of traces of long attacks."""
        return 1 + self.steps // 1000

    def most_steps(self, passes_per_step: int = 2, before: int = 0) -> int:
        """Returns the largest number of steps per sample, after `before` passes for finding its targets."""
        return int(self.steps_after(torch.tensor([before]), passes_per_step))

    def for_classes(self, classes: int) -> "Attack":
        """Returns the attack with `num_targets` limited to what a model with this number of classes allows."""
        return replace(self, num_targets=max(1, min(self.num_targets, classes - 1)))

    def by_norm(self, *, smallest: bool) -> bool:
        """Returns whether the successful iterate of smallest norm is kept; `smallest`: the optimizer minimizes it."""
        return (self.best_by or ("norm" if smallest else "loss")) == "norm"

    def steps_after(self, spent: Tensor, passes_per_step: int = 2) -> Tensor:
        """Returns the number of steps that samples may still take after `spent` passes; -1: not even an evaluation.

        A row of s steps takes `passes_per_step` s + 1 passes, plus one backward pass if other rows of its batch may
        take more steps, which is possible whenever passes were spent before.
        """
        steps = torch.full_like(spent, self.steps)
        if self.max_passes is None:
            return steps
        waits = ((spent > 0) & (steps > 0)).long()
        return torch.minimum(steps, ((self.max_passes - spent) // self.rows - 1 - waits) // passes_per_step)

    def can_go_on(self, spent: Tensor, passes_per_step: int = 2) -> Tensor:
        """Returns a mask of the samples that may take another step (or, if steps=0, the evaluation) after `spent`."""
        return self.steps_after(spent, passes_per_step) >= min(1, self.steps)

    def goals(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the classes (N, targets) that each sample's losses refer to: its targets, or only its label.

        For "malt" these are preliminary, the most likely classes: see `raiopt.attacks.targets.nearest`.
        """
        if not self.towards:
            return labels[:, None]
        return torch.cat([ordered(rule, self.num_targets, logits, labels) for rule in self.rules], dim=1)


@contextmanager
def error_context(part: str) -> Iterator[None]:
    """Prefixes error messages about the settings of a part of the attack with the part's name."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{part}: {error}") from error
