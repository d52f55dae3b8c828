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
from tests.strategies import boxed, tensors
from tests.transforms.table import SUPPORTS, seen

Case = tuple[Tensor, Tensor, Tensor]
RADII = st.floats(0.01, 20)


def products(x: Tensor, z: Array) -> Array:
    return (array(x) * z).reshape(len(x), -1).sum(axis=1)


def roughly(x: Tensor) -> Tensor:
    """Entries below 1e-12 of the largest may stay short: they are left out."""
    return x * (x.abs() > 1e-3)


@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize("p", SUPPORTS)
@given(case=boxed(), epsilon=RADII)
def test_no_point_of_ball_and_box_has_a_larger_inner_product(p: float, look: bool, case: Case, epsilon: float) -> None:
    x, lower, upper = roughly(case[0]), *case[1:]
    bounds = array(lower), array(upper)
    with seen(look):
        found = array(SUPPORTS[p](x.clone(), epsilon, lower, upper))
    assert (reference.norms(found, p) <= epsilon * (1 + 1e-6)).all()
    assert ((bounds[0] <= found) & (found <= bounds[1])).all()
    best = products(x, reference.support(array(x), p, epsilon, *bounds))
    np.testing.assert_allclose(products(x, found), best, rtol=3e-6, atol=1e-6)
    rivals = np.random.default_rng(0).uniform(-1, 1, (30, *x.shape)) * 2
    for rival in rivals:
        inside = np.clip(rival, *bounds)
        inside *= np.minimum(1, epsilon / np.maximum(reference.norms(inside, p), 1e-300)).reshape(
            -1, *[1] * (x.ndim - 1)
        )
        assert (products(x, inside) <= products(x, found) * (1 + 3e-6) + 1e-6).all()


@pytest.mark.parametrize("p", SUPPORTS)
@given(x=tensors(), epsilon=RADII)
def test_without_a_box_the_inner_product_is_the_dual_norm(p: float, x: Tensor, epsilon: float) -> None:
    x = roughly(x)
    found = array(SUPPORTS[p](x.clone(), epsilon))
    assert (reference.norms(found, p) <= epsilon * (1 + 1e-6)).all()
    np.testing.assert_allclose(products(x, found), epsilon * reference.norms(array(x), reference.dual(p)), rtol=3e-6)


@given(case=boxed(shape=(1, 4)), epsilon=st.floats(0.1, 8))
def test_the_l1_support_is_the_best_vertex(case: Case, epsilon: float) -> None:
    """A vertex of ball ∩ box: some entries at their bounds, and what is left of epsilon in one more."""
    x, lower, upper = case
    walls = np.where(array(x) > 0, array(upper), -array(lower))[0]
    size, best = np.abs(array(x))[0], 0.0
    for order in itertools.permutations(range(4)):
        left, value = epsilon, 0.0
        for i in order:
            step = min(left, walls[i])
            left, value = left - step, value + step * size[i]
            best = max(best, value)
    found = array(transforms.support_l1_(x.clone(), epsilon, lower, upper))
    np.testing.assert_allclose(products(x, found), best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("p", SUPPORTS)
@given(case=boxed(shape=(3, 2, 2)), epsilon=tensors((3, 1, 1), low=0.0, high=10.0))
def test_a_radius_for_each_datum_is_that_of_each_alone(p: float, case: Case, epsilon: Tensor) -> None:
    x, lower, upper = roughly(case[0]), *case[1:]
    together = SUPPORTS[p](x.clone(), epsilon, lower, upper)
    free = SUPPORTS[p](x.clone(), epsilon)
    for i in range(3):
        row, radius = slice(i, i + 1), epsilon[i].item()
        alone = SUPPORTS[p](x[row].clone(), radius, lower[row], upper[row])
        torch.testing.assert_close(together[row], alone, rtol=4e-6, atol=1e-6)
        torch.testing.assert_close(free[row], SUPPORTS[p](x[row].clone(), radius), rtol=4e-6, atol=1e-30)


@pytest.mark.parametrize("p", SUPPORTS)
@pytest.mark.parametrize("box", [(None, None), (-0.5, None), (None, 0.25), (-math.inf, math.inf)])
def test_bounds_may_be_absent_or_infinite(p: float, box: tuple[Any, Any]) -> None:
    x = torch.tensor([[3.0, -4.0, 1.0, 0.0], [-1.0, 2.0, 5.0, 0.0]])
    bounds = [b if b is not None else s * np.inf for b, s in zip(box, (-1, 1), strict=True)]
    for epsilon in (0.2, 1.0, 3.0):
        best = reference.support(array(x), p, epsilon, *bounds)
        np.testing.assert_allclose(SUPPORTS[p](x.clone(), epsilon, *box), best, atol=4e-6)


@pytest.mark.parametrize("p", SUPPORTS)
@pytest.mark.parametrize("epsilon", [0.5, 30.0, 5000.0])
def test_large_data_reach_the_largest_inner_product(p: float, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    data, x = torch.rand(1, 3, 224, 224, generator=generator), torch.randn(1, 3, 224, 224, generator=generator)
    found = array(SUPPORTS[p](x.clone(), epsilon, -data, 1 - data))
    assert (reference.norms(found, p) <= epsilon * (1 + 1e-6)).all()
    best = reference.support(array(x), p, epsilon, -array(data), 1 - array(data))
    np.testing.assert_allclose(products(x, found), products(x, best), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_point_far_out_does_not_overflow_half_precision(dtype: torch.dtype) -> None:
    x = torch.tensor([[8.0, -4.0, 0.5, 0.25]], dtype=dtype)
    found = transforms.support_l2_(x.clone(), 1.0, -2.0, 2.0)
    torch.testing.assert_close(found, torch.tensor([[0.8917, -0.4459, 0.0557, 0.0279]]).to(dtype), rtol=8e-3, atol=0)


@given(case=boxed(), epsilon=st.integers(1, 20))
def test_the_l0_support_fills_the_entries_that_gain_most(case: Case, epsilon: int) -> None:
    x, lower, upper = case
    walls = np.where(array(x) > 0, array(upper), -array(lower))
    gains = np.sort((np.abs(array(x)) * walls).reshape(len(x), -1), axis=1)[:, ::-1]
    for radius in (epsilon, torch.full((len(x), *[1] * (x.ndim - 1)), epsilon + 0.5)):
        found = array(transforms.support_l0_(x.clone(), radius, lower, upper))
        np.testing.assert_allclose(products(x, found), gains[:, :epsilon].sum(axis=1), rtol=3e-6, atol=1e-6)
        assert (reference.norms(found, 0) <= epsilon).all()
        assert ((array(lower) <= found) & (found <= array(upper))).all()


@pytest.mark.parametrize("box", [(None, 1.0), (-1.0, None)])
def test_the_l0_support_needs_a_box(box: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="only within a box"):
        transforms.support_l0_(torch.ones(1, 2), 1, *box)
