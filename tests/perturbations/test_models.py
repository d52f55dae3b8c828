"""Additive perturbations: shapes, starts, bounds."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from raiopt.perturbations import AdditivePerturbation, PerturbationModel, uniform_like_linf_n_ball_


@pytest.mark.parametrize(
    ("delta_ndim", "shape"),
    [(None, (2, 3, 4)), (-1, (3, 4)), (-2, (4,)), (1, (4,)), (2, (3, 4)), (3, (2, 3, 4)), (0, ())],
)
def test_delta_has_the_trailing_dimensions_that_are_asked_for(delta_ndim, shape):
    perturbation = AdditivePerturbation(torch.zeros(2, 3, 4), delta_ndim=delta_ndim)
    assert perturbation.delta.shape == shape
    assert perturbation(torch.ones(2, 3, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize("delta_ndim", [4, -4])
def test_delta_ndim_out_of_range_is_an_error(delta_ndim):
    with pytest.raises(ValueError, match=f"delta_ndim={delta_ndim} must lie between -3 and 3"):
        AdditivePerturbation((2, 3, 4), delta_ndim=delta_ndim)


@pytest.mark.parametrize("shape", [3, None, "images", 2.5])
def test_neither_data_nor_shape_is_an_error(shape):
    with pytest.raises(TypeError, match=r"data_or_shape=.* must be a tensor or a shape"):
        AdditivePerturbation(shape)


def test_type_and_device_follow_the_data_unless_given():
    data = torch.zeros(2, 3, dtype=torch.float64)
    assert AdditivePerturbation(data).delta.dtype == torch.float64
    assert AdditivePerturbation(data, dtype=torch.float16).delta.dtype == torch.float16
    assert AdditivePerturbation((2, 3), device="meta").delta.is_meta
    with pytest.raises(TypeError, match=r"torch.int64 must be a floating type"):
        AdditivePerturbation(torch.zeros(2, dtype=torch.int64))


def test_start_is_drawn_once_with_its_arguments():
    def start():
        return AdditivePerturbation(
            (4, 5), uniform_like_linf_n_ball_, epsilon=0.2, generator=torch.Generator().manual_seed(3)
        ).delta

    assert_close(start(), start())
    assert 0 < start().abs().max() <= 0.2
    with pytest.raises(TypeError, match="epsilon would have no effect"):
        AdditivePerturbation((4, 5), epsilon=0.2)


def test_data_are_not_written_to_and_the_protocol_holds():
    data = torch.ones(2, 3)
    perturbation = AdditivePerturbation(data, torch.nn.init.ones_)
    assert_close(perturbation(data), torch.full((2, 3), 2.0))
    assert_close(data, torch.ones(2, 3))
    assert isinstance(perturbation, PerturbationModel)


def test_bounds_are_the_distances_to_the_box():
    data = torch.tensor([[0.0, 0.25], [1.0, 0.5]])
    lower, upper = AdditivePerturbation(data).bounds(data) or pytest.fail("no bounds")
    assert_close(lower, -data)
    assert_close(upper, 1 - data)
    assert AdditivePerturbation(data, delta_ndim=-1).bounds(data) is None


@st.composite
def masked(draw):
    """The shape of data, a mask that broadcasts to it, and a `delta_ndim`."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    sides = tuple(draw(st.sampled_from([1, side])) for side in shape[draw(st.integers(0, len(shape))) :])
    mask = draw(hnp.arrays(np.float32, sides, elements=st.sampled_from([0.0, 1.0, -3.0])))
    return shape, mask, draw(st.none() | st.integers(-len(shape), len(shape)))


@given(masked())
def test_only_the_mask_is_perturbed(case):
    shape, mask, delta_ndim = case
    data = torch.rand(shape)
    perturbation = AdditivePerturbation(data, torch.nn.init.ones_, mask=torch.from_numpy(mask), delta_ndim=delta_ndim)
    added = np.broadcast_to(mask != 0, shape).astype(np.float32)
    assert_close(perturbation(data), data + torch.from_numpy(added))
    (gradient,) = torch.autograd.grad(perturbation(data).sum(), [perturbation.delta])
    counts = torch.from_numpy(added.reshape(-1, *gradient.shape).sum(0, keepdims=True))[0]
    assert_close(gradient, counts)
    assert_close(perturbation.delta.detach(), (counts > 0).float())
    bounds = perturbation.bounds(data)
    assert (bounds is None) == perturbation.is_shared(data)
    for bound, room in zip(bounds or (), (-data, 1 - data), strict=False):
        assert_close(bound, room * torch.from_numpy(added))


def test_mask_is_a_buffer_and_has_to_fit():
    perturbation = AdditivePerturbation((2, 3), mask=torch.tensor([0.0, 0.5, 0.0]))
    assert perturbation.state_dict()["mask"].tolist() == [False, True, False]
    assert AdditivePerturbation((2, 3), mask=torch.ones(3), device="meta").mask.is_meta
    assert [name for name, _ in perturbation.named_parameters()] == ["delta"]
    with pytest.raises(ValueError, match=r"mask of shape \(2,\) must broadcast to the data's shape \(2, 3\)"):
        AdditivePerturbation((2, 3), mask=torch.ones(2))
    with pytest.raises(ValueError, match="mask of shape"):
        AdditivePerturbation((1, 3), mask=torch.ones(2, 3))


def test_data_of_a_single_number_and_of_no_samples():
    number, nothing = torch.tensor(2.0), torch.zeros(0, 3)
    assert AdditivePerturbation(number)(number) == 2
    assert AdditivePerturbation(number).bounds(torch.tensor(0.25)) is not None
    assert AdditivePerturbation((), torch.nn.init.constant_, val=3.0)(number) == 5
    assert AdditivePerturbation(nothing)(nothing).shape == (0, 3)
