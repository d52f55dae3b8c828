"""8 bits per channel: results lie on the grid and in the ball, and images on the grid do not change."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.testing import assert_close

from raiopt.attacks.grid import to_8bit
from raiopt.attacks.verify import TOLERANCE, Ball
from raiopt.transforms import project_l0_, project_l1_, project_l2_, project_linf_

INF = math.inf
PROJECT = {0: project_l0_, 1: project_l1_, 2: project_l2_, INF: project_linf_}
SHAPE = hnp.array_shapes(min_dims=4, max_dims=4, max_side=4)


def numpy_norms(delta, p, pixels=False):
    """Returns the norms of the samples, in float64."""
    delta = np.abs(delta.double().numpy())
    if pixels:
        delta = delta.max(1)
    return np.array([np.linalg.norm(sample.ravel(), p) for sample in delta])


def nearest_steps(delta):
    """Returns the nearest whole grid steps to a perturbation, and a mask of near ties."""
    exact = delta.double() * 255
    return exact.round(), ((exact - exact.floor()) - 0.5).abs() < 1e-3


@st.composite
def perturbed(draw, p):
    """Images on the grid, and perturbations within the box and the ball of a radius."""
    shape = draw(SHAPE)
    images = torch.from_numpy(draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 255)))).float() / 255
    steps = st.floats(-30, 30, width=32, allow_subnormal=False)
    delta = torch.from_numpy(draw(hnp.arrays(np.float32, shape, elements=steps))) / 255
    largest = 40.0 if p == 0 else 40.0 / 255 * (1 if p == INF else 5)
    radius = draw(st.integers(1, 40) if p == 0 else st.floats(0, largest) | st.integers(0, 40).map(lambda k: k / 255))
    each = torch.tensor([draw(st.sampled_from([1.0, 1.0, 0.5])) for _ in images]).mul(radius)
    radii = each.ceil().clamp(min=1) if p == 0 else each
    return images, PROJECT[p](delta, radii.view(-1, 1, 1, 1), -images, 1 - images), radii


@pytest.mark.parametrize("p", PROJECT)
@given(data=st.data())
def test_results_lie_on_the_grid_in_box_and_ball_and_stay(p, data):
    images, delta, radii = data.draw(perturbed(p))
    ball = Ball(p, radii)
    before = delta.clone()
    found = to_8bit(images, delta, ball)
    assert torch.equal(delta, before)
    grid = (images.double() + found) * 255
    assert_close(grid, grid.round(), rtol=0, atol=1e-4)
    assert grid.min() >= -1e-4
    assert grid.max() <= 255 + 1e-4
    assert (numpy_norms(found, p) <= radii.double().numpy() * (1 + TOLERANCE)).all()
    assert ball.contains(found).all()
    assert ((found - delta).abs() * 255 < 1 + 1e-3).all()
    assert_close(to_8bit(images, found, ball), found, rtol=0, atol=1e-7)
    assert (found * delta >= 0).all()
    nearest, ties = nearest_steps(delta)
    kept = torch.from_numpy(numpy_norms(nearest / 255, p)) <= radii.double()
    kept &= ~ties.flatten(1).any(1)
    assert_close((found.double() * 255)[kept], nearest[kept], rtol=0, atol=1e-4)


@given(perturbed(INF))
def test_only_the_pixels_that_leave_an_linf_ball_are_moved_inwards(drawn):
    images, delta, radii = drawn
    found = to_8bit(images, delta, Ball(INF, radii)).double() * 255
    near, ties = nearest_steps(delta)
    limit = radii.double().view(-1, 1, 1, 1) * 255 * (1 + TOLERANCE)
    expected = torch.where(near.abs() <= limit, near, limit.floor() * near.sign())
    assert_close(found[~ties], expected[~ties], rtol=0, atol=1e-4)


@given(hnp.arrays(np.float32, (2, 1, 2, 2), elements=st.floats(0, 1, width=32)), st.floats(2 / 255, 0.2))
def test_images_off_the_grid_are_rounded_onto_it_within_the_ball(clean, radius):
    images = torch.from_numpy(clean)
    delta = torch.full_like(images, radius).minimum(1 - images)
    for p in (INF, None):
        ball = Ball(p, None if p is None else radius)
        found = to_8bit(images, delta, ball)
        grid = (images.double() + found) * 255
        assert_close(grid, grid.round(), rtol=0, atol=1e-4)
        assert ball.contains(found).all()


def test_a_pixel_without_a_grid_value_in_range_gets_the_one_nearest_to_the_clean_image():
    clean, moved = torch.tensor([10.7, 10.3, 10.3, 10.7]) / 255, torch.tensor([0.1, -0.1, 0.9, -0.9]) / 255
    found = to_8bit(clean.view(1, 1, 2, 2), moved.view(1, 1, 2, 2), Ball(INF, 0.2 / 255))
    assert_close(found.flatten() * 255, torch.tensor([0.3, -0.3, 0.7, -0.7]), rtol=0, atol=1e-4)


@example(255)
@given(st.integers(0, 255))
def test_no_perturbation_leaves_an_image_on_the_grid_as_it_is(level):
    images = torch.full((1, 3, 2, 2), level / 255)
    for p, radius in [(INF, 0.0), (2, 0.0), (1, 0.0), (0, 1), (None, None)]:
        assert (to_8bit(images, torch.zeros_like(images), Ball(p, radius)).abs() < 1e-7).all()


def test_rounding_does_not_change_the_number_of_pixels_in_an_l0_ball():
    images = (torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    delta = torch.zeros_like(images)
    delta[:, :, 1, 2] = 0.35 - images[:, :, 1, 2]
    found = to_8bit(images, delta, Ball(0, 1, pixels=True))
    assert (numpy_norms(found, 0, pixels=True) == 1).all()


def test_each_row_of_pixels_has_its_own_ball():
    images = torch.full((1, 1, 2, 4), 0.4)
    make = partial(Ball, 2, 3.6 / 255)
    delta = torch.full_like(images, 1.8 / 255)
    assert to_8bit(images, delta, make(param_ndim=1)).mul(255).round(decimals=4).unique().tolist() == [1.0]
    assert to_8bit(images, delta, Ball(2, 4 / 255, 1)).mul(255).round(decimals=4).unique().tolist() == [2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    images = torch.full((1, 1, 1, 2), 10 / 255, dtype=dtype)
    assert to_8bit(images, torch.zeros_like(images), Ball(INF, 0.1)).dtype == dtype
