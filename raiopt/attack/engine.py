"""The attack on one batch after another: the clean prediction, then the search for those that are predicted right."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from raiopt import checks
from raiopt.attack.outcome import Outcome, Search, Watch
from raiopt.attack.verify import Ball
from raiopt.batching import as_batch
from raiopt.optim import ParamTransformingOptimizer
from raiopt.perturbations.models import AdditivePerturbation
from raiopt.perturbations.solver import Criterion, iterates
from raiopt.sampling import keyed_generator

TARGET_RULES = ("next", "least_likely")
Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """The question put to a model, apart from model and data.

    Args:
        optimizer: Called with the perturbation's parameters; moves them.
        perturbation: Called with a batch of images.
        init: Called as `init(rows, generator=generator)`; writes the start into rows of shape (1, ...).
        criterion: Loss of each sample from logits and classes; what the attack makes large, or small if targeted.
        steps: At least 0; each image passes the model once more than that.
        use_best: Keep each sample's best iterate (fooled before not fooled, then by loss), else the last.
        targeted: Move towards the class that `target` names instead of away from the label.
        target: A class, "next" (the label plus 1) or "least_likely" (smallest clean logit).
        seed: With the sample's id, the key of its random start.

    Raises:
        TypeError, ValueError: If one of the last five has no meaning, or no effect.
    """

    optimizer: Callable[[Iterable[Tensor]], Optimizer]
    perturbation: Callable[[Tensor], AdditivePerturbation]
    init: Callable[..., Any]
    criterion: Criterion
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


def attack_batch(
    model: Model,
    ids: Sequence[int],
    names: Sequence[str],
    images: Tensor,
    labels: Tensor | None,
    attack: Attack,
    on_step: Callable[[], None] = lambda: None,
) -> Outcome:
    """Attacks those of the samples (N, C, H, W) in [0, 1] that are predicted right; returns what is known of all.

    Args:
        ids: The key of each sample, the same in every order and batch.
        labels: Classes (N,); None takes the model's own predictions.
        on_step: Called after each evaluation of the batch.
    """
    with torch.no_grad():
        logits = model(images)
        prediction = logits.argmax(1)
        labels = prediction if labels is None else labels
        goals = attack.goals(logits, labels)
        clean_loss = attack.criterion(logits, goals)
    finite = logits.isfinite().all(1)
    attacked = finite & (prediction == labels)
    if attack.targeted:
        attacked &= goals != labels
    search = None
    if attacked.any():
        chosen = [i for i, is_attacked in zip(ids, attacked.tolist(), strict=True) if is_attacked]
        search = _search(model, chosen, images[attacked], labels[attacked], goals[attacked], attack, on_step)
    return Outcome(ids, names, images, labels, goals, prediction, clean_loss, finite, attacked, search)


def _search(
    model: Model,
    ids: Sequence[int],
    images: Tensor,
    labels: Tensor,
    goals: Tensor,
    attack: Attack,
    on_step: Callable[[], None],
) -> Search:
    perturbation = attack.perturbation(images)
    shared = perturbation.is_shared(images)
    optimizer = attack.optimizer(perturbation.parameters())
    _start_(perturbation.delta, optimizer, perturbation.bounds(images), ids, attack)
    watch = Watch(
        labels,
        goals if attack.targeted else None,
        shared=shared,
        coupled=shared or _couples(optimizer, perturbation.delta),
        use_best=attack.use_best,
    )
    perturbation.delta.register_hook(watch.keep_finite)
    for found in iterates(
        model,
        (lambda data: _into_box(perturbation(data))) if shared else perturbation,
        optimizer,
        images,
        goals,
        steps=attack.steps,
        criterion=attack.criterion,
        targeted=attack.targeted,
    ):
        watch.observe(found, perturbation.delta.detach())
        on_step()
    return watch.result(Ball.of(optimizer))


@torch.no_grad()
def _start_(
    delta: Tensor, optimizer: Optimizer, bounds: tuple[Tensor, Tensor] | None, ids: Sequence[int], attack: Attack
) -> None:
    """Fills `delta` with each sample's own random start, and moves it into the ball and the box.

    Samples that share a perturbation start from the key of the first of them.
    """
    rows = delta.split(1) if bounds else [delta[None]]
    for sample_id, row in zip(ids, rows, strict=False):
        start = torch.zeros(row.shape, dtype=row.dtype)  # on the CPU: the same numbers on every device
        attack.init(start, generator=keyed_generator(attack.seed, sample_id))
        row.copy_(start)
    if bounds:
        for group in optimizer.param_groups:
            group["lower"], group["upper"] = bounds
    if isinstance(optimizer, ParamTransformingOptimizer):
        optimizer.project()


def _couples(optimizer: Optimizer, delta: Tensor) -> bool:
    """Says whether one step's transforms act on several samples of `delta` (n, ...) together."""
    return len(as_batch(delta, optimizer.param_groups[0].get("param_ndim", -1))) < len(delta)


def _into_box(data: Tensor) -> Tensor:
    """Clamps to [0, 1] with the gradient of the identity, so that a pixel at the border can come back."""
    return data + (data.clamp(0, 1) - data).detach()
