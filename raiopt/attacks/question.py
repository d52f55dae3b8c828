"""The question that an attack puts, and where its search starts: perturbation, optimizer and random start."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from raiopt import checks
from raiopt.attacks.verify import Ball, Claim
from raiopt.optim import ParamTransformingOptimizer
from raiopt.perturbations.models import AdditivePerturbation, PerturbationModel
from raiopt.sampling import keyed_generator

TARGET_RULES = ("next", "least_likely")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """The question put to a model, apart from model and data.

    Args:
        optimizer: Called with the perturbation's parameters; moves them.
        perturbation: Called with images (n, C, H, W) and n generators, one a sample; see `PerturbationModel`.
        init: Called as `init(rows, generator=generator)`; writes the start into rows of shape (1, ...): a sample's
            share of the parameter, or the shared one.
        criterion: Called as `criterion(logits, goals, labels=labels, clean=clean_logits)`; returns the loss of each
            sample, which the attack makes large, or small if targeted. `goals` are the targets; the very tensor
            `labels` if there are none.
        steps: At least 0; each image passes the model once more than that.
        use_best: Keep each sample's best iterate (fooled before not fooled, then by loss), else the last.
        targeted: Move towards the class that `target` names instead of away from the label.
        target: A class, "next" (the label plus 1) or "least_likely" (smallest clean logit).
        seed: With the sample's id, the key of its random start.

    Raises:
        TypeError, ValueError: If one of the last five has no meaning, or no effect.
    """

    optimizer: Callable[[Iterable[Tensor]], Optimizer]
    perturbation: Callable[[Tensor, Sequence[Generator]], PerturbationModel]
    init: Callable[..., Any]
    criterion: Callable[..., Tensor]
    steps: int
    use_best: bool = True
    targeted: bool = False
    target: int | str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checks.number("solver.steps", self.steps, low=0, integer=True)
        checks.number("seed", self.seed, low=0, integer=True)
        if self.targeted and self.target is None:
            raise ValueError("solver.targeted=true needs solver.target: a class, next or least_likely.")
        if not self.targeted and self.target is not None:
            raise ValueError(f"solver.target={self.target} has no effect without solver.targeted=true.")
        if isinstance(self.target, str):
            checks.choice("solver.target", self.target, [*TARGET_RULES, "the number of a class"])
        elif self.target is not None:
            checks.number("solver.target", self.target, low=0, integer=True)

    def goals(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the class (N,) that each sample's loss refers to: the target, or the label if there is none."""
        if not self.targeted or self.target is None:
            return labels
        if self.target == "next":
            return (labels + 1) % logits.shape[1]
        if self.target == "least_likely":
            return logits.argmin(1)
        checks.number("solver.target", self.target, high=logits.shape[1] - 1)
        return torch.full_like(labels, int(self.target))


@dataclass(frozen=True)
class Start:
    """What a search over the images (n, C, H, W) begins with, and later moves.

    Args:
        parameter: The only one of `perturbation`.
        shared: All samples share it; else it has n rows.
        bounds: What it may be, shaped like it; None: perturbed images are clamped to [0, 1].
    """

    perturbation: PerturbationModel
    parameter: Tensor
    optimizer: Optimizer
    shared: bool
    bounds: tuple[Tensor, Tensor] | None

    @property
    def is_sum(self) -> bool:
        """Whether the perturbed images are nothing but images + parameter."""
        plain = type(self.perturbation) is AdditivePerturbation
        return plain and (not self.shared or getattr(self.perturbation, "mask", None) is None)

    @property
    def ball(self) -> Ball:
        """The ball that the optimizer holds the parameter in."""
        names = dict(getattr(self.perturbation, "named_parameters", dict)())
        return Ball.of(self.optimizer, shared=self.shared, what="" if self.is_sum else next(iter(names), "parameter"))

    @torch.no_grad()
    def claim(self, parameter: Tensor) -> Claim:
        """Moves the perturbation to `parameter`; returns the claim that it breaks the samples."""
        self.parameter.copy_(parameter)
        perturb = None if self.is_sum else self.perturbation
        places = getattr(self.perturbation, "places", None)
        return Claim(parameter, self.ball, shared=self.shared, bounds=self.bounds, perturb=perturb, places=places)


def prepare(attack: Attack, images: Tensor, ids: Sequence[int]) -> Start:
    """Returns perturbation and optimizer of an attack on the images (n, C, H, W), at each sample's own random start.

    Samples that share the parameter start from the generator of the first of them.

    Raises:
        TypeError, ValueError: If perturbation, optimizer or start cannot be made for such images.
    """
    generators = [keyed_generator(attack.seed, sample_id) for sample_id in ids]
    with told_as("perturbation"):
        perturbation = attack.perturbation(images, generators)
        parameter = _only_parameter(perturbation)
        shared = getattr(perturbation, "is_shared", lambda data: True)(images)
        if not shared and len(parameter) != len(images):
            raise ValueError(
                f"its samples do not share the parameter, which must then have {len(images)} rows, one a sample, "
                f"but has the shape {tuple(parameter.shape)}."
            )
        bounds = _checked_bounds(getattr(perturbation, "bounds", lambda data: None)(images), parameter)
    with told_as("optim"):
        optimizer = attack.optimizer(perturbation.parameters())
    with told_as("init"), torch.no_grad():
        for row, generator in zip([parameter[None]] if shared else parameter.split(1), generators, strict=False):
            start = torch.zeros(row.shape, dtype=row.dtype)  # on the CPU: the same numbers on every device
            attack.init(start, generator=generator)
            row.copy_(start)
    if bounds:
        for group in optimizer.param_groups:
            group["lower"], group["upper"] = bounds
    if isinstance(optimizer, ParamTransformingOptimizer):
        with told_as("optim"):
            for group in optimizer.param_groups if bounds else []:
                optimizer._check_group(group)
            optimizer.project()
    return Start(perturbation, parameter, optimizer, shared, bounds)


@contextmanager
def told_as(part: str) -> Iterator[None]:
    """Puts the name of the part of the attack in front of what is wrong with its settings."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{part}: {error}") from error


def check_perturbed(perturbed: Tensor, images: Tensor) -> None:
    """Raises unless the perturbation made of new images what an attack can work with."""
    if not isinstance(perturbed, Tensor) or perturbed.shape != images.shape:
        raise ValueError(f"it must return images of the shape {tuple(images.shape)}, got {_described(perturbed)}.")
    if images._version:
        raise ValueError("it wrote into the images, so that nothing could be checked against them: work on a copy.")
    if not perturbed.requires_grad:
        raise ValueError("the perturbed images do not depend on its parameter, or that has requires_grad=False.")


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _checked_bounds(bounds: Any, parameter: Tensor) -> tuple[Tensor, Tensor] | None:
    if bounds is None:
        return None
    pair = tuple(bounds) if isinstance(bounds, Sequence) else ()
    if len(pair) != 2 or any(not isinstance(b, Tensor) or b.shape != parameter.shape for b in pair):
        raise ValueError(
            f"bounds(images) must return None or two tensors of the parameter's shape {tuple(parameter.shape)}."
        )
    return pair[0], pair[1]


def _only_parameter(perturbation: PerturbationModel) -> Tensor:
    parameters = list(perturbation.parameters())
    if len(parameters) != 1:
        raise ValueError(f"{type(perturbation).__name__} must have exactly one parameter, but has {len(parameters)}.")
    if not parameters[0].is_floating_point():
        raise TypeError(f"its parameter must be of a floating type, not {parameters[0].dtype}.")
    return parameters[0]
