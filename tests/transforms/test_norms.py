import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raiopt import transforms
from tests import reference
from tests.reference import array
from tests.strategies import FLOATS, scales, tensors
from tests.transforms.table import NUMBERS

WIDE = {torch.float32: 30, torch.float64: 220}
ACCURACY = {torch.float32: 2e-6, torch.float64: 1e-13}


@st.composite
def magnitudes(draw: st.DrawFn, dtype: torch.dtype) -> Tensor:
    """Data of every magnitude, of which the last two may be far from the others."""
    x = draw(tensors(dtype=dtype)) * draw(scales(WIDE[dtype]))
    x[-2:] *= draw(scales(6))
    return x


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("p", NUMBERS)
@given(data=st.data())
def test_norms_agree_with_numpy_at_every_magnitude(p: float, dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(magnitudes(dtype))
    found = transforms.norms(x, p)
    assert found.shape == (len(x), *[1] * (x.ndim - 1))
    rtol = 3e-7 if dtype is torch.float32 and p in (1, 2, math.inf) else ACCURACY[dtype]
    np.testing.assert_allclose(array(found).ravel(), reference.norms(array(x), p), rtol=rtol, atol=1e-44)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("p", NUMBERS)
@given(data=st.data())
def test_normalize_agrees_with_numpy_at_every_magnitude(p: float, dtype: torch.dtype, data: st.DataObject) -> None:
    x = data.draw(magnitudes(dtype))
    x[x.abs() < 10.0 ** -WIDE[dtype]] = 0  # below it, the lower bound of the divisor acts
    expected = reference.normalize(array(x), p)
    assert transforms.normalize_(x, p) is x
    np.testing.assert_allclose(array(x), expected, rtol=ACCURACY[dtype], atol=1e-37)


@pytest.mark.parametrize("p", NUMBERS)
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 1e-30), (torch.float32, 1e30), (torch.bfloat16, 1e-30), (torch.float64, 1e-220)],
)
def test_the_powers_neither_underflow_nor_overflow(p: float, dtype: torch.dtype, size: float) -> None:
    x = transforms.normalize_(torch.full((2, 3, 5), size, dtype=dtype), p)
    np.testing.assert_allclose(reference.norms(array(x), p), 1.0, rtol=1e-2 if dtype is torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("p", NUMBERS)
def test_entries_beside_a_huge_one_count(p: float) -> None:
    x = torch.tensor([[1e25, *[1e22] * 4000], [1e-25, *[1e-28] * 4000]])
    np.testing.assert_allclose(array(transforms.norms(x, p)).ravel(), reference.norms(array(x), p), rtol=2e-6)


@pytest.mark.parametrize("p", NUMBERS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("eps", [None, 0.0, 1e-38])
def test_a_zero_datum_stays_zero_in_every_type(p: float, dtype: torch.dtype, eps: float | None) -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=dtype)
    assert transforms.normalize_(x, p, eps).tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_eps_bounds_the_divisor() -> None:
    assert transforms.normalize_(torch.tensor([[0.5, 0.0], [4.0, 0.0]]), 2, eps=2.0).tolist() == [[0.25, 0], [1, 0]]


@pytest.mark.parametrize("p", [0.5, 0.999, 0, -1, -math.inf, math.nan])
@pytest.mark.parametrize("transform_", [transforms.norms, transforms.normalize_, transforms.steepest_])
def test_other_norms_are_refused(transform_, p: float) -> None:
    with pytest.raises(ValueError, match=rf"p={p} must be a finite number, at least 1. Infinity is allowed too"):
        transform_(torch.ones(1, 2), p)


def test_single_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4,\) must have the shape \(N, d0, ...\)"):
        transforms.normalize_(torch.ones(4), 2)


@pytest.mark.parametrize("p", [*NUMBERS, 1.05, 20])
@given(x=tensors(), scale=scales(24))
def test_the_steepest_point_has_norm_one_and_reaches_the_dual_norm(p: float, x: Tensor, scale: float) -> None:
    x = x * scale
    x[x.abs() < 1e-30] = 0
    found = array(transforms.steepest_(x.clone(), p))
    any_left = array(x).reshape(len(x), -1).any(axis=1)
    np.testing.assert_allclose(reference.norms(found, p), np.where(any_left, 1.0, 0.0), rtol=2e-6)
    products = (array(x) * found).reshape(len(x), -1).sum(axis=1)
    np.testing.assert_allclose(products, reference.norms(array(x), reference.dual(p)), rtol=4e-6)
    assert (found * array(x) >= 0).all()


@given(x=tensors(low=-2, high=2).map(torch.round))
def test_the_steepest_step_of_l1_is_shared_equally_by_the_largest(x: Tensor) -> None:
    found = transforms.steepest_(x.clone(), 1).flatten(1)
    for row, shares in zip(x.flatten(1), found, strict=True):
        largest = row.abs().max()
        winners = (row.abs() == largest) & (largest > 0)
        torch.testing.assert_close(shares, torch.where(winners, row.sign() / max(1, int(winners.sum())), 0.0))


@pytest.mark.parametrize("shape", [(2, 150528), (2, 3, 224, 224), (1, 2, 3, 224, 224), (3, 224, 673)])
@pytest.mark.parametrize("p", NUMBERS)
def test_norms_of_large_data_are_exact_to_float32(p: float, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(array(transforms.norms(x, p)).ravel(), reference.norms(array(x), p), rtol=1e-6)
