"""Where a search starts: perturbation, optimizer and random start; and the claim that it ends with."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raiopt.attacks.grid import to_8bit
from raiopt.attacks.question import Attack, told_as
from raiopt.attacks.rows import Rows, is_elementwise, select_rows
from raiopt.attacks.verify import Ball, Claim
from raiopt.batching import as_batch
from raiopt.optim import ParamTransformingOptimizer
from raiopt.perturbations.models import AdditivePerturbation, PerturbationModel
from raiopt.perturbations.solver import published
from raiopt.sampling import keyed_generator

TIE = 1e-6
"""A loss of at most this size, where all classes are equally likely, is 0 there."""


@dataclass
class Start:
    """What a search over n rows begins with, and later moves.

    Args:
        parameter: The only one of `perturbation`.
        shared: All samples share it; else it has n rows.
        bounds: What it may be, shaped like it at the start; None: perturbed images are clamped to [0, 1].
        generators: Of each row.
        ball: Holds the parameter, as it was at the start.
        quantize: Evaluate, and keep, images on the 8-bit grid.
    """

    perturbation: PerturbationModel
    parameter: Tensor
    optimizer: Optimizer
    shared: bool
    bounds: tuple[Tensor, Tensor] | None
    generators: Sequence[Generator]
    schedule: LRScheduler | None = None
    quantize: bool = False
    ball: Ball = field(init=False)
    whole: PerturbationModel = field(init=False)  # with all rows, whatever leaves

    def __post_init__(self) -> None:
        names = dict(getattr(self.perturbation, "named_parameters", dict)())
        what = "" if self.is_sum else next(iter(names), "parameter")
        self.ball = Ball.of(self.optimizer, shared=self.shared, what=what)
        self.whole = self.perturbation
        if self.independent and not self.is_sum:
            self.whole = copy.deepcopy(self.perturbation)

    @property
    def is_sum(self) -> bool:
        """Whether the perturbed images are nothing but images + parameter."""
        plain = type(self.perturbation) is AdditivePerturbation
        return plain and (not self.shared or getattr(self.perturbation, "mask", None) is None)

    @property
    def is_delta(self) -> bool:
        """Whether the parameter is what is added to each image, and nothing is clamped."""
        return self.is_sum and not self.shared and self.bounds is not None

    @cached_property
    def coupled(self) -> bool:
        """Whether a step's transforms, or a shared parameter, act on several samples together."""
        param_ndim = self.optimizer.param_groups[0].get("param_ndim", -1)
        return self.shared or len(as_batch(self.parameter.detach(), param_ndim)) < len(self.parameter)

    @cached_property
    def independent(self) -> bool:
        """Whether rows may leave the batch: each is moved alone, and what perturbs can do with fewer."""
        known = is_elementwise(self.optimizer) and hasattr(self.perturbation, "select")
        return known and not self.coupled

    @property
    def smallest(self) -> bool:
        """Whether the optimizer looks for the smallest perturbation."""
        return getattr(self.optimizer, "smallest", False)

    @property
    def gradient_free(self) -> bool:
        """Whether the optimizer moves by the losses alone."""
        return getattr(self.optimizer, "gradient_free", False)

    @property
    def passes_a_step(self) -> int:
        """How often a step lets a row pass the model, forward and backward together."""
        return 1 if self.gradient_free else 2 * (1 + getattr(self.optimizer, "further_gradients", 0))

    def counts(self, norms: Tensor) -> Tensor:
        """Says of which rows a norm as large as this lies in the ball."""
        epsilon = self.optimizer.param_groups[0]["epsilon"]
        return norms <= (epsilon.reshape(-1).to(norms) if isinstance(epsilon, Tensor) else epsilon)

    def perturbed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the perturbed images, and the parameter that is kept of them, without a graph."""
        made, kept = self.perturbation(images), self.parameter.detach()
        if self.bounds is None:
            return _straight_through(made, made.detach().clamp(0, 1)), kept
        if self.quantize:
            ball = replace(self.ball, epsilon=self.optimizer.param_groups[0].get("epsilon"))
            kept = to_8bit(images, kept, ball)
            return _straight_through(made, images + kept), kept
        return made, kept

    def keep(self, index: Tensor) -> None:
        """Lets all rows but those with these numbers leave."""
        self.perturbation.select(index)  # pyright: ignore[reportAttributeAccessIssue]
        select_rows(self.optimizer, self.parameter, index)
        self.generators = [self.generators[row] for row in index.tolist()]

    def move(self, losses: Tensor, fooled: Tensor, gradient: Callable[[], Tensor]) -> None:
        """Takes a step, for which the optimizer is told what `published` names."""
        told = {"losses": losses, "fooled": fooled, "gradient": gradient, "generators": self.generators}
        with published(self.optimizer, **told):
            self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()

    @torch.no_grad()
    def claim(self, parameter: Tensor, index: Tensor | None = None) -> Claim:
        """Returns the claim that `parameter`, for these of the rows at the start (None: all), breaks their samples."""
        claim = Claim(parameter, self.ball, shared=self.shared, bounds=self.bounds)
        if index is not None and not self.shared:
            claim = claim.take(index)
        if self.is_sum:
            return claim
        perturb: Any = copy.deepcopy(self.whole)
        if index is not None and hasattr(perturb, "select"):
            perturb.select(index)
        only_parameter(perturb).data = claim.parameter.clone()
        return replace(claim, perturb=perturb, places=getattr(perturb, "places", None))


def _straight_through(made: Tensor, seen: Tensor) -> Tensor:
    """Returns `seen` with the gradient of `made`, so that a pixel at the border can come back."""
    return made + (seen - made).detach()


def prepare(attack: Attack, rows: Rows) -> Start:
    """Returns perturbation and optimizer of an attack, at each row's own random start.

    Samples that share the parameter start from the generator of the first of them.

    Raises:
        TypeError, ValueError: If perturbation, optimizer or start cannot be made for such images, or do not go
            together.
    """
    images = rows.images
    keys = zip(rows.ids.tolist(), rows.restarts.tolist(), strict=True)
    generators = [keyed_generator(attack.seed, sample_id, restart) for sample_id, restart in keys]
    with told_as("perturbation"):
        perturbation = attack.perturbation(images, generators)
        parameter = only_parameter(perturbation)
        shared = getattr(perturbation, "is_shared", lambda data: True)(images)
        if not shared and len(parameter) != len(images):
            raise ValueError(
                f"its samples do not share the parameter, which must then have {len(images)} rows, one a sample, "
                f"but has the shape {tuple(parameter.shape)}."
            )
        bounds = _checked_bounds(getattr(perturbation, "bounds", lambda data: None)(images), parameter)
    with told_as("optim"):
        optimizer = attack.optimizer(perturbation.parameters())
    for group in optimizer.param_groups:
        if bounds:
            group["lower"], group["upper"] = bounds
        if rows.epsilon is not None and not shared:
            group["epsilon"] = rows.epsilon.view(-1, *[1] * (parameter.ndim - 1))
    start = Start(perturbation, parameter, optimizer, shared, bounds, generators, quantize=attack.quantize)
    most = attack.most_steps(start.passes_a_step, attack.passes_to_aim(rows.clean.shape[1]))
    for group in optimizer.param_groups:
        if "steps" in group and attack.max_passes is not None:  # what it plans for
            group["steps"] = max(1, min(group["steps"], most))
    if attack.schedule is not None:
        with told_as("schedule"):
            start.schedule = attack.schedule(optimizer, most)
    _check_together(attack, start)
    started = [parameter[None]] if shared else parameter.split(1)
    _fill(attack, started, generators, None if rows.epsilon is None else rows.epsilon.tolist())
    if isinstance(optimizer, ParamTransformingOptimizer):
        with told_as("optim"):
            for group in optimizer.param_groups if bounds else []:
                optimizer._check_group(group)
            optimizer.project()
    return start


def _fill(attack: Attack, started: Sequence[Tensor], generators: Any, epsilon: list[float] | None) -> None:
    """Writes each row's random start; the same numbers on every device, for they are drawn on the CPU."""
    with told_as("init"), torch.no_grad():
        sized = epsilon is not None and "epsilon" in inspect.signature(attack.init).parameters
        for number, (row, generator) in enumerate(zip(started, generators, strict=False)):
            start = torch.zeros(row.shape, dtype=row.dtype)
            attack.init(start, generator=generator, **({"epsilon": epsilon[number]} if sized and epsilon else {}))
            row.copy_(start)


