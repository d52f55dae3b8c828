import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raiopt import as_batch
from raiopt.batching import merged_dims
from tests import reference
from tests.strategies import FLOATS, LAYOUTS, parameters, shapes, split


@given(split())
def test_the_batch_has_the_documented_shape_and_is_a_view(case: tuple[tuple[int, ...], int | None]) -> None:
    shape, param_ndim = case
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    batch = as_batch(x, param_ndim)
    assert tuple(batch.shape) == reference.rows(shape, param_ndim)
    assert torch.equal(batch.flatten(), x.flatten())
    assert batch.data_ptr() == x.data_ptr()


FLOAT_GRID = [
    pytest.param(dtype, shape, last, id=f"{str(dtype)[6:]}-{shape}{'-last' * last}")
    for dtype in FLOATS
    for shape in [
        (),
        (3,),
        (2, 3),
        (2, 3, 4),
        (2, 3, 4, 5),
        (2, 3, 2, 4, 3),
        (1, 3, 1, 4),
        (2, 1, 3, 3),
        (2, 3, 1, 1, 2),
    ]
    for last in ([False, True] if len(shape) in LAYOUTS else [False])
]


@pytest.mark.parametrize(("dtype", "shape", "last"), FLOAT_GRID)
def test_every_split_of_every_layout_is_a_view_or_an_error(
    dtype: torch.dtype, shape: tuple[int, ...], last: bool
) -> None:
    x = torch.arange(float(math.prod(shape))).view(shape).to(dtype)
    x = x.to(memory_format=LAYOUTS[len(shape)]) if last else x
    for param_ndim in [None, *range(-x.ndim, x.ndim + 1)]:
        if not reference.has_view(shape, x.stride(), param_ndim):
            about = f"shape {shape} and strides {x.stride()} has no view for param_ndim={param_ndim}:"
            with pytest.raises(ValueError, match=re.escape(about)):
                as_batch(x, param_ndim)
            continue
        batch = as_batch(x, param_ndim)
        assert tuple(batch.shape) == reference.rows(shape, param_ndim)
        assert batch.dtype is dtype
        assert batch.flatten().tolist() == x.flatten().tolist()
        kept = x.clone()
        batch.add_(1)  # writing into the view writes into the parameter
        assert torch.equal(x, kept + 1)


@given(parameters())
def test_tensors_of_the_strategy_have_a_view(case: tuple[torch.Tensor, int | None]) -> None:
    x, param_ndim = case
    assert as_batch(x, param_ndim).data_ptr() == x.data_ptr()


@given(shapes(), st.integers(1, 4))
def test_negative_and_positive_param_ndim_are_complementary(shape: tuple[int, ...], merged: int) -> None:
    merged = min(merged, len(shape))
    x = torch.zeros(shape)
    assert as_batch(x, -merged).shape == as_batch(x, len(shape) - merged).shape


@pytest.mark.parametrize("param_ndim", [-1, 3, None])
def test_channels_last_has_a_view_where_whole_images_are_data(param_ndim: int | None) -> None:
    x = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    batch = as_batch(x, param_ndim)
    assert batch.data_ptr() == x.data_ptr()
    assert torch.equal(batch.reshape(x.shape), x)


@pytest.mark.parametrize("param_ndim", [0, 1, 2])
def test_channels_last_without_a_view_names_shape_strides_and_param_ndim(param_ndim: int) -> None:
    x = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=rf"\(2, 3, 4, 5\).*\(60, 1, 15, 3\).*param_ndim={param_ndim}"):
        as_batch(x, param_ndim)


@pytest.mark.parametrize("param_ndim", [3, -3])
def test_param_ndim_out_of_range(param_ndim: int) -> None:
    with pytest.raises(ValueError, match=rf"param_ndim={param_ndim} .*\(2, 3\).* between -2 and 2"):
        as_batch(torch.zeros(2, 3), param_ndim)


@pytest.mark.parametrize("param_ndim", [1.0, True, "1"])
def test_param_ndim_of_another_type(param_ndim: object) -> None:
    with pytest.raises(TypeError, match=r"param_ndim=.* must be an integer or None"):
        merged_dims((2, 3), param_ndim)  # pyright: ignore[reportArgumentType]


def test_sparse_tensors_have_their_own_message() -> None:
    with pytest.raises(TypeError, match=r"dense.*sparse_coo.*to_dense"):
        as_batch(torch.eye(2).to_sparse(), -1)


def test_no_data_make_an_empty_batch() -> None:
    assert as_batch(torch.zeros(0, 3, 4), 1).shape == (0, 4)
