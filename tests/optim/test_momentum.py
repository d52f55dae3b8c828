"""NI-, VMI- and VNI-FGSM as chains, against the papers' loops in NumPy and float64."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hydra_zen import builds, instantiate, to_yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, Adam

from raiopt.attacks.rows import select_rows
from raiopt.attacks.search import published
from raiopt.optim import (
    ChainedParamTransformingOptimizer,
    L1NormedGradientOptim,
    LookaheadGradientOptim,
    MomentumGradientOptim,
    ParamTransformingOptimizer,
    ProjectedParameterOptimizer,
    SignedGradientOptim,
    VarianceTunedGradientOptim,
)
from raiopt.sampling import keyed_generator
from tests.reference import Array, array
from tests.strategies import tensors

MI = (L1NormedGradientOptim, MomentumGradientOptim, SignedGradientOptim)
TUNED = partial(VarianceTunedGradientOptim, epsilon=0.1)
IN_LINF = partial(ProjectedParameterOptimizer, p=math.inf, epsilon=0.1)
ROWS, CLASSES, SIZE, STEPS, LR = 3, 4, 6, 8, 0.03


class Softmax:
    """Minus the cross entropy of a linear model at fixed points, each moved by a row of x."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(SIZE, CLASSES, generator=generator, dtype=torch.float64)
        self.points = torch.randn(ROWS, SIZE, generator=generator, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        return ((self.points + x.detach()) @ self.weights).log_softmax(1)[:, 0].clone()

    def gradient(self, x: Tensor) -> Tensor:
        leaf = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(((self.points + leaf) @ self.weights).log_softmax(1)[:, 0].sum(), leaf)[0]

    def by_hand(self, x: Array) -> Array:
        """The gradient in closed form."""
        logits = (array(self.points) + x) @ array(self.weights)
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        return (np.eye(CLASSES)[0] - shares) @ array(self.weights).T


def run(
    optimizer: ParamTransformingOptimizer, gradient: Callable[[Tensor], Tensor], steps: int, sources: Any = None
) -> Tensor:
    """Takes steps as a solver does; returns the parameter."""
    (param,) = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        param.grad = gradient(param)
        with published(optimizer, gradient=lambda: gradient(param), generators=sources):
            optimizer.step()
    return param.detach()


def leaf() -> Tensor:
    return torch.zeros(ROWS, SIZE, dtype=torch.float64, requires_grad=True)


def chained(*members: Any, x: Tensor, lr: float = LR) -> ChainedParamTransformingOptimizer:
    return ChainedParamTransformingOptimizer(*members, params=[x], lr=lr)


def normed(gradient: Array) -> Array:
    return gradient / np.abs(gradient).sum(1, keepdims=True)


@given(gradients=tensors((4, 2, 3)), mu=st.sampled_from([0.0, 0.5, 1.0]))
def test_momentum_agrees_with_torchs_sgd(gradients: Tensor, mu: float) -> None:
    x, y = (torch.zeros(2, 3, requires_grad=True) for _ in range(2))
    ours, torchs = MomentumGradientOptim([x], mu=mu, lr=0.1), SGD([y], lr=0.1, momentum=mu)
    for gradient in gradients:
        x.grad, y.grad = gradient.clone(), gradient.clone()
        ours.step()
        torchs.step()
    torch.testing.assert_close(x, y)


@pytest.mark.parametrize("param_ndim", [-1, 0, 1, None])
def test_momentum_is_kept_beside_the_inner_state_in_the_shape_of_the_parameter(param_ndim: int | None) -> None:
    params = [torch.zeros(2, 3, 4, requires_grad=True), torch.zeros(5, 2, requires_grad=True)]
    optimizer = ChainedParamTransformingOptimizer(
        MomentumGradientOptim,
        SignedGradientOptim,
        params=[{"params": params[:1]}, {"params": params[1:]}],
        InnerOpt=Adam,
        lr=0.1,
        param_ndim=param_ndim,
    )
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    state = optimizer.inner_opt.state_dict()["state"]
    assert {key: tuple(value["momentum"].shape) for key, value in state.items() if isinstance(key, str)} == {
        "MomentumGradientOptim.0": (2, 3, 4),
        "MomentumGradientOptim.1": (5, 2),
    }
    assert (state["MomentumGradientOptim.1"]["momentum"] == 2).all()
    assert "index" not in optimizer.param_groups[0]


def test_mi_fgsm_is_a_chain() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(5, 2, 6, generator=generator)
    x = torch.zeros(2, 6, requires_grad=True)
    optimizer = ChainedParamTransformingOptimizer(
        L1NormedGradientOptim,
        MomentumGradientOptim,
        SignedGradientOptim,
        partial(ProjectedParameterOptimizer, p=float("inf"), epsilon=0.03),
        params=[x],
        lr=0.01,
    )
    momentum, expected = np.zeros((2, 6)), np.zeros((2, 6))
    for gradient in gradients:
        x.grad = gradient.clone()
        optimizer.step()
        momentum += array(gradient) / np.abs(array(gradient)).sum(1, keepdims=True)
        expected = np.clip(expected - 0.01 * np.sign(momentum), -0.03, 0.03)
    np.testing.assert_allclose(array(x), expected, atol=1e-7)


@pytest.mark.parametrize("mu", [-0.5, float("nan")])
def test_mu_is_at_least_0(mu: float) -> None:
    with pytest.raises(ValueError, match=f"mu={mu} must be a finite number, at least 0"):
        MomentumGradientOptim([torch.zeros(1, requires_grad=True)], mu=mu, lr=1.0)


def test_momentum_of_another_dtype_or_device_is_converted() -> None:
    x, y = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    before, after = MomentumGradientOptim([x], lr=1.0), MomentumGradientOptim([y], lr=1.0)
    x.grad, y.grad = torch.ones_like(x), torch.ones_like(y)
    before.step()
    after.load_state_dict(before.state_dict())
    after.step()
    assert after.state["MomentumGradientOptim.0"]["momentum"].dtype == torch.float32
    assert (y.grad == 2).all()
    meta = torch.zeros(2, 3, device="meta", requires_grad=True)
    moved = MomentumGradientOptim([meta], lr=1.0)
    moved.load_state_dict(before.state_dict())
    meta.grad = torch.zeros_like(meta)
    moved.step()
    assert moved.state["MomentumGradientOptim.0"]["momentum"].device.type == "meta"


@given(st.integers(0, 2**32), st.sampled_from([0.5, 1.0]))
def test_lookahead_then_momentum_is_nesterovs_method(seed: int, mu: float) -> None:
    model, x = Softmax(seed), leaf()
    members = partial(LookaheadGradientOptim, mu=mu), partial(MomentumGradientOptim, mu=mu)
    found = run(chained(*members, x=x), model.gradient, STEPS)
    expected, velocity = np.zeros((ROWS, SIZE)), np.zeros((ROWS, SIZE))
    for _ in range(STEPS):
        velocity = mu * velocity + model.by_hand(expected - LR * mu * velocity)
        expected = expected - LR * velocity
    np.testing.assert_allclose(array(found), expected, atol=1e-12)


@given(st.integers(0, 2**32))
def test_ni_fgsm_is_a_chain(seed: int) -> None:
    model, x = Softmax(seed), leaf()
    found = run(chained(LookaheadGradientOptim, *MI, IN_LINF, x=x), model.gradient, STEPS)
    expected, before, momentum = (np.zeros((ROWS, SIZE)) for _ in range(3))
    for _ in range(STEPS):
        momentum = momentum + normed(model.by_hand(2 * expected - before))
        before, expected = expected, np.clip(expected - LR * np.sign(momentum), -0.1, 0.1)
    np.testing.assert_allclose(array(found), expected, atol=1e-12)


@given(st.integers(0, 2**32), st.booleans())
def test_vmi_and_vni_fgsm_are_chains(seed: int, looks_ahead: bool) -> None:
    model, x, sources = Softmax(seed), leaf(), [keyed_generator(seed, i) for i in range(ROWS)]
    ahead = (LookaheadGradientOptim,) * looks_ahead
    found = run(chained(*ahead, TUNED, *MI, IN_LINF, x=x), model.gradient, STEPS, sources)
    expected, before, momentum, variance = (np.zeros((ROWS, SIZE)) for _ in range(4))
    draws = [keyed_generator(seed, i) for i in range(ROWS)]
    for _ in range(STEPS):
        own = model.by_hand(2 * expected - before if looks_ahead else expected)
        momentum = momentum + normed(own + variance)
        noise = [np.stack([array(torch.rand(SIZE, generator=g)) for g in draws]) * 0.3 - 0.15 for _ in range(5)]
        variance = np.mean([model.by_hand(expected + each) for each in noise], axis=0) - own
        before, expected = expected, np.clip(expected - LR * np.sign(momentum), -0.1, 0.1)
    np.testing.assert_allclose(array(found), expected, atol=1e-12)


@pytest.mark.parametrize("param_ndim", [-1, 0, 1, None])
def test_every_view_of_a_parameter_evaluates_the_same_points(param_ndim: int | None) -> None:
    weights = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    x, asked = torch.zeros(2, 3, 4, requires_grad=True), []

    def gradient(at: Tensor) -> Tensor:
        asked.append(at.detach().clone())
        return (at.detach() + weights).cos()

    made = ChainedParamTransformingOptimizer(
        LookaheadGradientOptim, TUNED, params=[x], lr=0.1, param_ndim=param_ndim, InnerOpt=Adam
    )
    run(made, gradient, 2, [keyed_generator(0, i) for i in range(2)])
    moved = asked[6]  # after the first step: a gradient of its own, and five neighbours
    torch.testing.assert_close(asked[7], 2 * moved)  # where the same move leads once more
    for near in asked[8:]:
        assert 0 < (near - moved).abs().max() <= 0.15 + 1e-6
    assert len(asked) == 6 + 7
    own = {key: set(value) for key, value in made.state.items() if isinstance(key, str)}
    assert own == {"LookaheadGradientOptim.0": {"k", "last"}, "VarianceTunedGradientOptim.0.1": {"variance"}}


@pytest.mark.parametrize("members", [(LookaheadGradientOptim, *MI), (TUNED, *MI), (LookaheadGradientOptim, TUNED, *MI)])
def test_removed_rows_do_not_affect_remaining_rows(members: Any) -> None:
    model, index = Softmax(0), torch.tensor([0, 2])
    whole, part = leaf(), leaf()
    expected = run(chained(*members, x=whole), model.gradient, 6, [keyed_generator(0, i) for i in range(ROWS)])
    optimizer, sources = chained(*members, x=part), [keyed_generator(0, i) for i in range(ROWS)]
    run(optimizer, model.gradient, 3, sources)
    select_rows(optimizer, part, index)
    model.points = model.points[index]
    found = run(optimizer, model.gradient, 3, [sources[i] for i in index])
    torch.testing.assert_close(found, expected[index])


@pytest.mark.parametrize("Optim", [LookaheadGradientOptim, TUNED])
def test_the_parameter_is_restored_after_the_lookahead(Optim: Any) -> None:
    x = torch.full((2, 3), 0.1, requires_grad=True)
    optimizer = Optim([x], lr=0.0)
    with torch.no_grad():
        for _ in range(3):
            x.add_(0.1)
            kept = x.detach().clone()
            run(optimizer, lambda at: at.detach().cos(), 1)
            assert torch.equal(x, kept)


def test_without_a_gradient_nothing_is_evaluated() -> None:
    for Optim in (LookaheadGradientOptim, TUNED):
        Optim([torch.zeros(2, 3, requires_grad=True)], lr=0.1).step()


def test_lookahead_needs_the_solver() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    x.grad = torch.ones_like(x)
    ahead, around = LookaheadGradientOptim([x], lr=0.1), TUNED([x], lr=0.1)
    ahead.step()  # there was no move before
    for optimizer in (ahead, around):
        with pytest.raises(ValueError, match=r"GradientOptim reads 'gradient' \(a function\) from its group"):
            optimizer.step()


def test_lookahead_must_be_the_first_member() -> None:
    with pytest.raises(ValueError, match=r"LookaheadGradientOptim must stand first in a chain: .* L1Normed"):
        chained(L1NormedGradientOptim, LookaheadGradientOptim, x=leaf())


def test_variance_is_tuned_before_anything_changes_the_gradient() -> None:
    chained(LookaheadGradientOptim, TUNED, L1NormedGradientOptim, x=leaf())
    with pytest.raises(ValueError, match=r"VarianceTuned.* must stand before L1NormedGradientOptim in a"):
        chained(LookaheadGradientOptim, L1NormedGradientOptim, TUNED, x=leaf())


def test_lookahead_and_momentum_have_one_mu() -> None:
    with pytest.raises(ValueError, match=r"mu=0\.5 would have no effect"):
        chained(LookaheadGradientOptim, partial(MomentumGradientOptim, mu=0.5), x=leaf())


@pytest.mark.parametrize(
    ("Optim", "options", "message"),
    [
        (LookaheadGradientOptim, {"mu": -1.0}, "mu=-1.0 must be a finite number, at least 0"),
        (TUNED, {"beta": -1.0}, "beta=-1.0 must be a finite number, at least 0"),
        (TUNED, {"neighbors": 0}, "neighbors=0 must be an integer, at least 1"),
        (TUNED, {"epsilon": -0.5}, "epsilon=-0.5 must be"),
    ],
)
def test_bad_hyperparameters_are_refused(Optim: Any, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optim([leaf()], lr=0.1, **options)


@pytest.mark.parametrize("Optim", [LookaheadGradientOptim, VarianceTunedGradientOptim])
def test_hydra_zen_builds_them_with_their_full_signature(Optim: type[ParamTransformingOptimizer]) -> None:
    config = builds(Optim, zen_partial=True, populate_full_signature=True)
    assert "param_ndim: -1" in to_yaml(config)
    required: dict[str, Any] = {"epsilon": 0.1} if Optim is VarianceTunedGradientOptim else {}
    assert type(instantiate(config, **required)([leaf()], lr=0.1)) is Optim
    parameters = inspect.signature(Optim).parameters
    assert list(parameters)[:2] == ["params", "InnerOpt"]
    assert parameters["InnerOpt"].default is SGD
