"""Every transform in every type, on parameters of 0 to 5 dimensions, in either memory layout, split at every place."""

import numpy as np
import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st
from torch import Tensor

from raiopt import as_batch
from tests.reference import array
from tests.strategies import FLOATS, parameters, tensors
from tests.transforms.table import PRECISION, TABLE, Row, check

BAD = [float("nan"), float("inf"), -float("inf")]


@st.composite
def boxed_parameters(draw: st.DrawFn, dtype: torch.dtype) -> tuple[Tensor, int | None, Tensor, Tensor]:
    """A parameter, how it is split, and the bounds of each entry, which lie in memory as the entries do."""
    x, param_ndim = draw(parameters(dtype=dtype, low=-16, high=16))
    x[x.abs() < 1e-4] = 0
    walls = tensors((2, *x.shape), low=0.0, high=2.0, dtype=dtype).map(lambda w: w * (w > 1e-3))
    low, high = draw(walls)
    return x, param_ndim, torch.empty_like(x).copy_(-low), torch.empty_like(x).copy_(high)


FAMILIES = sorted({row.name.split("_")[0] for row in TABLE})


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data(), epsilon=st.sampled_from([0.1, 0.5, 1.0, 2.3, 7.0]))
def test_a_transform_has_its_documented_properties(
    family: str, dtype: torch.dtype, data: st.DataObject, epsilon: float
) -> None:
    given_param, param_ndim, lower, upper = data.draw(boxed_parameters(dtype))
    box = as_batch(lower, param_ndim), as_batch(upper, param_ndim)
    arrays = array(box[0]), array(box[1])
    for row in (row for row in TABLE if row.name.startswith(family) and box[0].ndim >= row.min_ndim):
        note(row.name)
        param = given_param.clone()
        about = (param.shape, param.stride(), param.data_ptr(), param.dtype)
        x = as_batch(param, param_ndim)
        before = array(x).copy()
        assert row.call(x, epsilon, *box) is x
        assert (param.shape, param.stride(), param.data_ptr(), param.dtype) == about
        assert torch.equal(as_batch(param, param_ndim), x)
        check(row, before, array(x), epsilon, arrays, dtype)


def _batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 4, 2, generator=generator).mul_(3).to(dtype)
    low, high = torch.rand(2, *x.shape, generator=generator).to(dtype)
    return x, torch.tensor([0.2, 1.0, 2.0, 3.5, 50.0]).view(-1, 1, 1, 1), -low, high


ADDS_NOTHING = {
    *("normalize_inf", "steepest_inf", "keep_top_0.0", "keep_top_0.3", "keep_top_0.9", "clamp"),
    *(f"{name}{box}" for name in ("project_inf", "project_0", "support_inf") for box in ("", "_without_box")),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_a_datum_in_a_batch_is_the_datum_alone(row: Row, dtype: torch.dtype) -> None:
    x, epsilon, lower, upper = _batch(dtype)
    together = row.call(x.clone(), epsilon, lower, upper)
    for i in range(len(x)):
        alone = row.call(x[i : i + 1].clone(), epsilon[i : i + 1], lower[i : i + 1], upper[i : i + 1])
        if row.name in ADDS_NOTHING:
            assert torch.equal(together[i : i + 1], alone)
        else:  # torch may add in another order, by the number of data
            torch.testing.assert_close(together[i : i + 1], alone, rtol=PRECISION[dtype], atol=PRECISION[dtype] / 10)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_values_that_are_not_finite_affect_only_their_sample(row: Row, value: float) -> None:
    x, epsilon, lower, upper = _batch()
    clean = row.call(x.clone(), epsilon, lower, upper)
    x[2, 1, 2, 1] = value
    found = row.call(x, epsilon, lower, upper)
    others = [0, 1, 3, 4]
    assert torch.equal(found[others], clean[others])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_no_value_is_read_on_the_host(row: Row, dtype: torch.dtype) -> None:
    x, epsilon, lower, upper = (part.to("meta") for part in _batch(dtype))
    assert row.call(x, epsilon, lower, upper) is x
    assert row.call(x, 1.0, -0.5, 0.5) is x


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_no_data_stay_no_data(row: Row) -> None:
    x = torch.zeros(0, 3, 2, 2)
    assert row.call(x, 1.0, x.clone(), x.clone()) is x
    assert row.call(x, torch.zeros(0, 1, 1, 1), x.clone(), x.clone()).shape == (0, 3, 2, 2)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_memory_layout_makes_no_difference(row: Row) -> None:
    x, epsilon, lower, upper = _batch()
    last = x.clone(memory_format=torch.channels_last)
    found = row.call(last, epsilon, lower, upper)
    assert found.stride() == last.stride()
    torch.testing.assert_close(found, row.call(x, epsilon, lower, upper), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("row", [row for row in TABLE if row.box], ids=str)
def test_a_box_in_another_type_or_of_numbers_is_kept_in_half_precision(row: Row) -> None:
    x, _, _, _ = _batch(torch.bfloat16)
    found = array(row.call(x.clone(), 2.0, -0.1, torch.tensor(0.3)))
    slack = 0.0 if row.ball not in (None, 0) else 1e-3  # the clamp itself and the choice of entries round the bounds
    assert found.min() >= -0.1 - slack
    assert found.max() <= 0.3 + slack
    assert np.abs(found).max() > 0.05
