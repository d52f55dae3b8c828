"""Norms of data, and scaling data to norm 1."""

import math

import torch
from torch import Tensor

from raiopt import checks
from raiopt.transforms.looking import all_between


def norms(x: Tensor, p: float) -> Tensor:
    """Returns the p-norm of each datum, of shape (N, 1, ...), without underflow or overflow of powers.

    Args:
        x: Shape (N, d0, ...).
        p: At least 1; may be infinity.
    """
    if p not in (1, 2):
        check_order(p)
    if x.ndim < 2:
        raise ValueError(f"x of shape {tuple(x.shape)} must have the shape (N, d0, ...): see raiopt.as_batch.")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if p == math.inf:
        return _largest(x)
    # Powers may underflow only if they are negligible: each below eps² of the sum.
    limits = torch.finfo(x.dtype)
    least = 0.0 if p == 1 else (limits.tiny / limits.eps**2) ** (1 / p)
    plain = _plain_norms(x, p)
    if all_between(plain, least, math.inf):
        return plain
    unit = _largest(x).clamp(limits.tiny, limits.max)
    return torch.where((plain > least) & (plain < math.inf), plain, _plain_norms(x / unit, p) * unit)


def check_order(p: float) -> float:
    """Returns p; raises unless it is the order of a norm."""
    return p if p == math.inf else checks.number("p", p, low=1, scalar=True, remedy="Infinity is allowed too.")


def _largest(x: Tensor) -> Tensor:
    dims = tuple(range(1, x.ndim))
    return torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True))  # amax(|x|) without a copy


def _plain_norms(x: Tensor, p: float) -> Tensor:
    """Returns the p-norms by powers and roots; in float32 they are exact to a few units in the last place."""
    dims = tuple(range(1, x.ndim))
    if p == 2:
        flat = x.flatten(1) if x.is_contiguous() else None
        size = x.square().sum(dims).sqrt_() if flat is None else _l2_norms(flat)
        return size.view(-1, *[1] * len(dims))
    if p == 1:
        return x.abs().sum(dims, keepdim=True)
    return x.abs().pow_(p).sum(dims, keepdim=True).pow_(1 / p)


def _l2_norms(x: Tensor) -> Tensor:
    """Returns the L2 norms (N,) of x (N, d).

    torch's vector_norm is several times faster than its sum, but adds sequentially, so it is accurate only for short
    pieces; the sum uses pairwise summation.
    """
    if x.shape[1] <= 256:
        return torch.linalg.vector_norm(x, 2, dim=1)
    piece = math.gcd(x.shape[1], 256)
    if piece < 64:
        return x.square().sum(1).sqrt_()
    return _l2_norms(torch.linalg.vector_norm(x.view(len(x), -1, piece), 2, dim=2))


def normalize_(x: Tensor, p: float, eps: float | None = None) -> Tensor:
    """Scales each datum so that its p-norm is 1; a zero datum stays zero.

    Args:
        x: Shape (N, d0, ...).
        p: See `norms`.
        eps: Lower bound of the divisor. None: the smallest normal number of the type of `x` (at least float32).

    >>> normalize_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), p=2)
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    size = norms(x, p)
    return x.div_(size.clamp_(min=max(eps or 0.0, torch.finfo(size.dtype).tiny)))


def steepest_(x: Tensor, p: float) -> Tensor:
    """Replaces each datum by the point of the Lp unit ball that has the largest inner product with it.

    That inner product is the dual norm of the datum. For p=inf the result is the sign, for p=2 the datum divided by its
    norm, for p=1 the sign of the largest entry, shared equally among ties; otherwise each entry becomes
    sign(x) |x|^(q - 1) with 1/p + 1/q = 1, scaled to norm 1. A zero datum stays zero.

    Args:
        x: Shape (N, d0, ...).
        p: See `norms`.

    >>> steepest_(torch.tensor([[3.0, -4.0, 4.0]]), p=1)
    tensor([[ 0.0000, -0.5000,  0.5000]])
    >>> steepest_(torch.tensor([[3.0, -4.0, 4.0]]), p=float("inf"))
    tensor([[ 1., -1.,  1.]])
    """
    check_order(p)
    if p == math.inf:
        return x.sign_()
    if p == 2:
        return normalize_(x, 2)
    largest = norms(x, math.inf)
    size = x.abs().to(largest.dtype)
    if p == 1:
        return normalize_(x.sign_().mul_(size.eq_(largest)), 1)
    return normalize_(
        x.sign_().mul_(size.div_(largest.clamp_(min=torch.finfo(largest.dtype).tiny)).pow_(1 / (p - 1))), p
    )
