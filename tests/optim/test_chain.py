import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.optim import SGD, Adam

from raiopt import transforms
from raiopt.optim import (
    ALMAOptim,
    ChainedParamTransformingOptimizer,
    ClampedGradientOptimizer,
    ClampedParameterOptimizer,
    L1NormedGradientOptim,
    L2NormedGradientOptim,
    L2ProjectedOptim,
    LinfProjectedOptim,
    MomentumGradientOptim,
    ProjectedParameterOptimizer,
    SignedGradientOptim,
    Traits,
)
from tests.strategies import tensors

IN_L2 = partial(ProjectedParameterOptimizer, p=2, epsilon=0.5)


def leaf(*values: float) -> Tensor:
    return torch.tensor([list(values)], requires_grad=True)


@given(start=tensors((2, 3), low=-2, high=2), gradient=tensors((2, 3)))
def test_a_chain_is_the_composition_of_its_members_in_order(start: Tensor, gradient: Tensor) -> None:
    clamp = partial(ClampedGradientOptimizer, clamp_max=0.25)
    for members, functions in (
        ((L2NormedGradientOptim, clamp), (lambda g: transforms.normalize_(g, 2), lambda g: g.clamp_(max=0.25))),
        ((clamp, L2NormedGradientOptim), (lambda g: g.clamp_(max=0.25), lambda g: transforms.normalize_(g, 2))),
    ):
        x = start.clone().requires_grad_()
        x.grad = gradient.clone()
        ChainedParamTransformingOptimizer(*members, IN_L2, params=[x], lr=1.0).step()
        expected = gradient.clone()
        for function in functions:
            function(expected)
        assert torch.equal(x.grad, expected)
        assert torch.equal(x.detach(), transforms.project_l2_(start - expected, 0.5))


def test_members_share_parameters_groups_and_state_of_the_inner_optimizer() -> None:
    chain = ChainedParamTransformingOptimizer(SignedGradientOptim, IN_L2, params=[leaf(1.0)], InnerOpt=Adam, lr=1.0)
    chain.load_state_dict(chain.state_dict())
    assert len(chain._chain) == 2
    for member in chain._chain:
        assert member.inner_opt is chain.inner_opt
        assert member.param_groups is chain.param_groups
        assert member.state is chain.state
        assert member.defaults is chain.defaults


def test_clamping_gradient_and_parameter_differently_is_refused() -> None:  # the second bounds were once dropped
    with pytest.raises(
        ValueError, match=r"clamp_max=1\.0 would have no effect: clamp_max=2\.8 is set already, .*members of a chain"
    ):
        ChainedParamTransformingOptimizer(
            partial(ClampedGradientOptimizer, clamp_max=2.8),
            partial(ClampedParameterOptimizer, clamp_max=1.0),
            params=[leaf(1.0)],
        )
    with pytest.raises(ValueError, match=r"clamp_min=0\.0 would have no effect"):
        ChainedParamTransformingOptimizer(
            partial(ClampedGradientOptimizer, clamp_max=1.0),
            partial(ClampedParameterOptimizer, clamp_max=1.0, clamp_min=0.0),
            params=[leaf(1.0)],
        )


@pytest.mark.parametrize("name", ["param_ndim", "grad_scale", "grad_bias", "lr", "InnerOpt", "params"])
def test_arguments_of_the_chain_are_refused_in_a_member(name: str) -> None:  # it was once ignored
    with pytest.raises(TypeError, match=f"{name} belongs to the chain as a whole"):
        ChainedParamTransformingOptimizer(partial(SignedGradientOptim, **{name: 1}), params=[leaf(1.0)])


def test_hyperparameters_of_the_inner_optimizer_are_refused_in_a_member() -> None:
    with pytest.raises(TypeError, match="momentum would have no effect"):
        ChainedParamTransformingOptimizer(partial(SignedGradientOptim, momentum=0.9), params=[leaf(1.0)])


def test_members_check_the_groups() -> None:
    x, y = leaf(3.0, 4.0), leaf(3.0, 4.0)
    chain = ChainedParamTransformingOptimizer(SignedGradientOptim, IN_L2, params=[{"params": [x], "epsilon": 1.0}])
    with pytest.raises(ValueError, match="epsilon=-3"):
        chain.add_param_group({"params": [y], "epsilon": -3})
    with pytest.raises(TypeError, match="epsilon=None"):
        chain.add_param_group({"params": [y], "epsilon": None})
    assert len(chain.param_groups) == 1
    chain.add_param_group({"params": [y]})
    chain.project()
    torch.testing.assert_close(torch.cat([x, y]).detach().norm(dim=1), torch.tensor([1.0, 0.5]))


