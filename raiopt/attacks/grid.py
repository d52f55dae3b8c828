"""Rounding of perturbed images to 8 bits per channel, the multiples of 1/255."""

import math

import torch
from torch import Tensor

from raiopt.attacks.verify import TOLERANCE, Ball, exact

GRID_TOLERANCE = 4e-6
"""Tolerance, in steps of the grid, for the float32 rounding error of a grid point."""


@torch.no_grad()
def to_8bit(images: Tensor, delta: Tensor, ball: Ball) -> Tensor:
    """Returns perturbations (n, C, H, W) near `delta` that put the images (n, C, H, W) onto the grid, inside the ball.

    Each pixel is rounded to the nearest multiple of 1/255. If this moves the sample out of the ball, its pixels (for an
    Linf ball, only those outside) are rounded towards the clean image instead, but not past the multiple nearest to
    the clean value. So a sample stays in the ball if its clean image lies on the grid; otherwise it may end up outside
    an L0, L1 or L2 ball.

    >>> images, delta = torch.full((1, 1, 1, 2), 10 / 255), torch.tensor([[[[3.4, -3.6]]]]) / 255
    >>> to_8bit(images, delta, Ball(float("inf"), 3.6 / 255)) * 255
    tensor([[[[ 3., -3.]]]])
    """
    clean = exact(images) * 255
    clean = torch.where((clean - clean.round()).abs() < 10 * GRID_TOLERANCE, clean.round(), clean)
    moved = exact(delta) * 255
    near = (clean + moved).round().clamp(0, 255) - clean
    outside = _outside(near / 255, ball)
    if outside.any():
        up = moved > 0
        inwards = torch.where(up, (clean + moved + GRID_TOLERANCE).floor(), (clean + moved - GRID_TOLERANCE).ceil())
        passed = torch.where(up, inwards < clean, inwards > clean) | (moved == 0)
        inwards = torch.where(passed, clean.round(), inwards).clamp(0, 255) - clean
        near = torch.where(outside, inwards, near)
    return (near / 255).to(delta.dtype).to(delta.device)


def _outside(delta: Tensor, ball: Ball) -> Tensor:
    """Returns a mask of the entries that put their sample outside the ball; broadcasts to the shape of `delta`."""
    if ball.p is None or ball.epsilon is None:
        return torch.zeros_like(delta, dtype=torch.bool)
    rows = (-1, *[1] * (delta.ndim - 1))
    if not math.isinf(ball.p):
        return ~ball.contains(delta).view(rows)
    radius = exact(ball.epsilon).view(rows) if isinstance(ball.epsilon, Tensor) else ball.epsilon
    return delta.abs() > radius * (1 + TOLERANCE)