def _check_together(attack: Attack, start: Start) -> None:
    """Raises if the attack asks for what its perturbation or optimizer makes impossible."""
    asked = {
        f"solver.restarts={attack.restarts}": attack.restarts > 1,
        f"solver.target={attack.target}, several targets,": attack.targets > 1,
        f"solver.epsilons={attack.epsilons}": attack.epsilons is not None,
    }
    for setting in (name for name, is_asked in asked.items() if is_asked):
        if start.coupled:
            raise ValueError(
                f"{setting} needs samples that are independent, but they share the perturbation or its ball: give each "
                "sample its own (perturbation=additive, optim.param_ndim=-1), or sweep with -m (seed, optim.epsilon)."
            )
        if not hasattr(start.perturbation, "select"):
            raise ValueError(
                f"{setting} needs a perturbation with a method select(index) that keeps these rows of its tensors: "
                f"{type(start.perturbation).__name__} has none."
            )
    if attack.epsilons is not None and start.ball.p is None:
        raise ValueError("solver.epsilons needs an optimizer with a ball: give optim.ball, or take l2_projected, ...")
    if attack.quantize and not start.is_delta:
        raise ValueError(
            "solver.quantize=true needs perturbation=additive or masked: 8-bit values of each image's own."
        )


def tried(attack: Attack, shape: Sequence[int], classes: int) -> Start:
    """Returns the start of an attack on two black images (C, H, W) of that shape: what does not fit is told at once."""
    logits, labels, images = torch.zeros(2, classes), torch.zeros(2, dtype=torch.int64), torch.zeros(2, *shape)
    goals = attack.goals(logits, labels)
    with told_as("criterion"):
        losses = attack.criterion(logits, goals[:, 0] if attack.towards else labels, labels=labels, clean=logits)
        if not isinstance(losses, Tensor) or losses.shape != labels.shape:
            raise ValueError(
                f"it must return one loss a sample, of shape (2,) for two, got {_described(losses)}. Use "
                'reduction="none" in torch\'s losses.'
            )
    numbers = torch.arange(2)
    epsilon = None if attack.epsilons is None else torch.tensor([attack.epsilons[0], attack.epsilons[-1]])
    of_one = torch.zeros_like(numbers)  # two restarts of one sample, if there are two
    ids, restarts = (of_one, numbers) if attack.restarts > 1 else (numbers, of_one)
    start = prepare(attack, Rows(numbers, ids, images, labels, labels, logits, restarts, of_one, epsilon))
    if attack.restarts > 1 and attack.epsilons is None and not start.gradient_free and _begin_alike(start):
        raise ValueError(
            f"solver.restarts={attack.restarts} has no effect: every restart begins alike. Give a random start, as in "
            "init=uniform_linf."
        )
    if getattr(start.optimizer, "needs_boundary", False) and losses.abs().max() > TIE:
        raise ValueError(
            f"criterion: it gives {losses[0].item():.4g} where all classes are equally likely, and the optimizer "
            f"({type(start.optimizer).__name__}) needs a loss that is 0 at the decision boundary: criterion=margin."
        )
    attack.check_passes(start.passes_a_step, attack.passes_to_aim(classes))
    with told_as("perturbation"):
        check_perturbed(start.perturbation(images), images)
    return start


