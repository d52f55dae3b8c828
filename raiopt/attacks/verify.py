"""Verification of an attack: checks ball, box and prediction again, independently of the search."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from raiopt import checks
from raiopt.batching import as_batch, merged_dims
from raiopt.optim import traits_of

TOLERANCE = 1e-6
"""Tolerance for float32 rounding errors: relative for the norm, absolute for the box."""


def exact(x: Tensor) -> Tensor:
    """Returns `x` in float64, on the CPU if its device does not support it."""
    return x.detach().to("cpu" if x.device.type == "mps" else x.device, torch.float64)


@dataclass(frozen=True)
class Ball:
    """The ball to which an optimizer constrains its parameter: norm, radius and scope.

    Args:
        p: The norm's order; None if there is no ball.
        epsilon: The radius, or one radius for each of n rows; for an additive perturbation in units of pixels in
            [0, 1], for p = 0 a number of entries.
        param_ndim: As in the optimizer: every row of `as_batch(parameter, param_ndim)` has its own ball.
        scope: What one ball constrains, if not the perturbation of one image: "in all", "per row of ...".
        pixels: With p = 0: the radius is a number of positions, each with all its channels.
    """

    p: float | None
    epsilon: float | Tensor | None
    param_ndim: int | None = -1
    scope: str = ""
    pixels: bool = False

    @classmethod
    def of(cls, optimizer: Optimizer, *, shared: bool = False, what: str = "") -> "Ball":
        """Returns the ball of an optimizer's parameter, which has shape (n, ...) or is shared by all samples.

        Args:
            what: The parameter's name if it is not simply added to the images.
        """
        group = optimizer.param_groups[0]
        traits, param_ndim = traits_of(optimizer), group.get("param_ndim", -1)
        p = traits.ball
        if p is None:
            return cls(None, None, param_ndim)
        shape = group["params"][0].shape
        datum = shape[merged_dims(shape, param_ndim) :]
        own = shape if shared else shape[1:]
        whole = math.isinf(p) or math.prod(datum) == math.prod(shape) if shared else len(datum) == len(own)
        rows = "" if whole or math.isinf(p) else "in all" if len(datum) > len(own) else f"per {len(datum)}-d row"
        scope = " ".join([f"of the {what}"] * bool(what) + [rows] * bool(rows))
        epsilon = group["epsilon"]
        if isinstance(epsilon, Tensor):
            epsilon = float(epsilon) if epsilon.numel() == 1 else epsilon.expand(shape).reshape(shape[0], -1).amax(1)
        return cls(p, epsilon, param_ndim, scope, p == 0 and traits.pixels)

    def norms(self, parameter: Tensor) -> Tensor:
        """Returns the norm (n,) of each row of the parameter (n, ...) in float64; the L2 norm if there is no ball.

        If a row has several balls, its largest norm is returned.
        """
        rows = as_batch(exact(parameter), self.param_ndim)
        counted = rows.abs().amax(-3) if self.pixels else rows
        norms = torch.linalg.vector_norm(counted.flatten(1), 2.0 if self.p is None else self.p, dim=1)
        count = _count(parameter)
        return (norms.view(count, -1).amax(1) if len(norms) > 1 else norms.expand(count)).to(parameter.device)

    def contains(self, parameter: Tensor) -> Tensor:
        """Returns a mask (n,) of the rows of the parameter (n, ...) that lie in the ball; norms are in float64."""
        norms = self.norms(parameter)
        if self.p is None or self.epsilon is None:
            return torch.ones_like(norms, dtype=torch.bool)
        radius = self.epsilon.reshape(-1).to(norms) if isinstance(self.epsilon, Tensor) else self.epsilon
        return norms <= radius * (1 + TOLERANCE)

    @property
    def is_finite(self) -> bool:
        """Whether the ball constrains the parameter, that is, has a norm and a finite radius."""
        return self.p is not None and not (isinstance(self.epsilon, float) and math.isinf(self.epsilon))

    @property
    def largest_radius(self) -> float:
        """The radius, or the largest one over all rows; infinity if there is no ball."""
        if self.p is None or self.epsilon is None:
            return math.inf
        return float(self.epsilon.max() if isinstance(self.epsilon, Tensor) else self.epsilon)

    def is_same(self, other: "Ball") -> bool:
        """Whether both have the same norm, the same largest radius and the same scope."""
        return all(getattr(self, name) == getattr(other, name) for name in ("p", "largest_radius", "scope", "pixels"))

    def take(self, index: Tensor) -> "Ball":
        """Returns the ball for these rows only, which matters if each row has its own radius."""
        return replace(self, epsilon=self.epsilon[index]) if isinstance(self.epsilon, Tensor) else self

    def __str__(self) -> str:
        norm = None if self.p is None else f"l{self.p:g}"
        epsilon = self.epsilon.tolist() if isinstance(self.epsilon, Tensor) else self.epsilon
        return checks.ball_words(norm, epsilon if self.is_finite else None, pixels=self.pixels, scope=self.scope)


@dataclass(frozen=True)
class Claim:
    """A perturbation of n samples that an attack claims to fool the model; `verify` checks the claim.

    Args:
        parameter: The perturbation's parameter at the best iterate: n rows, or one shared by all samples.
        ball: The ball that must contain the parameter.
        bounds: The parameter's limits, in its shape. None: perturbed images are clamped to [0, 1], as in the attack.
        perturb: Called with the images, applies the perturbation; None: the parameter is added to the images.
        places: The positions of patches, (n, 2): row and column of the upper left corner.
    """

    parameter: Tensor
    ball: Ball
    shared: bool = False
    bounds: tuple[Tensor, Tensor] | None = None
    perturb: Callable[[Tensor], Tensor] | None = None
    places: Tensor | None = None

    @torch.no_grad()
    def perturbed(self, images: Tensor) -> Tensor:
        """Returns the perturbed images, with the shape (n, C, H, W) of the clean images."""
        made = images + self.parameter if self.perturb is None else self.perturb(images)
        return made.clamp(0, 1) if self.bounds is None else made

    def delta(self, images: Tensor) -> Tensor:
        """Returns the perturbed minus the clean images."""
        if self.parameter_is_delta:
            return self.parameter
        return self.perturbed(images) - images

    @property
    def parameter_is_delta(self) -> bool:
        """Whether the parameter equals `delta`: each sample's own row is added to its image, without clamping."""
        return self.perturb is None and self.bounds is not None and not self.shared

    def take(self, index: Tensor) -> "Claim":
        """Returns the claim for only these samples, which must not share the parameter; without `perturb`."""
        bounds = None if self.bounds is None else (self.bounds[0][index], self.bounds[1][index])
        return replace(self, parameter=self.parameter[index], ball=self.ball.take(index), bounds=bounds)

    def is_valid(self) -> Tensor:
        """Returns for each row of the parameter (n,), or once if shared, whether it lies in the ball and its bounds."""
        valid = self.ball.contains(self.parameter)
        if self.bounds is not None:
            low, high = self.bounds
            inside = (self.parameter >= low - TOLERANCE) & (self.parameter <= high + TOLERANCE)
            valid = valid & inside.reshape(_count(inside), -1).all(1)
        return valid.all() if self.shared else valid


