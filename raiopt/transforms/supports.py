"""Support points: where a linear function is largest over a ball, or over the part of a ball within a box.

    argmax_z <z, x>  s.t.  ||z||_p <= epsilon,  lower <= z <= upper

Up to the sign they are the linear minimisation oracles of Frank-Wolfe methods, and the strongest perturbation of a
linear model in closed form.
"""

import torch
from torch import Tensor

from raiopt.transforms.norms import normalize_, steepest_
from raiopt.transforms.projections import Bound, clamp_, headroom, is_half, project_l2_, project_linf_, round_inwards_
from raiopt.transforms.selection import top_mask


def support_linf_(x: Tensor, epsilon: float | Tensor, lower: Bound = None, upper: Bound = None) -> Tensor:
    """Replaces each datum by the corner of the Linf ball, or of ball ∩ box, that has the largest inner product with it.

    The arguments are those of `project_l2_`; where x is zero, so is the result.

    >>> support_linf_(torch.tensor([[3.0, -4.0, 0.0]]), epsilon=1.0, lower=-0.25)
    tensor([[ 1.0000, -0.2500,  0.0000]])
    """
    return project_linf_(x.sign_().mul_(torch.finfo(x.dtype).max), epsilon, lower, upper)


_FAR = 1e12


def support_l2_(x: Tensor, epsilon: float | Tensor, lower: Bound = None, upper: Bound = None) -> Tensor:
    """Replaces each datum by the point of the L2 ball, or of ball ∩ box, that has the largest inner product with it.

    With a box, it is the projection of a distant point in the direction of x: clip(t x, lower, upper) with the largest
    t for which it lies in the ball. Entries below 1e-12 of the largest one may not reach their bounds.

    >>> support_l2_(torch.tensor([[3.0, 4.0]]), epsilon=1.0, upper=0.75)
    tensor([[0.6614, 0.7500]])
    """
    if is_half(x):
        return round_inwards_(x, support_l2_(x.float(), epsilon, lower, upper))
    if lower is None and upper is None:
        return normalize_(x, 2).mul_(epsilon)
    return project_l2_(normalize_(x, float("inf")).mul_(_FAR).mul_(epsilon), epsilon, lower, upper)


def support_l1_(x: Tensor, epsilon: float | Tensor, lower: Bound = None, upper: Bound = None) -> Tensor:
    """Replaces each datum by the point of the L1 ball, or of ball ∩ box, that has the largest inner product with it.

    Without a box, all of epsilon goes to the largest entry, shared among ties. With a box, entries are moved to their
    bounds, the largest first, until epsilon is used up: a fractional knapsack.

    >>> support_l1_(torch.tensor([[3.0, -4.0]]), epsilon=1.0)
    tensor([[ 0., -1.]])
    >>> support_l1_(torch.tensor([[3.0, -4.0]]), epsilon=1.0, lower=-0.75)
    tensor([[ 0.2500, -0.7500]])
    """
    if is_half(x):
        return round_inwards_(x, support_l1_(x.float(), epsilon, lower, upper))
    if lower is None and upper is None:
        return steepest_(x, 1).mul_(epsilon)
    order = x.abs().flatten(1).argsort(1, descending=True)
    bounds = clamp_(headroom(x, lower, upper), upper=epsilon).flatten(1).gather(1, order)
    radius = epsilon.reshape(-1, 1) if isinstance(epsilon, Tensor) else epsilon
    filled = (radius - (bounds.cumsum(1) - bounds)).clamp_(min=0).minimum(bounds)
    return x.sign_().mul_(torch.zeros_like(filled).scatter_(1, order, filled).view_as(x))


def support_l0_(x: Tensor, epsilon: float | Tensor, lower: Bound, upper: Bound) -> Tensor:
    """Replaces each datum by the point of the L0 ball within a box that has the largest inner product with it.

    The `epsilon` entries with the largest gain move to their bounds; without bounds, no such point exists.

    Raises:
        ValueError: If a bound is None.

    >>> support_l0_(torch.tensor([[3.0, -4.0, 2.0]]), epsilon=2, lower=-0.2, upper=1.0)
    tensor([[1., -0., 1.]])
    """
    if lower is None or upper is None:
        raise ValueError("lower and upper must not be None: an L0 ball has a support point only within a box.")
    limits = headroom(x, lower, upper)
    count = epsilon.floor() if isinstance(epsilon, Tensor) else int(epsilon)
    chosen = top_mask(x.abs().mul_(limits), count)
    return x.sign_().mul_(limits.mul_(chosen))
