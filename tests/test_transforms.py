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
from tests.reference import array
from tests.strategies import boxed, scales, shapes, tensors

NORMS = [1, 2, math.inf]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
PROJECTIONS = {
    2: (transforms.project_l2_, reference.project_l2),
    math.inf: (transforms.project_linf_, reference.project_linf),
}


@pytest.mark.parametrize("p", NORMS)
@given(x=tensors(), scale=scales(30))
def test_norms_agree_with_numpy_at_every_magnitude(p: float, x: Tensor, scale: float) -> None:
    x = x * scale
    np.testing.assert_allclose(array(transforms.norms(x, p)).ravel(), reference.norms(array(x), p), rtol=3e-7)


@pytest.mark.parametrize("p", NORMS)
@given(x=tensors(), scale=scales(30))
def test_normalize_agrees_with_numpy_at_every_magnitude(p: float, x: Tensor, scale: float) -> None:
    x = x * scale
    x[x.abs() < 1e-30] = 0  # the bound that guards the division is not the matter here
    expected = reference.normalize(array(x), p)
    assert transforms.normalize_(x, p) is x
    np.testing.assert_allclose(array(x), expected, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 1e-30), (torch.float32, 1e30), (torch.bfloat16, 1e-30), (torch.float64, 1e-220)],
)
def test_the_powers_neither_underflow_nor_overflow(p: float, dtype: torch.dtype, size: float) -> None:
    x = transforms.normalize_(torch.full((2, 3, 5), size, dtype=dtype), p)
    np.testing.assert_allclose(reference.norms(array(x), p), 1.0, rtol=1e-2 if dtype is torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("eps", [None, 0.0, 1e-38])
def test_a_zero_datum_stays_zero_in_every_type(p: float, dtype: torch.dtype, eps: float | None) -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=dtype)
    assert transforms.normalize_(x, p, eps).tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_eps_bounds_the_divisor() -> None:
    assert transforms.normalize_(torch.tensor([[0.5, 0.0], [4.0, 0.0]]), 2, eps=2.0).tolist() == [[0.25, 0], [1, 0]]


def test_other_norms_and_single_data_are_refused() -> None:
    with pytest.raises(ValueError, match="p=0.5 must be a finite number, at least 1. Infinity is allowed too"):
        transforms.normalize_(torch.ones(1, 2), 0.5)
    with pytest.raises(ValueError, match=r"\(4,\) must have the shape \(N, d0, ...\)"):
        transforms.normalize_(torch.ones(4), 2)


