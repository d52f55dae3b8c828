"""Projections of data onto balls around the origin, and onto the intersection of a ball and a box."""

import math

import torch
from torch import Tensor

from raiopt.transforms.looking import all_between, can_read_cheaply
from raiopt.transforms.norms import norms
from raiopt.transforms.selection import top_mask

Bound = float | Tensor | None


def clamp_(x: Tensor, lower: Bound = None, upper: Bound = None) -> Tensor:
    """Clamps each entry to [lower, upper]; None means no bound, and numbers and tensors may be mixed."""
    if isinstance(lower, Tensor):
        lower = lower.to(x.dtype)
    if isinstance(upper, Tensor):
        upper = upper.to(x.dtype)
    if isinstance(lower, Tensor) == isinstance(upper, Tensor) and lower is not None and upper is not None:
        return x.clamp_(lower, upper)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if lower is not None:
        x.clamp_(min=lower)
    if upper is not None:
        x.clamp_(max=upper)
    return x


def project_linf_(x: Tensor, epsilon: float | Tensor, lower: Bound = None, upper: Bound = None) -> Tensor:
    """Moves each datum to the nearest point of the Linf ball around the origin, or of the ball within a box:

        argmin_z ||z - x||_2  s.t.  ||z||_inf <= epsilon,  lower <= z <= upper

    The arguments are those of `project_l2_`. As the box contains the origin, clamping twice is exact.

    >>> project_linf_(torch.tensor([[3.0, -4.0, 0.5]]), epsilon=1.0, lower=-0.25)
    tensor([[ 1.0000, -0.2500,  0.5000]])
    """
    if is_half(x):
        return round_inwards_(x, project_linf_(x.float(), epsilon, lower, upper))
    return clamp_(clamp_(x, -epsilon, epsilon), lower, upper)


def is_half(x: Tensor) -> bool:
    """Returns whether entries have 16 bits, so that rounding may move a point out of a ball by one percent."""
    return torch.finfo(x.dtype).bits < 32


def round_inwards_(x: Tensor, exact: Tensor) -> Tensor:
    """Writes `exact` into `x` (half precision), rounded towards zero, so that it stays in ball and box."""
    further = x.copy_(exact).abs() > exact.abs()
    x.view(torch.int16).sub_(further.to(torch.int16))  # subtract one unit in the last place; the sign is a separate bit
    return x


