"""Laws that hold for every optimizer, whatever the parameter, its gradient and `param_ndim`."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raiopt import as_batch
from tests import reference
from tests.optim.table import FRANK_WOLFE, NORMED, PROJECTING, TABLE, WITH_BALL, Row
from tests.reference import array
from tests.strategies import boxed, scales, split, tensors

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
each = pytest.mark.parametrize("row", TABLE, ids=str)


@pytest.mark.parametrize("row", NORMED, ids=str)
@given(gradient=tensors(low=2**-7), scale=scales(30))
def test_the_gradient_has_the_documented_norm_at_every_magnitude(row: Row, gradient: Tensor, scale: float) -> None:
    _, found = row.step(torch.zeros_like(gradient), gradient * scale)
    if row.parallel:
        np.testing.assert_allclose(array(found), reference.normalize(array(gradient), row.norm or 0), rtol=4e-6)
    else:
        np.testing.assert_allclose(reference.norms(array(found), row.norm or 0), 1.0, rtol=4e-6)


@pytest.mark.parametrize("row", [row for row in TABLE if "Steepest" in str(row)], ids=str)
@given(gradient=tensors())
def test_the_steepest_step_gains_the_dual_norm(row: Row, gradient: Tensor) -> None:
    _, found = row.step(torch.zeros_like(gradient), gradient)
    p = row.required["p"]
    dual = math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)
    gain = (array(found) * array(gradient)).reshape(len(gradient), -1).sum(1)
    np.testing.assert_allclose(gain, reference.norms(array(gradient), dual), rtol=4e-6, atol=1e-30)


@pytest.mark.parametrize("row", PROJECTING, ids=str)
@given(case=boxed(low=-10, high=10), data=st.data())
def test_the_step_ends_at_the_nearest_point_of_ball_and_box(
    row: Row, case: tuple[Tensor, Tensor, Tensor], data: st.DataObject
) -> None:
    start, lower, upper = case
    gradient = data.draw(tensors(tuple(start.shape)))
    free = Row(row.make, {**row.required}).step(start, gradient, epsilon=1e6)[0]  # where the inner optimizer goes
    found = row.step(start, gradient, lower=lower, upper=upper)[0]
    nearest = reference.PROJECTIONS[row.ball or 0](array(free), row.radius, array(lower), array(upper))
    if row.ball == 0:  # not unique, but the distance is
        distance, least = (np.square(array(free) - z).reshape(len(start), -1).sum(1) for z in (array(found), nearest))
        np.testing.assert_allclose(distance, least, rtol=1e-5, atol=1e-4)
    else:
        np.testing.assert_allclose(found, nearest, atol=3e-6)
    assert (reference.norms(array(found), row.ball or 0) <= row.radius * (1 + 1e-6)).all()


@pytest.mark.parametrize("row", [row for row in FRANK_WOLFE if "L1q" not in str(row)], ids=str)
@given(case=boxed(low=-10, high=10), data=st.data())
def test_frank_wolfe_moves_to_the_maximizer_over_ball_and_box(
    row: Row, case: tuple[Tensor, Tensor, Tensor], data: st.DataObject
) -> None:
    gradient, lower, upper = case
    start = data.draw(tensors(tuple(gradient.shape)))
    found = array(row.step(start, gradient, lower=lower, upper=upper)[0])
    best = reference.support(-array(gradient), row.ball or 0, row.radius, array(lower), array(upper))
    gain, most = (-(array(gradient) * z).reshape(len(found), -1).sum(1) for z in (found, best))
    np.testing.assert_allclose(gain, most, rtol=1e-5, atol=1e-5)
    assert (reference.norms(found, row.ball or 0) <= row.radius * (1 + 1e-6)).all()


@each
@given(case=boxed(low=-10, high=10), gradient_scale=scales(3))
def test_the_step_ends_in_the_box_and_in_the_bounds(
    row: Row, case: tuple[Tensor, Tensor, Tensor], gradient_scale: float
) -> None:
    start, lower, upper = case
    found = row.step(start, start * gradient_scale, lower=lower, upper=upper)[0]
    assert ((lower <= found) & (found <= upper)).all()
    assert ((row.bounds[0] <= found) & (found <= row.bounds[1])).all()


@each
@given(case=boxed(low=-10, high=10))
def test_projecting_again_changes_nothing(row: Row, case: tuple[Tensor, Tensor, Tensor]) -> None:
    x, lower, upper = case
    param = x.clone().requires_grad_()
    optimizer = row.build([param], lr=1.0)
    optimizer.param_groups[0].update(lower=lower, upper=upper)
    optimizer.project()
    once = param.detach().clone()
    optimizer.project()
    torch.testing.assert_close(param.detach(), once, rtol=2e-6, atol=1e-30)


@each
@given(start=tensors((3, 2, 4), low=-2, high=2), gradient=tensors((3, 2, 4)))
def test_samples_are_independent(row: Row, start: Tensor, gradient: Tensor) -> None:
    together = row.step(start, gradient)
    for i in range(3):
        alone = row.step(start[i : i + 1], gradient[i : i + 1])
        for of_batch, of_one in zip(together, alone, strict=True):
            torch.testing.assert_close(of_batch[i : i + 1], of_one, rtol=2e-6, atol=1e-30)


@each
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_affect_only_their_sample(row: Row, bad: float) -> None:
    start = torch.tensor([[0.1, 0.2], [0.3, -4.0]])
    spoilt, gradient = start.clone(), torch.tensor([[1.0, bad], [3.0, 4.0]])
    spoilt[0, 1] = bad
    for poisoned, clean in zip(row.step(spoilt, gradient), row.step(start[1:], gradient[1:]), strict=True):
        torch.testing.assert_close(poisoned[1:], clean)


@each
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_zero_gradient_moves_nothing_in_every_type(row: Row, dtype: torch.dtype) -> None:
    start = torch.tensor([[0.125, -0.25], [0.0, 0.25]], dtype=dtype)
    param, gradient = row.step(start, torch.zeros_like(start))
    assert torch.equal(param, start)
    assert row.frank_wolfe or torch.equal(gradient, torch.zeros_like(start))
    assert param.dtype == gradient.dtype == dtype


@each
@given(start=tensors((2, 3), low=-2, high=2), gradient=tensors((2, 3)))
def test_without_a_learning_rate_only_the_projection_acts(row: Row, start: Tensor, gradient: Tensor) -> None:
    param = start.clone().requires_grad_()
    row.build([param], lr=1.0).project()
    assert torch.equal(row.step(start, gradient, lr=0.0)[0], param.detach())


@each
@given(case=split(), data=st.data())
def test_param_ndim_means_that_the_batch_is_the_parameter(
    row: Row, case: tuple[tuple[int, ...], int | None], data: st.DataObject
) -> None:
    shape, param_ndim = case
    start, gradient = (data.draw(tensors(shape, low=-2, high=2)) for _ in range(2))
    by_name = row.step(start, gradient, param_ndim=param_ndim)
    by_hand = row.step(as_batch(start, param_ndim), as_batch(gradient, param_ndim), param_ndim=-1)
    for named, handed in zip(by_name, by_hand, strict=True):
        torch.testing.assert_close(named, handed.view(shape), rtol=2e-6, atol=1e-30)
    if row.elementwise:
        for named, other in zip(by_name, row.step(start, gradient, param_ndim=None), strict=True):
            assert torch.equal(named, other)


@each
@given(start=tensors((2, 3), low=-1, high=1), gradient=tensors((2, 3)), lr=st.floats(0.01, 10))
def test_scale_and_bias_apply_after_the_transform(row: Row, start: Tensor, gradient: Tensor, lr: float) -> None:
    _, plain = row.step(start, gradient, lr)
    _, changed = row.step(start, gradient, lr, grad_scale=-2.0, grad_bias=0.5)
    assert torch.equal(changed, plain * -2.0 + 0.5)


@each
@pytest.mark.parametrize("param_ndim", [-1, 3, None, 1])
def test_channels_last_gives_the_same_where_its_view_exists(row: Row, param_ndim: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient, wall = torch.randn(3, 2, 3, 4, 5, generator=generator)
    box = {"lower": -wall.abs(), "upper": wall.abs()}
    last = start.to(memory_format=torch.channels_last)
    if param_ndim == 1:
        with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\) and strides .* param_ndim=1"):
            row.step(last, gradient, param_ndim=param_ndim, **box)
        return
    expected = row.step(start, gradient, param_ndim=param_ndim, **box)
    for layout in (torch.channels_last, torch.contiguous_format):
        found = row.step(last, gradient.to(memory_format=layout), param_ndim=param_ndim, **box)
        assert found[0].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)


@each
@pytest.mark.parametrize("param_ndim", [-1, 1, 0, None])
def test_a_step_reads_no_value_on_the_host(row: Row, param_ndim: int | None) -> None:
    x, bound = torch.empty(2, 2, 3, device="meta"), torch.empty(2, 2, 3, device="meta")
    group = {} if row.ball is None or param_ndim is None else {"epsilon": torch.empty(2, 1, 1, device="meta")}
    param, _ = row.step(x, x, param_ndim=param_ndim, lower=bound, upper=bound, **group)
    assert param.shape == x.shape


@each
def test_an_empty_batch_is_accepted(row: Row) -> None:
    assert row.step(torch.zeros(0, 2, 3), torch.zeros(0, 2, 3))[0].shape == (0, 2, 3)


@pytest.mark.parametrize("row", WITH_BALL, ids=str)
@pytest.mark.parametrize("param_ndim", [-1, 1, 0])
def test_each_sample_may_have_its_own_radius(row: Row, param_ndim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 3, 2, 4, generator=generator) * 5
    radius = torch.tensor([1.0, 1.5, 2.0] if row.ball == 0 else [0.0, 0.1, 2.0]).view(3, 1, 1)
    together, _ = row.step(start, gradient, epsilon=radius, param_ndim=param_ndim)
    for i in range(3):
        alone, _ = row.step(start[i : i + 1], gradient[i : i + 1], epsilon=radius[i].item(), param_ndim=param_ndim)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=2e-6, atol=1e-30)


@each
def test_the_optimizer_publishes_its_ball(row: Row) -> None:
    optimizer = row.build([torch.zeros(1, 2, requires_grad=True)], lr=1.0)
    assert optimizer.traits.ball == row.ball
    assert ("epsilon" in optimizer.param_groups[0]) == (row.ball is not None)
