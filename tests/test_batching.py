import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raiopt import as_batch
from raiopt.batching import merged_dims
from tests import reference
from tests.strategies import shapes, split


@given(split())
def test_the_batch_has_the_shape_that_the_words_say_and_is_a_view(case: tuple[tuple[int, ...], int | None]) -> None:
    shape, param_ndim = case
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    batch = as_batch(x, param_ndim)
    assert tuple(batch.shape) == reference.rows(shape, param_ndim)
    assert torch.equal(batch.flatten(), x.flatten())
    assert batch.data_ptr() == x.data_ptr()


@given(shapes(), st.integers(1, 4))
def test_a_negative_number_counts_what_a_positive_one_leaves(shape: tuple[int, ...], merged: int) -> None:
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
