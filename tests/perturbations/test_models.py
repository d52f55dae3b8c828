"""Additive perturbations: shapes, starts, bounds."""

import pytest
import torch
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
def test_delta_ndim_out_of_range_is_told(delta_ndim):
    with pytest.raises(ValueError, match=f"delta_ndim={delta_ndim} must lie between -3 and 3"):
        AdditivePerturbation((2, 3, 4), delta_ndim=delta_ndim)


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


def test_bounds_are_the_room_to_the_walls():
    data = torch.tensor([[0.0, 0.25], [1.0, 0.5]])
    lower, upper = AdditivePerturbation(data).bounds(data) or pytest.fail("no bounds")
    assert_close(lower, -data)
    assert_close(upper, 1 - data)
    assert AdditivePerturbation(data, delta_ndim=-1).bounds(data) is None
