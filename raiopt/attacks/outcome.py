"""What an attack found out about a batch, and the watch that collects it while the search runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raiopt.attacks.verify import Claim
from raiopt.perturbations.solver import Best, Iterate


@dataclass(frozen=True)
class Search:
    """What the search found for the n attacked samples of a batch; tensors of shape (n,) where nothing else is said."""

    claim: Claim
    prediction: Tensor
    loss: Tensor
    fooled: Tensor
    best_step: Tensor
    first_fooled: Tensor  # -1: never
    not_finite: Tensor  # the step of the first output or gradient that was not finite; -1: none
    losses: Tensor  # (steps + 1, n)
    fooled_at: Tensor  # (steps + 1, n)
    stuck: Tensor  # whether the gradient was zero at every step
    coupled: bool  # samples act together, so that one iterate was kept for all


@dataclass(frozen=True)
class Outcome:
    """What is known of a batch (N,) after its attack; `search` concerns the samples that `attacked` marks."""

    ids: Sequence[int]
    names: Sequence[str]
    images: Tensor
    labels: Tensor
    goals: Tensor  # the class that the loss refers to: the label, or the target
    clean_prediction: Tensor
    clean_loss: Tensor
    finite: Tensor  # whether the clean output was
    attacked: Tensor
    search: Search | None


class Watch:
    """Observes every iterate of a search: keeps the best, the losses, and when a sample was fooled or not finite.

    Args:
        labels: Classes (n,) of the samples.
        goals: The classes (n,) to be reached; None if the samples are to be moved away from their labels.
        shared: The samples share one parameter.
        coupled: They share it or a ball, so that one iterate must be kept for all of them.
        use_best: Keep the best iterate; else the last.
    """

    def __init__(self, labels: Tensor, goals: Tensor | None, *, shared: bool, coupled: bool, use_best: bool) -> None:
        self.labels, self.goals, self.use_best = labels, goals, use_best
        self.shared, self.coupled = shared, coupled
        self.first_fooled = torch.full_like(labels, -1)
        self.not_finite = torch.full_like(labels, -1)
        self.stuck = torch.ones_like(labels, dtype=torch.bool)
        self.losses: list[Tensor] = []
        self.fooled_at: list[Tensor] = []
        self.best = Best()

    def observe(self, found: Iterate, parameter: Tensor) -> None:
        """Takes note of the next iterate and of the parameter that made it."""
        step = len(self.losses)
        finite = found.logits.isfinite().all(1) & found.losses.isfinite()
        prediction = found.logits.argmax(1)
        fooled = finite & (prediction != self.labels if self.goals is None else prediction == self.goals)
        self.losses.append(found.losses)
        self.fooled_at.append(fooled)
        self.not_finite = _first(self.not_finite, ~finite, step)
        self.first_fooled = _first(self.first_fooled, fooled, step)
        steps = torch.full_like(self.labels, step)
        gain = found.losses if self.goals is None else -found.losses
        scores = [fooled.to(gain.dtype), gain] if self.use_best else [steps]
        self.best.update(
            [score.nansum() for score in scores] if self.coupled else scores,
            parameter=parameter,
            prediction=prediction,
            loss=found.losses,
            fooled=fooled,
            best_step=steps,
        )

    def keep_finite(self, gradient: Tensor) -> Tensor:
        """Returns the parameter's gradient, zero for each sample whose gradient is not finite, and notes the step."""
        finite = gradient.isfinite()
        rows = finite.all() if self.shared else finite.reshape(len(finite), -1).all(1)
        self.not_finite = _first(self.not_finite, ~rows, len(self.losses) - 1)
        moving = gradient.any() if self.shared else gradient.reshape(len(gradient), -1).any(1)
        self.stuck &= ~moving
        return torch.where(rows.view(rows.shape + (1,) * (gradient.ndim - rows.ndim)), gradient, 0)

    def result(self, claim: Callable[[Tensor], Claim]) -> Search:
        """Returns what was found, once the last iterate has been observed; `claim` is called with the parameter."""
        best = dict(self.best.values)
        return Search(
            claim=claim(best.pop("parameter")),
            **best,
            first_fooled=self.first_fooled,
            not_finite=self.not_finite,
            stuck=self.stuck & (len(self.losses) > 1),
            losses=torch.stack(self.losses),
            fooled_at=torch.stack(self.fooled_at),
            coupled=self.coupled,
        )


def _first(known: Tensor, happened: Tensor, step: int) -> Tensor:
    return torch.where(happened & (known < 0), step, known)
