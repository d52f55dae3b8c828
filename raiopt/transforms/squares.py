"""Random changes of images (N, C, H, W) in square windows, which are the candidates of Square Attack.

Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049, for Linf and L2; Croce and Hein 2021,
https://arxiv.org/abs/2103.01208, for L1. Random numbers in [0, 1) are arguments, one row for each image. Nothing here
depends on a loss, and results must still be projected onto ball and box.
"""

import math
from bisect import bisect_left

import torch
from torch import Tensor

from raiopt.transforms.norms import normalize_, norms

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 candidates
_TILES = 5
_POWERS: dict[float, int] = {1: 4, 2: 2}  # how fast a bump falls off, by norm


def share(number: int, steps: int, first: float) -> float:
    """Returns the share of an image that the square of a candidate covers.

    Args:
        number: The number of the candidate, from 0.
        steps: The number of all candidates.
        first: The share of candidate 0.
    """
    return first / 2 ** bisect_left(_HALVED_AFTER, number * 10_000 // steps)


def side(share: float, height: int, width: int, *, odd: bool = False) -> int:
    """Returns the side of the square that covers this share of an image, within the image.

    Args:
        share: Above 0, at most 1.
        height: The height of the image.
        width: The width of the image.
        odd: Whether the side must be odd and, if the image is large enough, at least 3.
    """
    found, most = max(1, round(math.sqrt(share * height * width))), min(height, width)
    if odd:
        found, most = max(3, found + 1 - found % 2), most - 1 + most % 2
    return min(found, most)


def start_draws(p: float, channels: int, height: int, width: int) -> int:
    """Returns the number of random numbers that `starts` needs for an image."""
    return channels * (width if math.isinf(p) else math.prod(_grid(height, width)[1:]))


def starts(like: Tensor, p: float, epsilon: float | Tensor, draws: Tensor) -> Tensor:
    """Returns a perturbation of p-norm `epsilon` for each image.

    For Linf, these are vertical stripes with random signs; for L1 and L2, a grid of bumps with random signs.

    Args:
        like: The images, for their shape and type.
        p: 1, 2 or infinity.
        epsilon: The radius, or one for each image, of shape (N, 1, 1, 1).
        draws: Random numbers of shape (N, start_draws).

    >>> starts(torch.zeros(1, 1, 2, 3), math.inf, 0.5, torch.tensor([[0.1, 0.7, 0.3]]))
    tensor([[[[-0.5000,  0.5000, -0.5000],
              [-0.5000,  0.5000, -0.5000]]]])
    """
    count, channels, height, width = like.shape
    if math.isinf(p):
        return _signs(draws).view(count, channels, 1, width).expand(like.shape) * epsilon
    tile, down, across = _grid(height, width)
    signs = _signs(draws).view(count, channels, down, across)
    pattern = bump(tile, p, like=draws).repeat(down, across)
    filled = torch.zeros_like(like, dtype=draws.dtype)
    top, left = (height - down * tile) // 2, (width - across * tile) // 2
    spread = signs.repeat_interleave(tile, 2).repeat_interleave(tile, 3)
    filled[:, :, top : top + down * tile, left : left + across * tile] = spread * pattern
    return normalize_(filled, p) * epsilon


def flipped_corners(best: Tensor, side: int, epsilon: float | Tensor, draws: Tensor) -> Tensor:
    """Returns `best` with one square window of each image set to a random sign times epsilon, channel by channel.

    Args:
        best: Perturbations in the Linf ball.
        side: The side of the windows.
        epsilon: As in `starts`.
        draws: Random numbers of shape (N, 2 + C).

    >>> flipped_corners(torch.zeros(1, 1, 2, 3), 1, 0.5, torch.tensor([[0.9, 0.1, 0.8]]))
    tensor([[[[0.0000, 0.0000, 0.0000],
              [0.5000, 0.0000, 0.0000]]]])
    """
    inside = _Windows(best, side, draws[:, :2]).mask
    return torch.where(inside, _signs(draws[:, 2:])[:, :, None, None] * epsilon, best)


def moved_bumps(best: Tensor, side: int, p: float, epsilon: float | Tensor, draws: Tensor) -> Tensor:
    """Returns `best` with the norm of one square window, and the unused part of epsilon, moved to a bump in another.

    Args:
        best: Perturbations in the Lp ball, p being 1 or 2.
        side: The side of the windows.
        epsilon: As in `starts`; the new norm.
        draws: Random numbers of shape (N, 5 + C).
    """
    target, source = (_Windows(best, side, draws[:, i : i + 2]) for i in (0, 2))
    shape = bump(side, p, like=draws)
    upright = target.filled(shape)
    lying = target.filled(shape.T)
    new = torch.where(draws[:, 4, None, None, None] < 0.5, upright, lying) * _signs(draws[:, 5:])[:, :, None, None]
    new += _normed(best * target.mask, p)
    free = (epsilon**p - norms(best, p) ** p).clamp(min=0) / best.shape[1]
    held = _powers(best * (target.mask | source.mask), p)
    new = _normed(new, p) * (held + free) ** (1 / p)
    return torch.where(target.mask, new, best * ~source.mask)


def bump(side: int, p: float, *, like: Tensor) -> Tensor:
    """Returns a square of p-norm 1 whose upper half is a positive hill, and its lower half a negative one.

    >>> bump(3, 1, like=torch.zeros(()))
    tensor([[ 0.0244,  0.4146,  0.0244],
            [-0.0244, -0.0244, -0.0244],
            [-0.0244, -0.4146, -0.0244]])
    """
    half = side // 2
    pattern = torch.cat([_hill(half, side, p), -_hill(side - half, side, p)])
    return (pattern / torch.linalg.vector_norm(pattern, p)).to(like.device, like.dtype)


def _hill(height: int, width: int, p: float) -> Tensor:
    """Returns concentric rectangles, each 1 / n ** power higher than the one around it; n is 1 for the innermost."""
    distance = [(torch.arange(length) - length // 2).abs() for length in (height, width)]
    gains = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** -_POWERS[p]
    return gains.flip(0).cumsum(0).flip(0)[torch.maximum(distance[0][:, None], distance[1])]


class _Windows:
    """A square window in each image, at a place given by two random numbers per image."""

    def __init__(self, images: Tensor, side: int, draws: Tensor) -> None:
        self.side, device = side, images.device
        self.places = [
            torch.arange(length, device=device) - (draws[:, i, None] * (length - side + 1)).floor().long()
            for i, length in enumerate(images.shape[2:])
        ]
        rows, columns = ((place >= 0) & (place < side) for place in self.places)
        #: Of shape (N, 1, H, W).
        self.mask = (rows[:, :, None] & columns[:, None, :])[:, None]

    def filled(self, pattern: Tensor) -> Tensor:
        """Returns zeros of shape (N, 1, H, W) with the pattern in the window of each image."""
        rows, columns = (place.clamp(0, self.side - 1) for place in self.places)
        return pattern[rows[:, :, None], columns[:, None, :]][:, None] * self.mask


def _powers(x: Tensor, p: float) -> Tensor:
    """Returns the sum of |x| ** p of each channel, of shape (N, C, 1, 1)."""
    return (x.abs() ** p).sum((2, 3), keepdim=True)


def _normed(x: Tensor, p: float) -> Tensor:
    """Returns x with each channel divided by its p-norm; a channel of zeros stays."""
    return x / (_powers(x, p) ** (1 / p)).clamp(min=torch.finfo(x.dtype).tiny)


def _signs(draws: Tensor) -> Tensor:
    return 1 - 2 * (draws < 0.5).to(draws.dtype)


def _grid(height: int, width: int) -> tuple[int, int, int]:
    """Returns the side of the tiles of a grid, and the numbers of its rows and columns."""
    tile = max(1, min(height, width) // _TILES)
    return tile, height // tile, width // tile