def _count(parameter: Tensor) -> int:
    """Returns the number of rows of a parameter; a single number is one row."""
    return len(parameter) if parameter.ndim else 1


@dataclass(frozen=True)
class Verification:
    """The result of verification for n samples: whether each is broken, and the plain model's prediction.

    Args:
        confidence: The probability of the predicted class, in float32 like the logits.
        label_confidence: The probability of the label.
        broken_8bit: Whether each sample is still broken after rounding to 8 bits; None if that was not checked.
    """

    broken: Tensor
    prediction: Tensor
    confidence: Tensor
    label_confidence: Tensor
    broken_8bit: Tensor | None = None


@torch.no_grad()
def verify(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, claim: Claim) -> Verification:
    """Checks a claim with the plain model.

    A sample is broken if its parameter lies in the ball (norm in float64) and in its bounds, its perturbed image lies
    in [0, 1], and the model, run on batches of another size than in the search, does not assign it to its label.

    Args:
        model: The plain model in float32.
        images: Clean images (n, C, H, W) in [0, 1].
    """
    perturbed = claim.perturbed(images)
    in_box = ((perturbed >= -TOLERANCE) & (perturbed <= 1 + TOLERANCE)).flatten(1).all(1)
    outputs = torch.cat([model(part) for part in perturbed.clamp(0, 1).split(max(1, len(images) // 2))])
    prediction = outputs.argmax(1)
    broken = claim.is_valid() & in_box & outputs.isfinite().all(1) & (prediction != labels)
    return Verification(broken, prediction, confidence(outputs, prediction), confidence(outputs, labels))


def confidence(logits: Tensor, classes: Tensor) -> Tensor:
    """Returns the probability (n,) of one class for each row of logits (n, C), in float32."""
    return logits.float().softmax(1).gather(1, classes[:, None])[:, 0]
