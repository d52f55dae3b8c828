"""The largest entries of each datum."""

import math

import torch
from torch import Tensor

from raiopt import checks


def keep_top_(x: Tensor, q: float) -> Tensor:
    """Sets to zero, in each datum, the fraction `q` of entries with the smallest magnitude.

    Of d entries, exactly round((1 - q) d) are kept, at least one unless q is 1; ties are broken arbitrarily.

    Args:
        x: Shape (N, d0, ...).
        q: In [0, 1].

    >>> keep_top_(torch.tensor([[1.0, -4.0, 3.0, 2.0]]), q=0.5)
    tensor([[ 0., -4.,  3.,  0.]])
    """
    checks.number("q", q, low=0, high=1, scalar=True)
    entries = math.prod(x.shape[1:])
    count = max(round((1.0 - q) * entries), int(q < 1))
    return x if count == entries else x.mul_(top_mask(x.abs(), count))


def top_mask(x: Tensor, count: int | Tensor) -> Tensor:
    """Returns 1 for the `count` largest entries of each datum and 0 for the others, in the shape and type of `x`.

    Args:
        x: Shape (N, d0, ...).
        count: One number, or one for each datum, of shape (N, 1, ...).
    """
    flat = x.flatten(1)
    mask = torch.zeros_like(flat)
    if isinstance(count, Tensor):
        is_top = (torch.arange(flat.shape[1], device=x.device) < count.reshape(-1, 1)).expand(flat.shape)
        return mask.scatter_(1, flat.argsort(dim=1, descending=True, stable=True), is_top.to(x.dtype)).view(x.shape)
    chosen = flat.topk(min(count, flat.shape[1]), sorted=False).indices
    return mask.scatter_(1, chosen, 1.0).view(x.shape)
