"""In-place mathematics on tensors of shape (N, d0, ...): each function treats each of the N data alone.

Composing is calling one after another. Nothing here waits for the device or knows an optimizer.
"""

import math

import torch
from torch import Tensor

from raiopt import checks


def norms(x: Tensor, p: float) -> Tensor:
    """Returns the p-norm of each datum, of shape (N, 1, ...), without under- or overflow of the powers.

    Args:
        x: Shape (N, d0, ...).
        p: 1, 2 or infinity.
    """
    checks.choice("p", p, (1, 2, math.inf))
    if x.ndim < 2:
        raise ValueError(f"x of shape {tuple(x.shape)} must have the shape (N, d0, ...): see raiopt.as_batch.")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    dims = tuple(range(1, x.ndim))
    largest = torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True))  # amax(|x|) without a copy
    if p == math.inf:
        return largest
    limits = torch.finfo(x.dtype)
    unit = largest.clamp(limits.tiny, limits.max)
    powers = (x / unit).square_() if p == 2 else (x / unit).abs_()
    # torch sums in pairs, so that float32 serves for the last dimension; a float64 copy of all powers is many times
    # slower, one of the sums costs nothing.
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    total = powers.sum(-1, keepdim=True).flatten(1).sum(1, dtype=wide).view_as(largest)
    return (total.sqrt() if p == 2 else total) * unit


def normalize_(x: Tensor, p: float, eps: float | None = None) -> Tensor:
    """Scales each datum so that its p-norm is 1; a zero datum stays zero.

    Args:
        x: Shape (N, d0, ...).
        p: See `norms`.
        eps: Divide by no less than this. None: the smallest normal number of the type of `x`, float32 at least.

    >>> normalize_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), p=2)
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    work = torch.promote_types(x.dtype, torch.float32)
    least = max(eps or 0.0, torch.finfo(work).tiny)
    return x.div_(norms(x, p).clamp(min=least).to(work))


def project_l2_(
    x: Tensor,
    epsilon: float | Tensor,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
) -> Tensor:
    """Moves each datum to the nearest point of the L2 ball around the origin, or of the ball within a box.

    With a box, the nearest point is clip(s x, lower, upper) with the largest s in (0, 1] for which it lies in the
    ball. Its squared norm is a concave, increasing, piecewise linear function of s²: Newton's method, started below
    the solution, rises to it and never leaves the ball.

    Args:
        x: Shape (N, d0, ...).
        epsilon: The radius, or a radius for each datum, of shape (N, 1, ...).
        lower: At most 0, broadcastable to `x`. None: no bound.
        upper: At least 0, broadcastable to `x`. None: no bound.

    >>> project_l2_(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), epsilon=1.0)
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    >>> project_l2_(torch.tensor([[3.0, 4.0]]), epsilon=1.0, upper=0.6)
    tensor([[0.6000, 0.6000]])
    """
    if lower is not None or upper is not None:
        x.mul_(_box_scale(x, epsilon, lower, upper))
        clamp_(x, lower, upper)
    size = norms(x, 2)
    work = torch.promote_types(x.dtype, torch.float32)
    # Rounding must not lift a datum out of the ball: aim below the sphere by a few units in the last place.
    shrink = epsilon / size * (1 - max(4 * torch.finfo(work).eps, torch.finfo(x.dtype).eps))
    return x.mul_(torch.where(size > epsilon, shrink, 1.0).to(work))


# Perturbations of images take 8 at most, nearly always 4. After too few, a datum is still in the ball and in the box.
_NEWTON_STEPS = 10


def _box_scale(
    x: Tensor, epsilon: float | Tensor, lower: float | Tensor | None, upper: float | Tensor | None
) -> Tensor:
    """Returns the s of each datum for which clip(s x, lower, upper) is its nearest point of ball and box.

    Masks are numbers here: torch.where is many times slower than a product on the CPU.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    limits = torch.finfo(x.dtype)
    dims = tuple(range(1, x.ndim))
    unit = epsilon.to(x.dtype).clamp(min=limits.tiny) if isinstance(epsilon, Tensor) else max(epsilon, limits.tiny)
    walls = clamp_(x.sign().mul_(limits.max), lower, upper).div_(unit).square_()
    powers = (x / unit).square_().clamp_(max=limits.max / max(1, math.prod(x.shape[1:])))  # so that sums stay finite
    knots = walls / powers  # from this value of s² on, an entry stands at its wall
    scale = powers.sum(dims, keepdim=True).clamp_(min=1.0).reciprocal_()
    free, inside = torch.empty_like(x), torch.empty_like(x)
    for _ in range(_NEWTON_STEPS):
        slope = torch.gt(knots, scale, out=free).mul_(powers).sum(dims, keepdim=True)
        value = torch.minimum(torch.mul(powers, scale, out=inside), walls, out=inside).sum(dims, keepdim=True)
        scale = torch.addcdiv(scale, (1.0 - value).clamp_(min=0.0), slope.clamp_(min=limits.tiny)).clamp_(max=1.0)
    return scale.sqrt_()


def project_linf_(
    x: Tensor,
    epsilon: float | Tensor,
    lower: float | Tensor | None = None,
    upper: float | Tensor | None = None,
) -> Tensor:
    """Moves each datum to the nearest point of the Linf ball around the origin, or of the ball within a box.

    The arguments are those of `project_l2_`. As the box holds the origin, clamping twice is exact.

    >>> project_linf_(torch.tensor([[3.0, -4.0, 0.5]]), epsilon=1.0, lower=-0.25)
    tensor([[ 1.0000, -0.2500,  0.5000]])
    """
    return clamp_(clamp_(x, -epsilon, epsilon), lower, upper)


def clamp_(x: Tensor, lower: float | Tensor | None = None, upper: float | Tensor | None = None) -> Tensor:
    """Moves each entry into [lower, upper], where None is no bound and numbers and tensors may be mixed."""
    low, high = (bound.to(x.dtype) if isinstance(bound, Tensor) else bound for bound in (lower, upper))
    if isinstance(low, Tensor) == isinstance(high, Tensor) and low is not None and high is not None:
        return x.clamp_(low, high)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if low is not None:
        x.clamp_(min=low)
    if high is not None:
        x.clamp_(max=high)
    return x