def project_l2_(x: Tensor, epsilon: float | Tensor, lower: Bound = None, upper: Bound = None) -> Tensor:
    """Moves each datum to the nearest point of the L2 ball around the origin, or of the ball within a box:

        argmin_z ||z - x||_2  s.t.  ||z||_2 <= epsilon,  lower <= z <= upper

    With a box, the nearest point is clip(s x, lower, upper) with the largest s in (0, 1] for which it lies in the
    ball. Its squared norm is a concave, increasing, piecewise linear function of s², so Newton's method, started below
    the solution, converges from below and never leaves the ball.

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
    if is_half(x):
        return round_inwards_(x, project_l2_(x.float(), epsilon, lower, upper))
    if lower is not None or upper is not None:
        x.mul_(_box_scale(x, epsilon, lower, upper))
        clamp_(x, lower, upper)
    return _shrink_(x, epsilon, 2)


def _shrink_(x: Tensor, epsilon: float | Tensor, p: float) -> Tensor:
    """Scales each datum with p-norm above epsilon to slightly below epsilon, so that rounding never exceeds it."""
    size = norms(x, p)
    if not isinstance(epsilon, Tensor) and all_between(size, -1.0, math.nextafter(epsilon, math.inf)):
        return x
    inner = 1 - 4 * torch.finfo(size.dtype).eps
    return x.mul_(torch.where(size > epsilon, (epsilon * inner) / size, 1.0).to(size.dtype))


# Image perturbations take 4 iterations, rarely up to 8; more are only needed for extreme magnitudes. Even with too few
# iterations, a datum is inside ball and box.
_NEWTON_STEPS = 16


def _box_scale(x: Tensor, epsilon: float | Tensor, lower: Bound, upper: Bound) -> Tensor:
    """Returns for each datum the s for which clip(s x, lower, upper) is its projection onto ball and box.

    Masks are numbers here, because torch.where is many times slower than a product on the CPU.
    """
    info = torch.finfo(x.dtype)
    dims = tuple(range(1, x.ndim))
    unit = epsilon.to(x.dtype).clamp(min=info.tiny) if isinstance(epsilon, Tensor) else max(epsilon, info.tiny)
    limits = headroom(x, lower, upper).div_(unit).square_()
    powers = (x / unit).square_().clamp_(max=info.max / max(1, math.prod(x.shape[1:])))  # so that sums stay finite
    breakpoints = limits / powers  # for s² above this value, an entry is at its limit
    scale = powers.sum(dims, keepdim=True).clamp_(min=1.0).reciprocal_()
    free, inside = torch.empty_like(x), torch.empty_like(x)
    for _ in range(_NEWTON_STEPS):
        value = torch.minimum(torch.mul(powers, scale, out=inside), limits, out=inside).sum(dims, keepdim=True)
        gap = (1.0 - value).clamp_(min=0.0).mul_(scale < 1)  # 0 for a datum that is already inside
        if all_between(gap, -1.0, 4 * info.eps):
            break
        slope = torch.gt(breakpoints, scale, out=free).mul_(powers).sum(dims, keepdim=True)
        scale = torch.addcdiv(scale, gap, slope.clamp_(min=info.tiny)).clamp_(max=1.0)
    return scale.sqrt_()


def project_l1_(x: Tensor, epsilon: float | Tensor, lower: Bound = None, upper: Bound = None) -> Tensor:
    """Moves each datum to the nearest point of the L1 ball around the origin, or of the ball within a box:

        argmin_z ||z - x||_2  s.t.  ||z||_1 <= epsilon,  lower <= z <= upper

    The nearest point moves all entries towards zero by the same amount, no further than zero, and then into the box
    (Duchi et al. 2008, https://doi.org/10.1145/1390156.1390191; Croce and Hein 2021, https://arxiv.org/abs/2103.01208).
    The arguments are those of `project_l2_`; in float32 it is exact for |x| up to 1e12 epsilon.

    >>> project_l1_(torch.tensor([[3.0, -2.5, 0.1]]), epsilon=1.0)
    tensor([[ 0.7500, -0.2500,  0.0000]])
    >>> project_l1_(torch.tensor([[3.0, -2.5, 0.1]]), epsilon=1.0, upper=0.5)
    tensor([[ 0.5000, -0.5000,  0.0000]])
    """
    if is_half(x):
        return round_inwards_(x, project_l1_(x.float(), epsilon, lower, upper))
    limits = headroom(x, lower, upper) if lower is not None or upper is not None else None
    size = x.abs()
    radius = epsilon.to(x.dtype) if isinstance(epsilon, Tensor) else epsilon
    near = size if limits is None else size.minimum(limits)
    if not isinstance(radius, Tensor) and all_between(_total(near), -1.0, math.nextafter(radius, math.inf)):
        return x.sign_().mul_(near)
    _soften_(size, size, _level(size, limits, radius))
    if limits is not None:
        torch.minimum(size, limits, out=size)
    return _shrink_(x.sign_().mul_(size), epsilon, 1)


# Image perturbations take 10 to 20 iterations. A third of them halve the bracket, which suffices for float32.
_L1_STEPS = 90


def _level(size: Tensor, limits: Tensor | None, radius: float | Tensor) -> Tensor:
    """Returns the level (N, 1, ...) by which entries must shrink so that, within their limits, they sum to `radius`.

    The sum decreases with the level, and is piecewise linear and mostly convex: Newton's method from the lower end of a
    bracket and the chord of the bracket approach the solution from both sides.
    """
    wide = torch.float32 if size.device.type == "mps" else torch.float64  # the level resolves small differences of size
    high = size.amax(tuple(range(1, size.ndim)), keepdim=True).to(wide)
    low, below = torch.zeros_like(high), torch.zeros_like(high) - radius
    level, above, slope = low, below, torch.ones_like(high)  # the excess over the radius at both ends
    left, free, inner = torch.empty_like(size), torch.empty_like(size), torch.empty_like(size)
    close = 2 * torch.finfo(size.dtype).eps * radius
    for step in range(_L1_STEPS):
        _soften_(left, size, level)
        torch.gt(left, 0, out=free)
        if limits is not None:
            free.mul_(torch.lt(left, limits, out=inner))
            torch.minimum(left, limits, out=left)
        excess = (_total(left) - radius).to(wide)
        done = (excess.abs() <= close) | ((level == 0) & (excess < 0))
        if can_read_cheaply(size) and bool(done.all()):
            return level
        is_low = excess > 0
        low, above = torch.where(is_low, level, low), torch.where(is_low, excess, above)
        high, below = torch.where(is_low, high, level), torch.where(is_low, below, excess)
        slope = torch.where(is_low, _total(free).to(wide).clamp_(min=1.0), slope)
        rise = (above / slope, (high - low) * above / (above - below), (high - low) / 2)[step % 3]
        level = torch.where(done, level, low + rise.minimum(high - low))
    return torch.where(done, level, torch.where(above < -below, low, high))  # pyright: ignore[reportPossiblyUnboundVariable]


def _soften_(left: Tensor, size: Tensor, level: Tensor) -> Tensor:
    """Writes max(size - level, 0) into `left`; the level is subtracted in two parts to avoid rounding errors."""
    coarse = level.to(size.dtype)
    return torch.sub(size, coarse, out=left).sub_((level - coarse).to(size.dtype)).clamp_(min=0)


def _total(x: Tensor) -> Tensor:
    return x.sum(tuple(range(1, x.ndim)), keepdim=True)


def project_l0_(
    x: Tensor, epsilon: float | Tensor, lower: Bound = None, upper: Bound = None, *, pixels: bool = False
) -> Tensor:
    """Moves each datum to a nearest point of the L0 ball around the origin, or of the ball within a box:

        argmin_z ||z - x||_2  s.t.  ||z||_0 <= epsilon,  lower <= z <= upper

    The entries that reduce the squared distance most, by x² - (x - clip(x))², are clipped; the others become zero.
    The arguments are those of `project_l2_`; of equal entries at the threshold any are kept.

    Args:
        epsilon: A number of entries, rounded down.
        pixels: Count positions instead, each with all its channels: the third dimension from the end of (N, C, H, W).

    Raises:
        ValueError: If `pixels` is set and the data have fewer than three dimensions: they hold no channels then.

    >>> project_l0_(torch.tensor([[3.0, -2.0, 1.0]]), epsilon=1)
    tensor([[3., -0., 0.]])
    >>> project_l0_(torch.tensor([[3.0, -2.0, 1.0]]), epsilon=1, upper=0.5)
    tensor([[ 0., -2.,  0.]])
    """
    if pixels and x.ndim < 4:
        raise ValueError(f"pixels=True needs data (N, C, H, W), but x has the shape {tuple(x.shape)}.")
    unit = norms(x, math.inf)
    unit.clamp_(min=torch.finfo(unit.dtype).tiny)
    scaled = x / unit
    clamp_(x, lower, upper)
    kept = x / unit
    gains = kept.mul_(scaled.mul_(2).sub_(kept))
    gains.add_(
        x.ne(0), alpha=torch.finfo(gains.dtype).tiny
    )  # an entry whose gain underflows still ranks above zero entries
    mask = top_mask(gains.sum(-3, keepdim=True) if pixels else gains, _whole(epsilon))
    return x.mul_(mask)


def _whole(epsilon: float | Tensor) -> int | Tensor:
    return epsilon.floor() if isinstance(epsilon, Tensor) else math.floor(epsilon)


def headroom(x: Tensor, lower: Bound, upper: Bound) -> Tensor:
    """Returns how far each entry may move away from zero in its own direction until it reaches its bound."""
    return clamp_(x.sign().mul_(torch.finfo(x.dtype).max), lower, upper).abs_()