def _begin_alike(start: Start) -> bool:
    """Says whether the first two rows start from the same point."""
    places = getattr(start.perturbation, "places", None)
    return all(torch.equal(rows[0], rows[1]) for rows in (start.parameter, places) if rows is not None)


def check_perturbed(perturbed: Any, images: Tensor) -> None:
    """Raises unless the perturbation made of new images what an attack can work with."""
    if not isinstance(perturbed, Tensor) or perturbed.shape != images.shape:
        raise ValueError(f"it must return images of the shape {tuple(images.shape)}, got {_described(perturbed)}.")
    if images._version:
        raise ValueError("it wrote into the images, so that nothing could be checked against them: work on a copy.")
    if not perturbed.requires_grad:
        raise ValueError("the perturbed images do not depend on its parameter, or that has requires_grad=False.")


def only_parameter(perturbation: PerturbationModel) -> Tensor:
    """Returns the one parameter of a perturbation."""
    parameters = list(perturbation.parameters())
    if len(parameters) != 1:
        raise ValueError(f"{type(perturbation).__name__} must have exactly one parameter, but has {len(parameters)}.")
    if not parameters[0].is_floating_point():
        raise TypeError(f"its parameter must be of a floating type, not {parameters[0].dtype}.")
    return parameters[0]


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
