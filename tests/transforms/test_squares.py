"""The windows of Square Attack against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raiopt.transforms import squares
from tests.reference import Array, array

LIKE = torch.zeros((), dtype=torch.float64)
HALVED_AFTER = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]


def hill(height: int, width: int, power: int) -> Array:
    """The sum of formula 2 of the paper, rectangle by rectangle."""
    made = np.zeros((height, width))
    for n in range(max(height, width) // 2 + 1):
        rows = [r for r in range(height) if abs(r - height // 2) <= n]
        columns = [c for c in range(width) if abs(c - width // 2) <= n]
        for r in rows:
            for c in columns:
                made[r, c] += 1 / (n + 1) ** power
    return made


def bump(side: int, p: int) -> Array:
    power = {1: 4, 2: 2}[p]
    made = np.concatenate([hill(side // 2, side, power), -hill(side - side // 2, side, power)])
    return made / (np.abs(made) ** p).sum() ** (1 / p)


def moved(best: Array, side: int, p: int, epsilon: float, draws: Array) -> Array:
    """Algorithm 3 of the paper for one image (C, H, W)."""
    new, lengths = best.copy(), np.array([*best.shape[1:]] * 2)
    top, left, other_top, other_left = (draws[:4] * (lengths - side + 1)).astype(int)
    target = np.zeros(best.shape[1:], dtype=bool)
    source = target.copy()
    target[top : top + side, left : left + side] = True
    source[other_top : other_top + side, other_left : other_left + side] = True
    pattern = bump(side, p) if draws[4] < 0.5 else bump(side, p).T
    unused = epsilon**p - (np.abs(best) ** p).sum()
    for c, draw in enumerate(draws[5:]):
        window = best[c][target].reshape(side, side)
        norm = (np.abs(window) ** p).sum() ** (1 / p)
        mixed = pattern * (1 if draw >= 0.5 else -1) + (window / norm if norm else 0)
        mixed /= (np.abs(mixed) ** p).sum() ** (1 / p)
        allowed = (np.abs(best[c][target | source]) ** p).sum() + unused / len(best)
        new[c][source] = 0
        new[c][target] = (mixed * allowed ** (1 / p)).ravel()
    return new


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("side", [3, 4, 5, 8, 13])
def test_a_bump_agrees_with_the_sum_of_rectangles_of_the_paper(side: int, p: int) -> None:
    np.testing.assert_allclose(squares.bump(side, p, like=LIKE), bump(side, p), rtol=1e-12)


@given(st.sampled_from([1, 2]), st.integers(3, 6), st.integers(0, 2**32))
def test_bumps_move_as_in_the_paper(p: int, side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    best = torch.randn(2, 3, 7, 6, generator=generator, dtype=torch.float64)
    best /= torch.linalg.vector_norm(best.flatten(1), p, dim=1).view(2, 1, 1, 1) * torch.tensor([1.0, 2.0]).view(
        2, 1, 1, 1
    )
    draws = torch.rand(2, 8, generator=generator, dtype=torch.float64)
    found = array(squares.moved_bumps(best, side, p, 1.0, draws))
    for image, numbers, got in zip(array(best), array(draws), found, strict=True):
        np.testing.assert_allclose(got, moved(image, side, p, 1.0, numbers), atol=1e-12)
        assert (np.abs(got) ** p).sum() == pytest.approx(1.0)


@given(st.integers(1, 5), st.integers(0, 2**32))
def test_one_window_of_each_image_is_set_to_corners(side: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    best, draws = torch.zeros(3, 2, 5, 6), torch.rand(3, 4, generator=generator)
    found = squares.flipped_corners(best, side, 0.5, draws)
    for image, numbers in zip(found, draws, strict=True):
        top, left = (int(numbers[i] * (length - side + 1)) for i, length in enumerate((5, 6)))
        expected = torch.zeros(2, 5, 6)
        expected[:, top : top + side, left : left + side] = 0.5
        assert torch.equal(image.abs(), expected)
        assert [len(channel.unique()) for channel in image[:, top : top + side, left : left + side]] == [1, 1]


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("shape", [(2, 3, 12, 17), (1, 1, 2, 3), (2, 2, 1, 1)])
def test_starts_use_up_the_ball(p: float, shape: tuple[int, ...]) -> None:
    draws = torch.rand(shape[0], squares.start_draws(p, *shape[1:]), generator=torch.Generator().manual_seed(0))
    epsilon = torch.linspace(0.5, 1.0, shape[0]).view(-1, 1, 1, 1)
    found = squares.starts(torch.empty(shape), p, epsilon, draws)
    assert found.shape == shape
    torch.testing.assert_close(torch.linalg.vector_norm(found.flatten(1), p, dim=1), epsilon.flatten())
    if math.isinf(p):
        assert torch.equal(found, found[:, :, :1].expand(shape))  # vertical
        assert (found.abs() == epsilon).all()


def test_squares_shrink_on_schedule() -> None:
    for number in range(10_000):
        assert squares.share(number, 10_000, 0.8) == 0.8 / 2 ** sum(number > after for after in HALVED_AFTER)
    rescaled = [squares.share(number, 500, 0.8) for number in range(500)]
    assert rescaled == [squares.share(20 * number, 10_000, 0.8) for number in range(500)]


@pytest.mark.parametrize(
    ("share", "odd", "expected"),
    [(0.8, False, 57), (0.5, False, 45), (1e-4, False, 1), (1.0, False, 64), (0.75, True, 55), (1e-4, True, 3)],
)
def test_the_side_of_a_square(share: float, odd: bool, expected: int) -> None:
    assert squares.side(share, 64, 64, odd=odd) == expected
    assert squares.side(1.0, 64, 64, odd=True) == 63
    assert squares.side(1.0, 64, 4, odd=odd) == 4 - odd
    assert squares.side(share, 1, 64, odd=odd) == 1