def test_the_ball_comes_from_the_last_member_that_has_one() -> None:
    def ball(*members: Any) -> float | None:
        return ChainedParamTransformingOptimizer(*members, params=[leaf(1.0)]).traits.ball

    linf = partial(LinfProjectedOptim, epsilon=0.5)
    assert ball(IN_L2, linf, SignedGradientOptim) == math.inf
    assert ball(linf, IN_L2) == 2
    assert ball(L1NormedGradientOptim) is None
    assert ball() is None


def test_a_chain_has_the_traits_of_its_members() -> None:
    class Sized(L1NormedGradientOptim):
        traits = Traits(sets_own_steps=True)

    def flags(*members: Any) -> tuple[bool, bool, bool]:
        chain = ChainedParamTransformingOptimizer(*members, params=[leaf(1.0)], lr=0.1)
        return chain.traits.smallest_norm, chain.traits.sets_own_steps, chain.traits.needs_boundary_loss

    assert flags(L1NormedGradientOptim, IN_L2) == (False, False, False)
    assert flags(MomentumGradientOptim, Sized) == (False, True, False)
    assert flags(partial(ALMAOptim, epsilon=1.0), L1NormedGradientOptim) == (True, False, True)


def test_a_chain_may_be_a_member() -> None:
    x = leaf(1.0, 1.0)
    x.grad = torch.tensor([[-3.0, 1.0]])
    inner = partial(ChainedParamTransformingOptimizer, SignedGradientOptim, L1NormedGradientOptim)
    chain = ChainedParamTransformingOptimizer(inner, partial(L2ProjectedOptim, epsilon=9.0), params=[x], lr=1.0)
    chain.step()
    torch.testing.assert_close(x.grad, torch.tensor([[-1.0, 1.0]]) / math.sqrt(2))
    assert repr(chain).startswith("L2ProjectedOptim ○ L1NormedGradientOptim ○ SignedGradientOptim [SGD](\n")


def test_repr_reads_like_the_composition() -> None:
    chain = ChainedParamTransformingOptimizer(SignedGradientOptim, IN_L2, params=[leaf(1.0)])
    assert repr(chain).startswith("ProjectedParameterOptimizer ○ SignedGradientOptim [SGD](\nParameter Group 0\n")
    alone = ChainedParamTransformingOptimizer(params=[leaf(1.0)])
    assert repr(alone).startswith("ChainedParamTransformingOptimizer [SGD](\n")


def test_a_chain_accepts_a_ready_made_inner_optimizer() -> None:
    x = leaf(0.0, 0.0)
    inner = SGD([x], lr=1.0)
    chain = ChainedParamTransformingOptimizer(SignedGradientOptim, IN_L2, InnerOpt=inner)
    x.grad = torch.tensor([[-30.0, 0.0]])
    chain.step()
    torch.testing.assert_close(x.detach(), torch.tensor([[0.5, 0.0]]))


@pytest.mark.parametrize("member", ["signed", lambda **_: 3])
def test_members_that_are_not_transforming_optimizers_are_refused(member: Any) -> None:
    with pytest.raises(TypeError, match="A member of a chain must be a"):
        ChainedParamTransformingOptimizer(member, params=[leaf(1.0)])


def test_a_partial_takes_the_parameters_by_position() -> None:  # as the solver and hydra give them
    make = partial(ChainedParamTransformingOptimizer, SignedGradientOptim, IN_L2, lr=1.0)
    for params in ([leaf(1.0)], iter([leaf(1.0)]), [{"params": [leaf(1.0)]}]):
        chain = make(params)
        assert len(chain._chain) == 2
        assert len(chain.param_groups[0]["params"]) == 1


def test_the_ball_comes_from_the_last_member_that_moves_the_parameter() -> None:
    clamp = partial(ClampedParameterOptimizer, clamp_min=2.0)
    for members, ball in (((IN_L2, clamp), None), ((clamp, IN_L2), 2), ((IN_L2, SignedGradientOptim), 2)):
        assert ChainedParamTransformingOptimizer(*members, params=[leaf(1.0)], lr=1.0).traits.ball == ball


def test_members_of_one_class_keep_separate_states() -> None:
    x = leaf(0.0)
    twice = ChainedParamTransformingOptimizer(MomentumGradientOptim, MomentumGradientOptim, params=[x], lr=1.0)
    sums = []
    for _ in range(3):
        x.grad = torch.ones_like(x)
        twice.step()
        sums.append(x.grad.item())
    assert sums == [1, 3, 6]  # the sums of 1, 2, 3
    assert set(twice.state) == {"MomentumGradientOptim.0", "MomentumGradientOptim.0.1"}
