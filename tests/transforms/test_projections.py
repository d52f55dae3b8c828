import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raiopt import transforms
from tests import reference
from tests.reference import Array, array
from tests.strategies import FLOATS, boxed, scales, shapes, tensors
from tests.transforms.table import PROJECTIONS, seen

Case = tuple[Tensor, Tensor, Tensor]
RADII = st.floats(1e-3, 1e2)
LOOKS = pytest.mark.parametrize("look", [True, False], ids=["seen", "unseen"])
BALLS = pytest.mark.parametrize("p", PROJECTIONS)


def project(p: float, x: Tensor, epsilon: Any, lower: Any = None, upper: Any = None, look: bool = True) -> Array:
    with seen(look):
        return array(PROJECTIONS[p](x.clone(), epsilon, lower, upper))


def spread(decades: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Data and walls whose entries span 2 * `decades` decades."""
    generator = torch.Generator().manual_seed(decades)
    power, wall = torch.rand(2, 32, 400, generator=generator, dtype=dtype) * 2 * decades - decades
    return torch.randn(32, 400, generator=generator, dtype=dtype) * 10**power, 10**wall


@LOOKS
@BALLS
@given(x=tensors(), epsilon=st.floats(1e-3, 1e3), scale=scales(3))
def test_projection_onto_the_ball_agrees_with_numpy(
    p: float, look: bool, x: Tensor, epsilon: float, scale: float
) -> None:
    x = x * scale
    nearest = reference.PROJECTIONS[p](array(x), epsilon, -np.inf, np.inf)
    np.testing.assert_allclose(project(p, x, epsilon, look=look), nearest, rtol=2e-6, atol=3e-6 * epsilon)


@pytest.mark.parametrize("p", [2, math.inf])
@given(x=tensors(), epsilon=st.floats(1e-3, 1e3), scale=scales())
def test_scaled_entries_keep_their_relative_precision(p: float, x: Tensor, epsilon: float, scale: float) -> None:
    x = x * scale
    nearest = reference.PROJECTIONS[p](array(x), epsilon, -np.inf, np.inf)
    np.testing.assert_allclose(project(p, x, epsilon), nearest, rtol=2e-6, atol=1e-30)


@LOOKS
@BALLS
@given(case=boxed(shape=shapes(min_ndim=2, max_side=3)), epsilon=RADII)
def test_projection_onto_ball_and_box_agrees_with_bisection(p: float, look: bool, case: Case, epsilon: float) -> None:
    x, lower, upper = case
    nearest = reference.PROJECTIONS[p](array(x), epsilon, array(lower), array(upper))
    np.testing.assert_allclose(project(p, x, epsilon, lower, upper, look), nearest, rtol=0, atol=3e-6 * epsilon)


@LOOKS
@BALLS
@given(case=boxed(dtype=torch.float64), epsilon=RADII, seed=st.integers(0, 2**32 - 1))
def test_the_nearest_point_satisfies_the_variational_inequality(
    p: float, look: bool, case: Case, epsilon: float, seed: int
) -> None:
    """Onto a convex set, z is the projection of x if and only if <x - z, y - z> <= 0 for all y of the set."""
    x, lower, upper = (array(part) for part in case)
    z = project(p, case[0], epsilon, *case[1:], look=look)
    ones = [1] * (x.ndim - 1)
    for size in (1e-3, 1.0, 100.0):  # from the neighbourhood of z to far corners
        noise = np.random.default_rng(seed).uniform(-size, size, (8, *x.shape))
        for y in np.clip(z + noise, lower, upper):
            y = y * np.minimum(1, epsilon / np.maximum(reference.norms(y, p), 1e-300)).reshape(-1, *ones)
            seen_from_z = ((x - z) * (y - z)).reshape(len(x), -1).sum(axis=1)
            assert (seen_from_z <= 1e-9 * epsilon * (1 + np.abs(x).sum())).all()


@BALLS
@given(case=boxed(), epsilon=st.floats(1e-6, 1e6), scale=scales(12))
def test_projection_lands_in_ball_and_box_and_stays(p: float, case: Case, epsilon: float, scale: float) -> None:
    x, lower, upper = case
    x, project_ = x * scale, PROJECTIONS[p]
    once = project_(x.clone(), epsilon, lower, upper)
    assert (reference.norms(array(once), p) <= epsilon * (1 + 1e-6)).all()
    assert ((lower <= once) & (once <= upper)).all()
    assert torch.equal(project_(project_(x.clone(), epsilon), epsilon), project_(x.clone(), epsilon))
    torch.testing.assert_close(project_(once.clone(), epsilon, lower, upper), once, rtol=2e-6, atol=1e-30)


@LOOKS
@BALLS
@given(case=boxed(), epsilon=RADII, ratio=st.integers(0, 6), inside_box=st.booleans())
def test_far_data_land_as_exactly_as_near_ones(
    p: float, look: bool, case: Case, epsilon: float, ratio: int, inside_box: bool
) -> None:
    """Up to a million radii away the differences between entries are of the size of float32's last places."""
    x, *box = case
    x = x / max(1.0, float(x.abs().max())) * epsilon * 10.0**ratio
    bounds = [array(b) for b in box] if inside_box else [-np.inf, np.inf]
    nearest = reference.PROJECTIONS[p](array(x), epsilon, *bounds)
    found = project(p, x, epsilon, *(box if inside_box else ()), look=look)
    np.testing.assert_allclose(found, nearest, rtol=0, atol=3e-6 * epsilon)


@LOOKS
@pytest.mark.parametrize(
    ("decades", "ratio"), [(0, 1e-3), (0, 0.5), (1, 1e-3), (1, 1.0), (3, 1e-6), (3, 1e-3), (8, 1e-6)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_l1_level_is_found_for_widely_spread_magnitudes(
    dtype: torch.dtype, decades: int, ratio: float, look: bool
) -> None:
    x, wall = spread(decades, dtype)
    epsilon = ratio * float(x.abs().max())
    accuracy = 1e-9 if dtype is torch.float64 and decades < 8 else 1e-5 if dtype is torch.float64 else 2e-6
    for found, bounds in (
        (project(1, x, epsilon, look=look), (-np.inf, np.inf)),
        (project(1, x, epsilon, -wall, wall, look), (-array(wall), array(wall))),
    ):
        nearest = reference.project_l1(array(x), epsilon, *bounds)
        assert reference.norms(found - nearest, 1).max() < accuracy * epsilon
        assert (reference.norms(found, 1) <= epsilon * (1 + 1e-6)).all()


@pytest.mark.parametrize("x", [2.0, 3.0, 1e5])
def test_the_l1_level_may_lie_between_two_numbers(x: float) -> None:
    found = transforms.project_l1_(torch.tensor([[x]], dtype=torch.float64), 0.1)  # x - (x - 0.1) is not 0.1
    assert found.item() == pytest.approx(0.1, rel=1e-9)


@LOOKS
@pytest.mark.parametrize("decades", [0, 1, 3, 8, 15])
@pytest.mark.parametrize("epsilon", [1.0, 5.0])
def test_newton_ends_at_the_nearest_point_for_widely_spread_magnitudes(
    decades: int, epsilon: float, look: bool
) -> None:
    x, wall = spread(decades)
    nearest = reference.project_l2(array(x), epsilon, -array(wall), array(wall))
    found = project(2, x, epsilon, -wall, wall, look)
    assert reference.norms(found - nearest, 2).max() < 2e-6 * epsilon


@LOOKS
@pytest.mark.parametrize("size", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize(("p", "epsilon"), [(2, 0.5), (2, 5.0), (2, 30.0), (1, 2.0), (1, 12.0), (1, 900.0)])
def test_perturbations_of_images_land_at_the_nearest_point(p: float, epsilon: float, size: float, look: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(8, 3, 32, 32, generator=generator)
    data = torch.where(torch.rand(data.shape, generator=generator) < 0.2, data.round(), data)  # black and white pixels
    x = size * torch.randn(data.shape, generator=generator)
    nearest = reference.PROJECTIONS[p](array(x), epsilon, -array(data), 1 - array(data))
    found = project(p, x, epsilon, -data, 1 - data, look)
    assert reference.norms(found - nearest, p).max() < 2e-6 * epsilon


def test_too_few_newton_steps_stay_inside() -> None:
    x = 2.0 ** torch.arange(-40.0, 40.0).repeat(2, 1)  # each step frees one entry only
    found = transforms.project_l2_(x, 5.0, -1.0, 1.0)
    assert (reference.norms(array(found), 2) <= 5.0).all()
    assert found.abs().max() <= 1.0


@pytest.mark.parametrize("shape", [(2, 150528), (2, 3, 224, 224), (1, 2, 3, 224, 224)])
@pytest.mark.parametrize("fill", [0.1, None])
@pytest.mark.parametrize(("p", "radii"), [(1, (0.3, 12.0, 7000.0)), (2, (0.3, 1.0, 7.0))])
def test_large_data_end_on_the_ball(p: float, radii: tuple[float, ...], shape: tuple[int, ...], fill: float) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) if fill is None else torch.full(shape, fill)
    for epsilon in radii:
        size = reference.norms(project(p, x, epsilon), p)
        assert (size <= epsilon * (1 + 2e-7)).all()
        assert (size >= epsilon * (1 - 1e-6)).all()


@pytest.mark.parametrize(("p", "epsilon"), [(1, 12.0), (1, 3000.0), (2, 7.0)])
def test_large_data_land_at_the_nearest_point_of_ball_and_box(p: float, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    data, x = torch.rand(2, 2, 3, 224, 224, generator=generator)
    found = project(p, x - 0.5, epsilon, -data, 1 - data)
    nearest = reference.PROJECTIONS[p](array(x - 0.5), epsilon, -array(data), 1 - array(data))
    assert (reference.norms(found, p) <= epsilon * (1 + 1e-6)).all()
    assert reference.norms(found - nearest, p).max() < 1e-6 * epsilon


@BALLS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@given(x=tensors(low=-50, high=50), epsilon=st.floats(1e-6, 10), scale=st.integers(-6, 2).map(lambda e: 10.0**e))
def test_half_precision_ends_in_the_ball(dtype: torch.dtype, p: float, x: Tensor, epsilon: float, scale: float) -> None:
    """Also where the entries are subnormal, so that rounding one moves it by much of its size."""
    found = PROJECTIONS[p]((x * scale).to(dtype), epsilon)
    assert (reference.norms(array(found), p) <= epsilon * (1 + 1e-6)).all()


@BALLS
@given(case=boxed(shape=(3, 2, 2)), epsilon=tensors((3, 1, 1), low=0.0, high=10.0))
def test_a_radius_for_each_datum_is_that_of_each_alone(p: float, case: Case, epsilon: Tensor) -> None:
    x, lower, upper = case
    for box in ((None, None), (lower, upper)):
        together = project(p, x, epsilon, *box)
        for i in range(3):
            alone = project(p, x[i : i + 1], epsilon[i].item(), *(b if b is None else b[i : i + 1] for b in box))
            np.testing.assert_allclose(together[i : i + 1], alone, rtol=4e-6, atol=3e-6 * epsilon[i].item() + 1e-30)


@LOOKS
@BALLS
@pytest.mark.parametrize("box", [(None, None), (-1.0, None), (None, 1.0), (-0.5, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_radius_zero_is_the_origin(p: float, box: tuple[Any, Any], dtype: torch.dtype, look: bool) -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0], [1e-4, 6e4]], dtype=dtype)
    assert not project(p, x, 0.0, *box, look=look).any()
    assert not project(p, x, torch.zeros(3, 1), *box, look=look).any()


@pytest.mark.parametrize("lower", [None, -0.25, -math.inf, torch.tensor([[-0.25], [-1.0]])])
@pytest.mark.parametrize("upper", [None, 0.5, math.inf, torch.tensor([[0.5, 0.0]], dtype=torch.float64)])
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 100.0])
def test_bounds_may_be_numbers_tensors_infinite_or_absent(lower: Any, upper: Any, epsilon: float) -> None:
    x = torch.tensor([[2.0, -2.0], [0.1, -3.0]])
    low, high = (np.asarray(b) if b is not None else s * np.inf for b, s in ((lower, -1), (upper, 1)))
    np.testing.assert_allclose(transforms.clamp_(x.clone(), lower, upper), np.clip(array(x), low, high))
    for p in PROJECTIONS:
        nearest = reference.PROJECTIONS[p](array(x), epsilon, *(np.broadcast_to(b, x.shape) for b in (low, high)))
        np.testing.assert_allclose(project(p, x, epsilon, lower, upper), nearest, atol=2e-6)


def every_support(x: Array, lower: Array, upper: Array, count: int, pixels: bool) -> float:
    """The least squared distance from x (C, H, W) to a point of the box, over all choices of `count` places."""
    places = list(np.ndindex(x.shape[1:] if pixels else x.shape))
    best = np.inf
    for chosen in itertools.combinations(places, min(count, len(places))):
        kept = np.zeros_like(x)
        for place in chosen:
            kept[(slice(None), *place) if pixels else place] = 1
        best = min(best, np.square(x - kept * np.clip(x, lower, upper)).sum())
    return best


@pytest.mark.parametrize("pixels", [False, True], ids=["entries", "pixels"])
@given(
    case=boxed(shape=(2, 2, 1, 3)) | boxed(shape=(2, 2, 1, 3), low=-2, high=2), counts=st.tuples(*[st.floats(0, 7)] * 2)
)
def test_no_other_choice_of_entries_is_nearer(pixels: bool, case: Case, counts: tuple[float, float]) -> None:
    x, lower, upper = case
    found = transforms.project_l0_(x.clone(), torch.tensor(counts).view(2, 1, 1, 1), lower, upper, pixels=pixels)
    for i, count in enumerate(counts):
        row = slice(i, i + 1)
        alone = transforms.project_l0_(x[row].clone(), count, lower[row], upper[row], pixels=pixels)
        best = every_support(array(x[i]), array(lower[i]), array(upper[i]), math.floor(count), pixels)
        for z in (array(found[i]), array(alone[0])):
            distance = np.square(array(x[i]) - z).sum()
            assert distance == pytest.approx(best, rel=1e-6, abs=2e-6 * float(x[i].abs().max()) ** 2)
            assert ((array(lower[i]) <= z) & (z <= array(upper[i]))).all()
            assert np.count_nonzero(z.any(axis=0) if pixels else z) <= math.floor(count)


@given(case=boxed(shape=(2, 2, 2, 2)), count=st.integers(0, 5))
def test_a_pixel_is_the_third_dimension_from_the_end(case: Case, count: int) -> None:
    """So the frames of a video, or all images as one datum, have separate pixels."""
    x, lower, upper = (part.unsqueeze(0) for part in case)
    found = transforms.project_l0_(x.clone(), count, lower, upper, pixels=True)[0]
    assert int((found != 0).any(dim=1).sum()) <= count
    gains = np.square(array(x)) - np.square(array(x - x.clamp(lower, upper)))
    best = np.sort(gains[0].sum(axis=1).ravel())[::-1][:count].sum()
    gained = (np.square(array(x[0])) - np.square(array(x[0] - found))).sum()
    assert gained == pytest.approx(best, rel=1e-6, abs=3e-5 * float(x.abs().max()) ** 2)


def test_pixels_need_channels() -> None:
    with pytest.raises(ValueError, match=r"pixels=True needs data \(N, C, H, W\), but x has the shape \(2, 3, 4\)"):
        transforms.project_l0_(torch.ones(2, 3, 4), 1, pixels=True)


@pytest.mark.parametrize("epsilon", [0, 0.9])
def test_fewer_than_one_entry_keeps_none(epsilon: float) -> None:
    assert not transforms.project_l0_(torch.ones(2, 3), epsilon).any()


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("pixels", [False, True])
def test_an_entry_whose_square_underflows_is_kept_before_a_zero(place: int, pixels: bool) -> None:
    x = torch.zeros(1, 1, 2, 4)
    x.view(-1)[place], x.view(-1)[7] = 1e-25, 1.0
    assert torch.equal(transforms.project_l0_(x.clone(), 2, pixels=pixels), x)
