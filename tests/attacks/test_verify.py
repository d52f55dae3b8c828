"""Verification rejects every kind of wrong claim."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.testing import assert_close

from raiopt.attacks import Ball, Claim, verify
from raiopt.optim import (
    L2NormedGradientOptim,
    L2ProjectedOptim,
    LinfProjectedOptim,
    ParamTransformingOptimizer,
    Traits,
)
from tests.strategies import shapes, tensors

INF = float("inf")


def model(x):
    """Class 1 if the mean is above one half."""
    score = x.flatten(1).mean(1) - 0.5
    return torch.stack([-score, score], 1)


X = torch.full((3, 1, 2, 2), 0.45)
LABELS = torch.zeros(3).long()


def added(delta, ball):
    """One additive perturbation for each sample, within the bounds of its pixels."""
    return Claim(delta, ball, bounds=(-X, 1 - X))


def shared(delta, ball):
    return Claim(delta, ball, shared=True)


def test_correct_claims_are_verified():
    verification = verify(model, X, LABELS, added(torch.full_like(X, 0.1), Ball(INF, 0.1)))
    assert verification.broken.all()
    assert verification.broken_8bit is None
    assert verification.prediction.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("pixel", "value", "ball"),
    [
        (1, 0.1002, Ball(INF, 0.1)),
        (1, 0.11, Ball(2, 0.2)),
        (1, 0.8, Ball(None, None)),  # 0.45 + 0.8 lies outside [0, 1]
        (1, float("nan"), Ball(INF, 0.1)),
    ],
)
def test_one_bad_entry_invalidates_only_its_sample(pixel, value, ball):
    delta = torch.full_like(X, 0.1)
    delta[pixel, 0, 1, 1] = value
    broken = verify(model, X, LABELS, added(delta, ball)).broken
    assert broken.tolist() == [True, False, True]


def test_a_claim_that_the_plain_model_contradicts_is_not_verified():
    delta = torch.tensor([0.1, 0.04, 0.1]).view(3, 1, 1, 1).expand_as(X)
    verification = verify(model, X, LABELS, added(delta, Ball(INF, 0.1)))
    assert verification.broken.tolist() == [True, False, True]
    assert verification.prediction.tolist() == [1, 0, 1]


def test_the_model_sees_batches_of_another_size():
    sizes = []

    def counting(x):
        sizes.append(len(x))
        return model(x)

    verify(counting, X, LABELS, added(torch.zeros_like(X), Ball(INF, 0.1)))
    assert sum(sizes) == 3
    assert 3 not in sizes


@pytest.mark.parametrize(("param_ndim", "norm"), [(-1, 0.2), (None, 0.2 * 3**0.5), (1, 0.2 / 2**0.5), (0, 0.1)])
def test_the_radius_holds_for_each_row_of_param_ndim(param_ndim, norm):
    delta = torch.full_like(X, 0.1)
    assert Ball(2, norm * 1.001, param_ndim).contains(delta).all()
    assert not Ball(2, norm * 0.999, param_ndim).contains(delta).any()


def test_a_shared_perturbation_is_judged_once_and_clamped():
    delta = torch.full((1, 2, 2), 0.1)
    assert verify(model, X, LABELS, shared(delta, Ball(INF, 0.1, None))).broken.all()
    assert not verify(model, X, LABELS, shared(delta, Ball(INF, 0.09, None))).broken.any()
    assert verify(model, X, LABELS, shared(delta + 0.9, Ball(INF, 1.0, None))).broken.all()


def test_the_ball_of_an_optimizer():
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    assert Ball.of(L2ProjectedOptim([x], lr=1, epsilon=0.5)) == Ball(2, 0.5)
    assert Ball.of(L2NormedGradientOptim([x], lr=1)) == Ball(None, None, -1)
    assert Ball.of(SGD([x], lr=1)) == Ball(None, None, -1)


@pytest.mark.parametrize(
    ("kind", "ndim", "param_ndim", "text"),
    [
        (LinfProjectedOptim, 4, -1, "Linf 1.5"),
        (LinfProjectedOptim, 4, None, "Linf 1.5"),
        (LinfProjectedOptim, 4, 1, "Linf 1.5"),
        (L2ProjectedOptim, 4, -1, "L2 1.5"),
        (L2ProjectedOptim, 4, 3, "L2 1.5"),
        (L2ProjectedOptim, 3, None, "L2 1.5"),
        (L2ProjectedOptim, 4, None, "L2 1.5 in all"),
        (L2ProjectedOptim, 4, 1, "L2 1.5 per 1-d row"),
        (L2ProjectedOptim, 3, -1, "L2 1.5 per 2-d row"),
        (L2NormedGradientOptim, 4, -1, "unbounded"),
    ],
)
def test_equal_balls_have_one_name_and_others_another(kind, ndim, param_ndim, text):
    x = torch.zeros((2, 3, 4, 4)[-ndim:], requires_grad=True)
    radius = {} if kind is L2NormedGradientOptim else {"epsilon": 1.5}
    assert str(Ball.of(kind([x], lr=1, param_ndim=param_ndim, **radius), shared=ndim == 3)) == text


def test_no_gradient_is_recorded():
    weight = torch.ones(1, requires_grad=True)
    verification = verify(lambda x: model(x * weight), X, LABELS, added(torch.zeros_like(X), Ball(None, None)))
    assert_close(verification.prediction, LABELS)


@pytest.mark.parametrize(("p", "norm"), [(0, 3), (1, 0.6), (2, 0.14**0.5), (INF, 0.3)])
def test_the_norm_of_every_order(p, norm):
    delta = torch.tensor([0.0, -0.1, 0.2, 0.3]).view(1, 1, 2, 2)
    assert Ball(p, norm * 1.00001).contains(delta).all()
    assert not Ball(p, norm * 0.999).contains(delta).any()


@given(
    delta=tensors(shapes(min_ndim=4)),
    p=st.sampled_from([0, 1, 2, INF]),
    param_ndim=st.sampled_from([-1, 0, 1, 3, None]),
    epsilon=st.floats(0, 300, allow_subnormal=False),
)
def test_the_ball_agrees_with_numpy(delta, p, param_ndim, epsilon):
    x, leading = delta.double().numpy(), {-1: 1, 0: 4, 1: 3, 3: 1, None: 0}[param_ndim]
    norms = [np.linalg.norm(x[index].ravel(), p) for index in np.ndindex(x.shape[:leading])]
    inside = np.reshape(norms, x.shape[:leading]) <= epsilon * (1 + 1e-6)
    expected = [bool(np.all(inside[row] if leading else inside)) for row in range(len(x))]
    assert Ball(p, epsilon, param_ndim).contains(delta).tolist() == expected


def test_a_pixel_counts_once_however_many_channels_change():
    delta = torch.zeros(2, 3, 2, 2)
    delta[0, :, 0, 0] = 0.1
    delta[1, 0, 0, 0] = delta[1, 2, 1, 1] = -0.1
    assert Ball(0, 1, pixels=True).contains(delta).tolist() == [True, False]
    assert Ball(0, 2).contains(delta).tolist() == [False, True]
    assert Ball(0, 3, None, pixels=True).contains(delta).tolist() == [True, True]  # three pixels in the whole batch
    assert Ball(0, 2, None, pixels=True).contains(delta).tolist() == [False, False]


class Counting(ParamTransformingOptimizer):
    traits = Traits(ball=0, pixels=True)


class CountingEntries(Counting):
    traits = Traits(ball=0)


@pytest.mark.parametrize(
    ("kind", "shape", "shared", "what", "text"),
    [
        (Counting, (2, 3, 4, 4), False, "", "L0 30 pixels"),
        (CountingEntries, (2, 3, 4, 4), False, "", "L0 30"),
        (CountingEntries, (1, 3, 4, 4), True, "patch", "L0 30 of the patch"),
        (CountingEntries, (2, 4), False, "pose", "L0 30 of the pose"),
        (CountingEntries, (5,), True, "curve", "L0 30 of the curve per 0-d row"),
    ],
)
def test_the_name_of_a_ball_describes_it(kind, shape, shared, what, text):
    x = torch.zeros(shape, requires_grad=True)
    optimizer = kind([x], lr=1, defaults={"epsilon": 30.0})
    assert str(Ball.of(optimizer, shared=shared, what=what)) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_not_a_success(value):
    verification = verify(lambda x: model(x) * torch.tensor([1.0, value]), X, LABELS, added(X / 2, Ball(INF, 1)))
    assert verification.prediction.tolist() == [1, 1, 1]
    assert not verification.broken.any()


def test_each_row_has_its_own_radius():
    delta = torch.full_like(X, 0.1)
    ball = Ball(INF, torch.tensor([0.1, 0.05, 0.2]))
    assert verify(model, X, LABELS, added(delta, ball)).broken.tolist() == [True, False, True]
    claim = added(delta, ball).take(torch.tensor([1, 2]))
    assert verify(model, X[1:], LABELS[1:], claim).broken.tolist() == [False, True]
    assert claim.bounds[0].shape == claim.parameter.shape == (2, 1, 2, 2)


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (1, 1, 1, 1), (1, 2, 1, 1), (2, 1, 1), (3, 2, 1, 1), (3, 2, 4, 4)])
def test_the_radii_of_an_optimizer_are_those_of_its_rows(shape):
    x = torch.zeros(3, 2, 4, 4, requires_grad=True)
    epsilon = torch.arange(1.0, 1 + math.prod(shape)).view(shape) if shape[-1] == 1 else torch.ones(shape)
    ball = Ball.of(L2ProjectedOptim([x], lr=1, epsilon=epsilon, param_ndim=2))
    index = torch.tensor([2, 0])
    expected = epsilon.expand(x.shape).flatten(1).amax(1)
    inside = torch.zeros(3, 2, 4, 4)
    inside[:, 0, 0, 0] = expected
    assert ball.contains(inside).all()
    assert not ball.contains(1.001 * inside).any()
    assert ball.take(index).contains(inside[index]).all()
    assert not ball.take(index).contains(1.001 * inside[index]).any()


def test_a_parameter_out_of_bounds_invalidates_its_sample():
    pose = torch.zeros(3, 4)
    pose[1, 2] = 1.00001
    claim = Claim(pose, Ball(None, None), bounds=(-torch.ones(3, 4), torch.ones(3, 4)), perturb=lambda x: x + 0.1)
    assert verify(model, X, LABELS, claim).broken.tolist() == [True, False, True]


def test_a_shared_parameter_out_of_bounds_invalidates_all_samples():
    one = torch.ones(1, 1, 1, 1)
    claim = Claim(1.00001 * one, Ball(None, None), True, (0 * one, one), lambda x: x + 0.1)
    assert not verify(model, X, LABELS, claim).broken.any()


@pytest.mark.parametrize(("bounds", "broken"), [((torch.zeros(3), torch.ones(3)), False), (None, True)])
def test_an_image_outside_of_the_box_is_a_success_only_when_clamped(bounds, broken):
    claim = Claim(torch.zeros(3), Ball(None, None), bounds=bounds, perturb=lambda x: x + 0.7)
    assert verify(model, X, LABELS, claim).broken.tolist() == [broken] * 3


def test_the_difference_of_the_images_is_the_parameter_only_where_it_is_simply_added():
    delta = torch.full_like(X, 0.9)
    assert added(delta, Ball(None, None)).delta(X) is delta
    assert_close(shared(delta[:1], Ball(None, None)).delta(X), 1 - X)
    moved = Claim(torch.zeros(3, 4), Ball(None, None), bounds=(X, X), perturb=lambda x: 2 * x)
    assert_close(moved.delta(X), X)
