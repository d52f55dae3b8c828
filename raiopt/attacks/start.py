"""The setup of a search (perturbation, optimizer and random start), and the claim that it produces."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raiopt.attacks.attack import Attack, error_context
from raiopt.attacks.fit import check_bounds, check_losses, check_perturbed, fitted, only_parameter
from raiopt.attacks.grid import to_8bit
from raiopt.attacks.rows import Rows, inner_is_elementwise, select_rows
from raiopt.attacks.verify import Ball, Claim
from raiopt.batching import as_batch
from raiopt.optim import ParamTransformingOptimizer
from raiopt.optim.traits import Traits, traits_of
from raiopt.perturbations.models import AdditivePerturbation, PerturbationModel
from raiopt.sampling import keyed_generator

MAX_BOUNDARY_LOSS = 1e-6
"""A loss up to this value, measured where all classes are equally likely, counts as 0 at the decision boundary."""


@dataclass
class Start:
    """The perturbation of n rows, its optimizer, and the rest of a search's mutable state.

    Args:
        parameter: The only parameter of `perturbation`.
        shared: Whether all samples share the parameter; otherwise it has n rows.
        bounds: The parameter's limits, in its initial shape; None: perturbed images are clamped to [0, 1].
        generators: One per row.
        quantize: Whether images are evaluated and kept on the 8-bit grid.

    Attributes:
        ball: The ball that must contain the parameter, for all initial rows.
        full_perturbation: A copy that keeps all rows, even after some have left the batch.
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
    full_perturbation: PerturbationModel = field(init=False)

    def __post_init__(self) -> None:
        names = dict(getattr(self.perturbation, "named_parameters", dict)())
        what = "" if self.is_sum else next(iter(names), "parameter")
        self.ball = Ball.of(self.optimizer, shared=self.shared, what=what)
        needs_copy = self.independent and not self.is_sum
        self.full_perturbation = copy.deepcopy(self.perturbation) if needs_copy else self.perturbation

    @property
    def is_sum(self) -> bool:
        """Whether the perturbed images are the sum of images and parameter."""
        plain = type(self.perturbation) is AdditivePerturbation
        return plain and (not self.shared or getattr(self.perturbation, "mask", None) is None)

    @cached_property
    def coupled(self) -> bool:
        """Whether samples depend on each other: they share the parameter, or a transform acts on several together."""
        param_ndim = self.optimizer.param_groups[0].get("param_ndim", -1)
        return self.shared or len(as_batch(self.parameter.detach(), param_ndim)) < len(self.parameter)

    @cached_property
    def independent(self) -> bool:
        """Whether rows may leave the batch, because optimizer and perturbation treat each row independently."""
        known = inner_is_elementwise(self.optimizer) and hasattr(self.perturbation, "select")
        return known and not self.coupled

    @property
    def traits(self) -> Traits:
        """The properties of the optimizer."""
        return traits_of(self.optimizer)

    @property
    def passes_per_step(self) -> int:
        """The number of forward and backward passes per row and step."""
        return 1 if self.traits.gradient_free else 2 * (1 + self.traits.further_gradients)

    def counts(self, norms: Tensor) -> Tensor:
        """Returns a mask of the norms that are at most the radius of their row."""
        epsilon = self.optimizer.param_groups[0]["epsilon"]
        return norms <= (epsilon.reshape(-1).to(norms) if isinstance(epsilon, Tensor) else epsilon)

    def perturbed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the perturbed images, and the detached parameter to keep for them."""
        made, kept = self.perturbation(images), self.parameter.detach()
        if self.bounds is None:
            return _straight_through(made, made.detach().clamp(0, 1)), kept
        if self.quantize:
            ball = replace(self.ball, epsilon=self.optimizer.param_groups[0].get("epsilon"))
            kept = to_8bit(images, kept, ball)
            return _straight_through(made, images + kept), kept
        return made, kept

    def keep(self, index: Tensor) -> None:
        """Removes all rows except those with these indices."""
        self.perturbation.select(index)  # pyright: ignore[reportAttributeAccessIssue]
        select_rows(self.optimizer, self.parameter, index)
        self.generators = [self.generators[row] for row in index.tolist()]

    @torch.no_grad()
    def claim(self, parameter: Tensor, index: Tensor | None = None) -> Claim:
        """Returns the claim that `parameter` fools the model, for these of the initial rows (None: all)."""
        claim = Claim(parameter, self.ball, shared=self.shared, bounds=self.bounds)
        if index is not None and not self.shared:
            claim = claim.take(index)
        if self.is_sum:
            return claim
        perturb: Any = copy.deepcopy(self.full_perturbation)
        if index is not None and hasattr(perturb, "select"):
            perturb.select(index)
        only_parameter(perturb).data = claim.parameter.clone()
        return replace(claim, perturb=perturb, places=getattr(perturb, "places", None))


def _straight_through(made: Tensor, seen: Tensor) -> Tensor:
    """Returns `seen` with the gradient of `made`, so that clamped pixels still receive gradients."""
    return made + (seen - made).detach()


def prepare(attack: Attack, rows: Rows) -> Start:
    """Constructs the perturbation and optimizer of an attack, with each row at its random start.

    If samples share the parameter, the generator of the first sample draws its start.

    Raises:
        TypeError, ValueError: If perturbation, optimizer or start cannot be constructed for these images, or do not
            fit together.
    """
    images = rows.images
    keys = zip(rows.ids.tolist(), rows.restarts.tolist(), strict=True)
    generators = [keyed_generator(attack.seed, sample_id, restart) for sample_id, restart in keys]
    with error_context("perturbation"):
        perturbation = attack.perturbation(images, generators=generators)
        parameter = only_parameter(perturbation)
        shared = getattr(perturbation, "is_shared", lambda data: True)(images)
        limits: Any = getattr(perturbation, "bounds", lambda data: None)(images)
        bounds = check_bounds(limits, parameter, None if shared else len(images))
    with error_context("optim"):
        optimizer = fitted(perturbation, attack.optimizer)
    for group in optimizer.param_groups:
        if bounds:
            group["lower"], group["upper"] = bounds
        if rows.epsilon is not None and not shared:
            group["epsilon"] = rows.epsilon.view(-1, *[1] * (parameter.ndim - 1))
    start = Start(perturbation, parameter, optimizer, shared, bounds, generators, quantize=attack.quantize)
    most = attack.most_steps(start.passes_per_step, attack.passes_to_aim(rows.clean.shape[1]))
    for group in optimizer.param_groups:
        if "steps" in group and attack.max_passes is not None:  # the number of steps that the optimizer plans for
            group["steps"] = max(1, min(group["steps"], most))
    if attack.schedule is not None:
        with error_context("schedule"):
            start.schedule = attack.schedule(optimizer, most)
    _check_settings(attack, start)
    _fill(attack, start, rows.epsilon)
    if isinstance(optimizer, ParamTransformingOptimizer):
        with error_context("optim"):
            for group in optimizer.param_groups if bounds else []:
                optimizer._check_group(group)
            optimizer.project()
    return start


def _fill(attack: Attack, start: Start, epsilon: Tensor | None) -> None:
    """Fills in the random start of each row, drawn on the CPU so that it is the same on every device."""
    rows = [start.parameter[None]] if start.shared else start.parameter.split(1)
    radii = [{}] * len(rows) if epsilon is None else [{"epsilon": radius} for radius in epsilon.tolist()]
    with error_context("init"), torch.no_grad():
        for row, generator, radius in zip(rows, start.generators, radii, strict=False):
            drawn = torch.zeros(row.shape, dtype=row.dtype)
            if attack.init is not None:
                attack.init(drawn, generator=generator, **radius)
            row.copy_(drawn)


def _check_settings(attack: Attack, start: Start) -> None:
    """Raises if the perturbation or the optimizer does not support a setting of the attack."""
    settings = {
        f"restarts={attack.restarts}": attack.restarts > 1,
        f"target={attack.target}, with several targets,": attack.targets > 1,
        f"epsilons={attack.epsilons}": attack.epsilons is not None,
    }
    for setting in (name for name, is_set in settings.items() if is_set):
        if start.coupled:
            raise ValueError(
                f"{setting} needs samples that are independent, but they share the perturbation or its ball: give each "
                "sample its own (additive, param_ndim=-1), or run one attack for each seed or epsilon."
            )
        if not hasattr(start.perturbation, "select"):
            raise ValueError(
                f"{setting} needs a perturbation with a method select(index) that keeps these rows of its tensors: "
                f"{type(start.perturbation).__name__} has none."
            )
    if attack.epsilons is not None and start.ball.p is None:
        raise ValueError("epsilons needs an optimizer with a ball, such as l2_projected (L2ProjectedOptim).")
    if attack.quantize and (start.shared or start.bounds is None or not start.is_sum):
        raise ValueError("quantize=True needs an additive perturbation of each image: only such a sum can be rounded.")


def try_parts(attack: Attack, shape: Sequence[int], classes: int) -> Start:
    """Checks all parts of an attack on two black images of this shape (C, H, W), and returns the start for them."""
    logits, labels, images = torch.zeros(2, classes), torch.zeros(2, dtype=torch.int64), torch.zeros(2, *shape)
    goals = attack.goals(logits, labels)
    with error_context("criterion"):
        losses = attack.criterion(logits, goals[:, 0] if attack.towards else labels, labels=labels, clean=logits)
        check_losses(losses, labels)
    numbers = torch.arange(2)
    epsilon = None if attack.epsilons is None else torch.tensor([attack.epsilons[0], attack.epsilons[-1]])
    of_one = torch.zeros_like(numbers)  # two restarts of one sample, if there are two
    ids, restarts = (of_one, numbers) if attack.restarts > 1 else (numbers, of_one)
    start = prepare(attack, Rows(ids, images, labels, labels, logits, numbers, restarts, of_one, epsilon))
    if attack.restarts > 1 and epsilon is None and not start.traits.gradient_free and _same_start(start):
        raise ValueError(
            f"restarts={attack.restarts} has no effect: all restarts would start from the same point. Use a random "
            "init, such as uniform_linf (uniform_like_linf_n_ball_)."
        )
    if start.traits.needs_boundary_loss and losses.abs().max() > MAX_BOUNDARY_LOSS:
        raise ValueError(
            f"criterion: it gives {losses[0].item():.4g} where all classes are equally likely, and the optimizer "
            f"({type(start.optimizer).__name__}) needs a loss that is 0 at the decision boundary: criterion=margin."
        )
    attack.check_passes(start.passes_per_step, attack.passes_to_aim(classes))
    with error_context("perturbation"), torch.enable_grad():
        check_perturbed(start.perturbation(images), images)
    return start


def _same_start(start: Start) -> bool:
    """Returns whether the first two rows start from the same point."""
    places = getattr(start.perturbation, "places", None)
    return all(torch.equal(rows[0], rows[1]) for rows in (start.parameter, places) if rows is not None)
