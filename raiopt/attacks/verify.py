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
        epsilon: The radius; of an additive perturbation in units of pixels in [0, 1], with p = 0 a number of entries.
        param_ndim: As in the optimizer: every row of `as_batch(parameter, param_ndim)` has a ball of its own.
        scope: What one ball holds if it is not the perturbation of one image: "in all", "per row of ...".
        pixels: With p = 0: the radius is a number of positions, each with all its channels.
    """

    p: float | None
    epsilon: float | None
    param_ndim: int | None = -1
    scope: str = ""
    pixels: bool = False

    @classmethod
    def of(cls, optimizer: Optimizer, *, shared: bool = False, what: str = "") -> "Ball":
        """Returns the ball that an optimizer holds a parameter in: (n, ...), or one that all samples share.

        Args:
            what: The parameter's name if it is not simply added to the images.
        """
        group = optimizer.param_groups[0]
        p, param_ndim = getattr(optimizer, "ball", None), group.get("param_ndim", -1)
        if p is None:
            return cls(None, None, param_ndim)
        shape = group["params"][0].shape
        datum = shape[merged_dims(shape, param_ndim) :]
        own = shape if shared else shape[1:]
        whole = math.isinf(p) or math.prod(datum) == math.prod(shape) if shared else len(datum) == len(own)
        rows = "" if whole or math.isinf(p) else "in all" if len(datum) > len(own) else f"per {len(datum)}-d row"
        scope = " ".join([f"of the {what}"] * bool(what) + [rows] * bool(rows))
        return cls(p, group["epsilon"], param_ndim, scope, p == 0 and getattr(optimizer, "pixels", False))

    def holds(self, parameter: Tensor) -> Tensor:
        """Says for each row of the parameter (n, ...) whether it lies in the ball, of shape (n,); norms in float64."""
        if self.p is None or self.epsilon is None:
            return _rows(torch.ones_like(parameter, dtype=torch.bool), parameter).all(1)
        rows = as_batch(parameter.to("cpu", torch.float64), self.param_ndim)
        counted = rows.abs().amax(-3) if self.pixels else rows
        inside = torch.linalg.vector_norm(counted.flatten(1), self.p, dim=1) <= self.epsilon * (1 + TOLERANCE)
        inside = inside.view(-1, *[1] * (rows.ndim - 1)).expand_as(rows)
        return _rows(inside, parameter).all(1).to(parameter.device)

    def __str__(self) -> str:
        if self.p is None:
            return "unbounded"
        norm = "inf" if math.isinf(self.p) else f"{self.p:g}"
        return " ".join([f"L{norm} {self.epsilon:g}", *["pixels"] * self.pixels, *[self.scope] * bool(self.scope)])


@dataclass(frozen=True)
class Claim:
    """What an attack claims to break n samples with.

    Args:
        parameter: Of the perturbation, at the iterate that was kept: n rows, or one that all samples share.
        ball: Holds the parameter.
        bounds: The least and the largest values of the parameter, shaped like it. None: perturbed images are clamped
            to [0, 1], as in the attack.
        perturb: The perturbation at that parameter, called with the images; None: it is added to them.
        places: Of patches, (n, 2): row and column of the upper left corner.
    """

    parameter: Tensor
    ball: Ball
    shared: bool = False
    bounds: tuple[Tensor, Tensor] | None = None
    perturb: Callable[[Tensor], Tensor] | None = None
    places: Tensor | None = None

    @torch.no_grad()
    def perturbed(self, images: Tensor) -> Tensor:
        """Returns the perturbed images, of the shape (n, C, H, W) of the clean ones."""
        made = images + self.parameter if self.perturb is None else self.perturb(images)
        return made.clamp(0, 1) if self.bounds is None else made

    def delta(self, images: Tensor) -> Tensor:
        """Returns what the perturbed images differ by from the clean ones, of their shape."""
        if self.parameter_is_delta:
            return self.parameter
        return self.perturbed(images) - images

    @property
    def parameter_is_delta(self) -> bool:
        """Whether the parameter is that difference: it is added, to each sample its own, and nothing is clamped."""
        return self.perturb is None and self.bounds is not None and not self.shared

    def holds(self) -> Tensor:
        """Says for each row of the parameter (n,), or once for all, whether it lies in the ball and its bounds."""
        valid = self.ball.holds(self.parameter)
        if self.bounds is not None:
            low, high = self.bounds
            inside = (self.parameter >= low - TOLERANCE) & (self.parameter <= high + TOLERANCE)
            valid = valid & _rows(inside, inside).all(1)
        return valid.all() if self.shared else valid


def _rows(entries: Tensor, parameter: Tensor) -> Tensor:
    """Returns the entries, in the order of the parameter's, as a matrix with one line for each row of the parameter."""
    return entries.reshape(len(parameter) if parameter.ndim else 1, -1)


@torch.no_grad()
def verify(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, claim: Claim) -> tuple[Tensor, Tensor]:
    """Returns for each sample (n,) whether it is broken beyond doubt, and the model's prediction for it.

    Broken are samples whose parameter lies in the ball (norm in float64) and in its bounds, whose perturbed image lies
    in [0, 1], and which the model, run on batches of another size than before, does not assign to their labels.

    Args:
        model: The plain model in float32.
        images: Clean images (n, C, H, W) in [0, 1].
    """
    perturbed = claim.perturbed(images)
    in_box = ((perturbed >= -TOLERANCE) & (perturbed <= 1 + TOLERANCE)).flatten(1).all(1)
    outputs = torch.cat([model(part) for part in perturbed.clamp(0, 1).split(max(1, len(images) // 2))])
    prediction = outputs.argmax(1)
    return claim.holds() & in_box & outputs.isfinite().all(1) & (prediction != labels), prediction
