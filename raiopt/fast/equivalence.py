"""Checks that a modified model computes the same logits and gradients as the original, and times models."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raiopt.fast.folding import first_line

Model = Callable[[Tensor], Tensor]


class EquivalenceCheck:
    """Compares the logits and gradients of changed models with those of the original, on a few images (n, C, H, W).

    Args:
        accepts_all: Skip all comparisons, because the candidates were compared before, or cannot be compared.

    >>> equivalence = EquivalenceCheck(lambda x: 3 * x.flatten(1), torch.ones(1, 1, 1, 2))
    >>> equivalence.differs(lambda x: 3.00001 * x.flatten(1))
    ''
    >>> equivalence.differs(lambda x: 3 * x.flatten(1).detach())
    'gradients differ by 1 of their norm'
    """

    def __init__(self, model: Model, images: Tensor, *, accepts_all: bool = False) -> None:
        # Add noise: on uniform areas max pooling has ties, and rounding would decide where gradients go.
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
        self.images = images.detach().lerp(noise, 0.1)
        self.model, self.accepts_all = model, accepts_all
        self._expected: tuple[Tensor, Tensor] | None = None

    def expected(self) -> tuple[Tensor, Tensor]:
        """Returns the model's logits and the gradient of the images, computed at the first call."""
        self._expected = self._expected or answer(self.model, self.images)
        return self._expected

    def differs(self, candidate: Model) -> str:
        """Returns a message if the candidate differs by more than rounding errors, else an empty string."""
        if self.accepts_all:
            return ""
        logits, gradient = self.expected()
        try:
            found, found_gradient = answer(candidate, self.images)
        except Exception as error:  # a user's module may raise anything after a change
            return first_line(error)
        # Graphics cards round convolutions to TF32.
        if (off := off_by(found, logits)) > (1e-3 if logits.device.type == "cpu" else 1e-2):
            return f"logits differ by {off:.2g} of the largest"
        norm = gradient.double().norm()
        off = (
            float((found_gradient.double() - gradient.double()).norm() / norm) if norm else float(found_gradient.any())
        )
        return f"gradients differ by {off:.2g} of their norm" if off > 0.05 else ""

    def is_finite(self, candidate: Model) -> bool:
        """Returns whether the candidate's logits are finite wherever the model's are."""
        with torch.no_grad():
            return bool((candidate(self.images).isfinite() | ~self.model(self.images).isfinite()).all())


def answer(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logits, and the gradient of the images (zeros if there is none) for one linear function of them."""
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(images.view_as(images))  # not a leaf tensor, as in the search
        weights = torch.linspace(-1, 1, logits.shape[1]).to(logits)
        loss = (logits * weights).sum()
        gradient = torch.autograd.grad(loss, images, allow_unused=True)[0] if loss.requires_grad else None
    return logits.detach(), torch.zeros_like(images) if gradient is None else gradient


def seconds(models: Sequence[Model], images: Tensor) -> list[float]:
    """Returns each model's better time of two alternating forward and backward passes; warm up the models before."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(2):
        for model, found in zip(models, times, strict=True):
            began = time.perf_counter()
            answer(model, images)[1].sum().item()  # synchronizes with the device
            found.append(time.perf_counter() - began)
    return [min(found) for found in times]


def off_by(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference as a share of the largest magnitude; 1 if different entries are not finite."""
    finite = expected.isfinite()
    if found.shape != expected.shape or not torch.equal(found.isfinite(), finite):
        return 1.0
    found, expected = found[finite].double(), expected[finite].double()
    if torch.equal(found, expected):
        return 0.0
    return float((found - expected).abs().max() / torch.stack([found, expected]).abs().max())
