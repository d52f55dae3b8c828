"""Verification catches each way in which a claim can be wrong."""

import pytest
import torch
from torch.optim import SGD
from torch.testing import assert_close

from raiopt.attack import Ball, verify
from raiopt.optim import L2NormedGradientOptim, L2ProjectedOptim, LinfProjectedOptim

INF = float("inf")


def model(x):
    """Class 1 if the mean is above one half."""
    score = x.flatten(1).mean(1) - 0.5
    return torch.stack([-score, score], 1)


X = torch.full((3, 1, 2, 2), 0.45)
LABELS = torch.zeros(3).long()


def test_what_is_right_is_verified():
    broken, prediction = verify(model, X, LABELS, torch.full_like(X, 0.1), Ball(INF, 0.1))
    assert broken.all()
    assert prediction.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("pixel", "value", "ball"),
    [
        (1, 0.1002, Ball(INF, 0.1)),
        (1, 0.11, Ball(2, 0.2)),
        (1, 0.8, Ball(None, None)),  # 0.45 + 0.8 lies outside [0, 1]
        (1, float("nan"), Ball(INF, 0.1)),
    ],
)
def test_one_bad_entry_costs_its_sample_and_no_other(pixel, value, ball):
    delta = torch.full_like(X, 0.1)
    delta[pixel, 0, 1, 1] = value
    broken, _ = verify(model, X, LABELS, delta, ball)
    assert broken.tolist() == [True, False, True]


def test_a_claim_that_the_plain_model_denies_is_not_verified():
    delta = torch.tensor([0.1, 0.04, 0.1]).view(3, 1, 1, 1).expand_as(X)
    broken, prediction = verify(model, X, LABELS, delta, Ball(INF, 0.1))
    assert broken.tolist() == [True, False, True]
    assert prediction.tolist() == [1, 0, 1]


def test_the_model_sees_batches_of_another_size():
    sizes = []

    def counting(x):
        sizes.append(len(x))
        return model(x)

    verify(counting, X, LABELS, torch.zeros_like(X), Ball(INF, 0.1))
    assert sum(sizes) == 3
    assert 3 not in sizes


@pytest.mark.parametrize(("param_ndim", "norm"), [(-1, 0.2), (None, 0.2 * 3**0.5), (1, 0.2 / 2**0.5), (0, 0.1)])
def test_the_radius_holds_for_each_row_of_param_ndim(param_ndim, norm):
    delta = torch.full_like(X, 0.1)
    assert Ball(2, norm * 1.001, param_ndim).holds(delta).all()
    assert not Ball(2, norm * 0.999, param_ndim).holds(delta).any()


def test_a_shared_perturbation_is_judged_once_and_clamped():
    shared = torch.full((1, 2, 2), 0.1)
    assert verify(model, X, LABELS, shared, Ball(INF, 0.1, None))[0].all()
    assert not verify(model, X, LABELS, shared, Ball(INF, 0.09, None))[0].any()
    assert verify(model, X, LABELS, shared + 0.9, Ball(INF, 1.0, None))[0].all()


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
    assert str(Ball.of(kind([x], lr=1, param_ndim=param_ndim, **radius))) == text


def test_no_gradient_is_recorded():
    weight = torch.ones(1, requires_grad=True)
    _, prediction = verify(lambda x: model(x * weight), X, LABELS, torch.zeros_like(X), Ball(None, None))
    assert_close(prediction, LABELS)
