"""Optimizers that the options of optim build: balls, chains and their members, seeds of random ones."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD

from raiopt.attacks.search import published
from raiopt.optim import AdaptiveStepOptim, L1ProjectedOptim, ParamTransformingOptimizer, SquareOptim
from raiopt.optim.bounded import TRANSFORMS, bounded, with_ball_and_seed
from raiopt.sampling import keyed_generator

SETTINGS = {"steepest": {"p": 1.5}, "variance_tuned": {"beta": 1.0}}
GRADIENTS = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(0))


def moved(make, gradients=GRADIENTS, lr=100.0, **options):
    """Returns the parameter (3, 10) after a step along each gradient."""
    x = torch.zeros(3, 10, requires_grad=True)
    optimizer = make([x], SGD, lr=lr, **options)
    for gradient in gradients:
        x.grad = gradient.clone()
        with published(optimizer, gradient=gradient.clone, generators=[keyed_generator(0, row) for row in range(3)]):
            optimizer.step()
    return x.detach(), optimizer


@pytest.mark.parametrize(("ball", "p"), [("linf", float("inf")), ("l2", 2.0), ("l1", 1.0), ("l0", 0.0), (None, None)])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradient_transforms_come_with_a_ball(name, ball, p):
    epsilon = 3 if ball == "l0" else 0.5
    x, made = moved(partial(bounded, transform=name), ball=ball, epsilon=epsilon, **SETTINGS.get(name, {}))
    assert made.traits.ball == p
    norms = torch.linalg.vector_norm(x.double(), p or 0 if ball else 2, dim=1)
    assert (norms <= epsilon * (1 + 1e-6)).all() if ball else (norms > 1).all()
    assert (norms > 0).all()


def test_an_unknown_ball_is_refused():
    with pytest.raises(ValueError, match=r"ball='l3' must be one of 'linf', 'l2', 'l1', 'l0', 'null'"):
        bounded([], SGD, transform="signed", ball="l3", epsilon=1.0, lr=1.0)


def option(make):
    """Returns the class as the command builds it of a partial with `ball` or `seed`."""
    return lambda params, InnerOpt, **settings: with_ball_and_seed(partial(make, InnerOpt=InnerOpt, **settings), params)


@pytest.mark.parametrize(
    "make", [partial(bounded, transform="top_q"), partial(bounded, transform="l1q"), option(L1ProjectedOptim)]
)
def test_random_draws_depend_on_the_seed_only(make):
    before = torch.random.get_rng_state()
    make = partial(make, epsilon=100.0, lr=1.0, q=0.5, dq=0.4)
    one, two, other = (moved(make, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_chain_of_l1_normed_momentum_and_sign_is_mi_fgsm():
    members = ["l1_normed", {"momentum": {"mu": 0.5}}, "signed"]
    x, _ = moved(bounded, members=members, lr=0.1, epsilon=0.25)
    momentum, expected = np.zeros((3, 10)), np.zeros((3, 10))
    for gradient in GRADIENTS.double().numpy():
        momentum = 0.5 * momentum + gradient / np.abs(gradient).sum(1, keepdims=True)
        expected = np.clip(expected - 0.1 * np.sign(momentum), -0.25, 0.25)
    np.testing.assert_allclose(x, expected, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_chain_of_one_member_is_that_member(name):
    options = SETTINGS.get(name, {})
    alone, _ = moved(partial(bounded, transform=name), lr=0.1, epsilon=0.3, **options)
    for member in [{name: options}] + [name] * (not options):
        assert torch.equal(moved(bounded, lr=0.1, epsilon=0.3, members=[member])[0], alone)


def test_a_chain_of_lookahead_and_momentum_is_nesterovs_method():
    members = [{"lookahead": {"mu": 0.5}}, {"momentum": {"mu": 0.5}}]
    x, _ = moved(bounded, members=members, lr=0.1, epsilon=100.0)
    nesterov = partial(ParamTransformingOptimizer, momentum=0.5)
    expected, _ = moved(nesterov, lr=0.1)
    torch.testing.assert_close(x, expected)  # for gradients that are the same everywhere


@pytest.mark.parametrize(("ball", "p"), [("linf", float("inf")), ("l2", 2), ("l1", 1)])
def test_square_searches_its_ball(ball, p):
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    make: Any = partial(SquareOptim, epsilon=0.5, steps=10, p_init=0.5)
    made = with_ball_and_seed(partial(make, ball=ball), [x])
    made.step()
    assert made.traits.ball == p
    torch.testing.assert_close(torch.linalg.vector_norm(x.flatten(1), p, dim=1), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match=r"ball=l0 is not a ball of SquareOptim: p=0.0 must be one of 1, 2, inf"):
        with_ball_and_seed(partial(make, ball="l0"), [x])


def test_balls_of_classes_are_checked_by_name():
    make = partial(AdaptiveStepOptim, epsilon=1.0, steps=3)
    x = [torch.zeros(1, 2, requires_grad=True)]
    assert with_ball_and_seed(partial(make, ball="l1"), x).p == 1
    with pytest.raises(ValueError, match=r"ball='l7' must be one of 'linf', 'l2', 'l1', 'l0'"):
        with_ball_and_seed(partial(make, ball="l7"), x)
    with pytest.raises(TypeError, match="epsilon"):
        with_ball_and_seed(partial(make, ball="l2", epsilon="much"), x)


def test_members_draw_from_the_seed_of_the_chain():
    draw = partial(moved, bounded, members=[{"top_q": {"q": 0.5, "dq": 0.4}}], epsilon=100.0, lr=1.0)
    assert torch.equal(draw(seed=3)[0], draw(seed=3)[0])
    assert not torch.equal(draw(seed=3)[0], draw(seed=4)[0])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("signed", r"members='signed' must be a list, as in members=\[l1_normed,"),
        ([], r"members=\[\] must be a list"),
        (["sined"], "members='sined' must be one of .* Did you mean 'signed'"),
        ([{"momentum": {"nu": 1.0}}], "members: nu is not a setting of momentum. It has mu"),
        ([{"variance_tuned": {"neighbours": 1}}], "members: neighbours is not a setting .* Did you mean neighbors"),
        ([{"signed": {"p": 1}}], "members: p is not a setting of signed. It has none"),
        ([{"signed": {}, "l1q": {}}], "must be a name or one {name: {setting: value}}"),
        ([{"momentum": 1.0}], "members: {'momentum': 1.0} must be a name or one"),
        ([3], "members: 3 must be a name or one"),
        ([{"steepest": {"p": -1}}], "p=-1"),
        ([{"momentum": {"mu": 1.0}}, {"momentum": {"mu": 0.5}}], "mu=0.5 would have no effect"),
    ],
)
def test_invalid_chain_members_are_refused(members, message):
    with pytest.raises(ValueError, match=message):
        moved(bounded, members=members, epsilon=1.0)
