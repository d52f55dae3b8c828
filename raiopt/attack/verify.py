"""The check of what an attack claims: the ball, the box and the prediction, again and without the engine."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from raiopt.batching import as_batch, merged_dims

TOLERANCE = 1e-6
"""Relative for the norm, absolute for the box: what rounding to float32 explains."""


@dataclass(frozen=True)
class Ball:
    """The ball that an optimizer keeps its parameter in: its norm, its radius, and what one ball holds.

    Args:
        p: The norm's order; None if there is no ball.
        epsilon: The radius, in units of pixels in [0, 1].
        param_ndim: As in the optimizer: every row of `as_batch(delta, param_ndim)` has a ball of its own.
        scope: What one ball holds if it is not the perturbation of one image: "in all", "per row of ...".
    """

    p: float | None
    epsilon: float | None
    param_ndim: int | None = -1
    scope: str = ""

    @classmethod
    def of(cls, optimizer: Optimizer) -> "Ball":
        """Returns the ball that an optimizer of perturbations (n, C, H, W), or of a shared one (C, H, W), holds."""
        group = optimizer.param_groups[0]
        p, param_ndim = getattr(optimizer, "ball", None), group.get("param_ndim", -1)
        if p is None:
            return cls(None, None, param_ndim)
        shape = group["params"][0].shape
        datum = shape[merged_dims(shape, param_ndim) :]
        scope = "" if len(datum) == 3 or math.isinf(p) else "in all" if len(datum) > 3 else f"per {len(datum)}-d row"
        return cls(p, group["epsilon"], param_ndim, scope)

    def holds(self, delta: Tensor) -> Tensor:
        """Says for each row of `delta` (n, ...) whether it lies in the ball, of shape (n,); norms in float64."""
        if self.p is None or self.epsilon is None:
            return delta.new_ones(len(delta), dtype=torch.bool)
        rows = as_batch(delta.to("cpu", torch.float64), self.param_ndim)
        inside = torch.linalg.vector_norm(rows.flatten(1), self.p, dim=1) <= self.epsilon * (1 + TOLERANCE)
        inside = inside.view(-1, *[1] * (rows.ndim - 1)).expand_as(rows).reshape(delta.shape)
        return inside.flatten(1).all(1).to(delta.device)

    def __str__(self) -> str:
        if self.p is None:
            return "unbounded"
        return f"L{'inf' if math.isinf(self.p) else f'{self.p:g}'} {self.epsilon:g} {self.scope}".rstrip()


@torch.no_grad()
def verify(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, delta: Tensor, ball: Ball
) -> tuple[Tensor, Tensor]:
    """Returns for each sample (n,) whether it is broken beyond doubt, and the model's prediction for it.

    Broken are samples whose perturbation lies in the ball (norm in float64), whose perturbed image lies in [0, 1], and
    which the model, run on batches of another size than before, does not assign to their labels.

    Args:
        model: The plain model in float32.
        images: Clean images (n, C, H, W) in [0, 1].
        delta: (n, C, H, W), or (C, H, W) if all samples share it; images are then clamped to [0, 1], as in the attack.
    """
    perturbed = images + delta
    if delta.shape == images.shape:
        valid = ball.holds(delta) & ((perturbed >= -TOLERANCE) & (perturbed <= 1 + TOLERANCE)).flatten(1).all(1)
    else:
        valid = ball.holds(delta).all()
    outputs = torch.cat([model(part) for part in perturbed.clamp(0, 1).split(max(1, len(images) // 2))])
    prediction = outputs.argmax(1)
    return valid & outputs.isfinite().all(1) & (prediction != labels), prediction