@pytest.mark.parametrize("p", PROJECTIONS)
@given(x=tensors(), epsilon=st.floats(1e-3, 1e3), scale=scales())
def test_projection_onto_the_ball_agrees_with_numpy(p: float, x: Tensor, epsilon: float, scale: float) -> None:
    project_, expected = PROJECTIONS[p]
    x = x * scale
    nearest = expected(array(x), epsilon, -np.inf, np.inf)
    np.testing.assert_allclose(array(project_(x.clone(), epsilon)), nearest, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("p", PROJECTIONS)
@given(case=boxed(shape=shapes(min_ndim=2, max_side=3)), epsilon=st.floats(1e-3, 1e2))
def test_projection_onto_ball_and_box_agrees_with_bisection(
    p: float, case: tuple[Tensor, Tensor, Tensor], epsilon: float
) -> None:
    x, lower, upper = case
    project_, expected = PROJECTIONS[p]
    nearest = expected(array(x), epsilon, array(lower), array(upper))
    found = array(project_(x.clone(), epsilon, lower, upper))
    np.testing.assert_allclose(found, nearest, rtol=0, atol=3e-6 * epsilon)


@given(case=boxed(), epsilon=st.floats(1e-6, 1e6), scale=scales(12))
def test_projection_lands_in_ball_and_box_and_stays(
    case: tuple[Tensor, Tensor, Tensor], epsilon: float, scale: float
) -> None:
    x, lower, upper = case
    x = x * scale
    for p, (project_, _) in PROJECTIONS.items():
        once = project_(x.clone(), epsilon, lower, upper)
        assert (reference.norms(array(once), p) <= epsilon * (1 + 1e-6)).all()
        assert ((lower <= once) & (once <= upper)).all()
        assert torch.equal(project_(project_(x.clone(), epsilon), epsilon), project_(x.clone(), epsilon))
        torch.testing.assert_close(project_(once.clone(), epsilon, lower, upper), once, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("spread", [0, 1, 3, 8, 15])
@pytest.mark.parametrize("epsilon", [1.0, 5.0])
def test_newton_ends_at_the_nearest_point_for_widely_spread_magnitudes(spread: int, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    power, wall = torch.rand(2, 32, 1000, generator=generator) * 2 * spread - spread
    x, wall = torch.randn(32, 1000, generator=generator) * 10**power, 10**wall
    nearest = reference.project_l2(array(x), epsilon, -array(wall), array(wall))
    found = array(transforms.project_l2_(x.clone(), epsilon, -wall, wall))
    assert reference.norms(found - nearest, 2).max() < 2e-6 * epsilon


@pytest.mark.parametrize("size", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize("epsilon", [0.5, 5.0, 30.0])
def test_newton_ends_at_the_nearest_perturbation_of_images(size: float, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(8, 3, 32, 32, generator=generator)
    data = torch.where(torch.rand(data.shape, generator=generator) < 0.2, data.round(), data)  # black and white pixels
    x = size * torch.randn(data.shape, generator=generator)
    nearest = reference.project_l2(array(x), epsilon, -array(data), 1 - array(data))
    found = array(transforms.project_l2_(x, epsilon, -data, 1 - data))
    assert reference.norms(found - nearest, 2).max() < 2e-6 * epsilon


def test_too_few_newton_steps_stay_inside() -> None:
    x = 2.0 ** torch.arange(-40.0, 40.0).repeat(2, 1)  # each step frees one entry only
    found = transforms.project_l2_(x, 5.0, -1.0, 1.0)
    assert (reference.norms(array(found), 2) <= 5.0).all()
    assert found.abs().max() <= 1.0


@pytest.mark.parametrize("shape", [(2, 150528), (2, 3, 224, 224), (1, 2, 3, 224, 224)])
@pytest.mark.parametrize("fill", [0.1, None])
def test_large_data_end_in_the_ball(shape: tuple[int, ...], fill: float | None) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) if fill is None else torch.full(shape, fill)
    for epsilon in (0.3, 1.0, 7.0):
        size = reference.norms(array(transforms.project_l2_(x.clone(), epsilon)), 2)
        assert (size <= epsilon * (1 + 1e-7)).all()
        assert (size >= epsilon * (1 - 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(x=tensors(low=-50, high=50), epsilon=st.floats(0.1, 10))
def test_half_precision_ends_in_the_ball(dtype: torch.dtype, x: Tensor, epsilon: float) -> None:
    found = transforms.project_l2_(x.to(dtype), epsilon)
    assert (reference.norms(array(found), 2) <= epsilon * (1 + 1e-6)).all()


@given(case=boxed(shape=(3, 2, 2)), epsilon=tensors((3, 1, 1), low=0.0, high=10.0))
def test_a_radius_for_each_datum_is_that_of_each_alone(case: tuple[Tensor, Tensor, Tensor], epsilon: Tensor) -> None:
    x, lower, upper = case
    for project_, _ in PROJECTIONS.values():
        together = project_(x.clone(), epsilon, lower, upper)
        for i in range(3):
            row = slice(i, i + 1)
            alone = project_(x[row].clone(), epsilon[i].item(), lower[row], upper[row])
            torch.testing.assert_close(together[row], alone, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("p", PROJECTIONS)
@pytest.mark.parametrize("box", [(None, None), (-1.0, None), (None, 1.0), (-0.5, 0.5)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_radius_zero_is_the_origin(p: float, box: tuple[Any, Any], dtype: torch.dtype) -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=dtype)
    assert PROJECTIONS[p][0](x, 0.0, *box).abs().max() == 0


@pytest.mark.parametrize("lower", [None, -0.25, torch.tensor([[-0.25], [-1.0]])])
@pytest.mark.parametrize("upper", [None, 0.5, torch.tensor([[0.5, 0.0]], dtype=torch.float64)])
def test_bounds_may_be_numbers_tensors_or_absent(lower: Any, upper: Any) -> None:
    x = torch.tensor([[2.0, -2.0], [0.1, -3.0]])
    low, high = (np.asarray(b) if b is not None else s * np.inf for b, s in ((lower, -1), (upper, 1)))
    np.testing.assert_allclose(transforms.clamp_(x.clone(), lower, upper), np.clip(array(x), low, high))
    nearest = reference.project_l2(array(x), 1.0, *(np.broadcast_to(b, x.shape) for b in (low, high)))
    np.testing.assert_allclose(transforms.project_l2_(x.clone(), 1.0, lower, upper), nearest, atol=2e-6)


def test_what_is_not_finite_stays_in_its_datum() -> None:
    bad = [math.nan, math.inf, -math.inf]
    clean = torch.tensor([[0.3, -4.0]])
    for value in bad:
        x = torch.cat([torch.tensor([[value, 1.0]]), clean])
        for function, arguments in (
            (transforms.normalize_, (2,)),
            (transforms.project_l2_, (1.0,)),
            (transforms.project_l2_, (1.0, -0.5, 0.5)),
            (transforms.project_linf_, (1.0,)),
        ):
            assert torch.equal(function(x.clone(), *arguments)[1:], function(clean.clone(), *arguments))


def test_no_value_is_read_on_the_host() -> None:
    x = torch.empty(4, 3, 2, device="meta")
    radius, bound = torch.empty(4, 1, 1, device="meta"), torch.empty(4, 3, 2, device="meta")
    for p in NORMS:
        transforms.normalize_(x, p)
    for project_, _ in PROJECTIONS.values():
        project_(x, 1.0)
        project_(x, radius, bound, bound)


def test_memory_layout_makes_no_difference() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(transforms.normalize_(last.clone(), 2), transforms.normalize_(x.clone(), 2))
    torch.testing.assert_close(transforms.project_l2_(last, 1.0, -0.2), transforms.project_l2_(x, 1.0, -0.2))
    assert last.is_contiguous(memory_format=torch.channels_last)
