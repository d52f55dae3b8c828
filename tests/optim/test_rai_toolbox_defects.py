"""Defects of rai_toolbox that raiopt does not have: each test fails if rai_toolbox is fixed or raiopt breaks."""

import copy
import pickle
import weakref
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from hydra_zen import builds, instantiate
from hydra_zen.errors import HydraZenUnsupportedPrimitiveError
from torch import Tensor
from torch.optim import SGD

from raiopt import attacks, optim
from tests.optim.rai import installed, quiet

rai_optim, rai_perturbations = installed()


def leaf(*values: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def stepped(optimizer: Any, gradient: Tensor) -> Tensor:
    """The parameter after a step of the optimizer, ignoring deprecation warnings."""
    (param,) = optimizer.param_groups[0]["params"]
    param.grad = gradient.clone()
    with quiet():
        optimizer.step()
    return param.detach()


def test_a_forgotten_epsilon_is_the_learning_rate_of_sgd() -> None:
    assert rai_optim.L2ProjectedOptim([leaf(1.0)], lr=1.0).param_groups[0]["epsilon"] == 0.001
    with pytest.raises(TypeError, match="epsilon"):
        optim.L2ProjectedOptim([leaf(1.0)], lr=1.0)  # pyright: ignore[reportCallIssue]


def clamps(module: Any) -> Any:
    """Gradients at most 2.8, then parameters between 0 and 1."""
    return module.ChainedParamTransformingOptimizer(
        partial(module.ClampedGradientOptimizer, clamp_max=2.8),
        partial(module.ClampedParameterOptimizer, clamp_min=0.0, clamp_max=1.0),
        params=[leaf([0.5, 0.5])],
        lr=1.0,
    )


def test_a_chain_drops_the_second_of_two_equally_named_bounds() -> None:
    moved = stepped(clamps(rai_optim), torch.tensor([[-2.0, 2.0]]))
    torch.testing.assert_close(moved, torch.tensor([[2.5, -1.5]]))
    with pytest.raises(ValueError, match=r"clamp_.*would have no effect"):
        clamps(optim)


def test_a_chain_ignores_the_scale_of_a_member() -> None:
    def chain(module: Any) -> Any:
        member = partial(module.SignedGradientOptim, grad_scale=5.0)
        return module.ChainedParamTransformingOptimizer(member, params=[leaf([0.0])], lr=1.0)

    assert stepped(chain(rai_optim), torch.tensor([[3.0]])).item() == -1.0
    with pytest.raises(TypeError, match="grad_scale belongs to the chain"):
        chain(optim)


def test_l1_frank_wolfe_leaves_the_ball_of_images() -> None:
    square, wide = (
        torch.randn(2, 4, 3, 4, 5, generator=torch.Generator().manual_seed(0))[..., :4],
        torch.ones(4, 3, 4, 5),
    )
    moved = stepped(rai_optim.L1FrankWolfe([torch.zeros_like(square[0], requires_grad=True)], epsilon=1.0), square[0])
    assert moved.flatten(1).norm(p=1, dim=1).max() == 48.0
    with pytest.raises(IndexError):
        stepped(rai_optim.L1FrankWolfe([torch.zeros_like(wide, requires_grad=True)], epsilon=1.0), wide)
    for gradient in (square[0], wide):
        ours = stepped(optim.L1FrankWolfe([torch.zeros_like(gradient, requires_grad=True)], epsilon=1.0), gradient)
        torch.testing.assert_close(ours.flatten(1).norm(p=1, dim=1), torch.ones(4))


def test_added_groups_are_not_checked() -> None:
    bad = {"params": [leaf(1.0)], "epsilon": -3.0}
    theirs = rai_optim.L2ProjectedOptim([leaf(1.0)], epsilon=1.0, lr=1.0)
    theirs.add_param_group(dict(bad))
    assert theirs.param_groups[1]["epsilon"] == -3.0
    ours = optim.L2ProjectedOptim([leaf(1.0)], epsilon=1.0, lr=1.0)
    with pytest.raises(ValueError, match=r"epsilon=-3\.0"):
        ours.add_param_group(dict(bad))
    assert len(ours.param_groups) == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_break(duplicate: Any) -> None:
    gradient = torch.tensor([[3.0, 4.0]])
    with pytest.raises(AttributeError):
        duplicate(rai_optim.L2ProjectedOptim([leaf([0.0, 0.0])], epsilon=1.0, lr=0.5)).step()
    original = optim.L2ProjectedOptim([leaf([0.0, 0.0])], epsilon=1.0, lr=0.5)
    assert torch.equal(stepped(duplicate(original), gradient), stepped(original, gradient))


@pytest.mark.parametrize("name", ["L1NormedGradientOptim", "L2NormedGradientOptim"])
def test_a_zero_gradient_of_half_precision_becomes_nan(name: str) -> None:
    zero = torch.zeros(1, 2, dtype=torch.float16)
    start = {"dtype": torch.float16}
    assert stepped(getattr(rai_optim, name)([leaf([1.0, 1.0], **start)], lr=1.0), zero).isnan().all()
    ours = stepped(getattr(optim, name)([leaf([1.0, 1.0], **start)], lr=1.0), zero)
    assert torch.equal(ours, torch.ones_like(ours))


def test_hooks_of_the_state_never_run() -> None:
    ran: list[str] = []
    for module in (rai_optim, optim):
        optimizer = module.SignedGradientOptim([leaf(1.0)], lr=1.0)
        optimizer.register_state_dict_pre_hook(lambda _, name=module.__name__: ran.append(name))
        optimizer.state_dict()
    assert ran == ["raiopt.optim"]


def test_the_callers_defaults_are_changed() -> None:
    theirs, ours = {"epsilon": 1.0}, {"epsilon": 1.0}
    rai_optim.L2ProjectedOptim([leaf(1.0)], epsilon=2.0, defaults=theirs, lr=1.0)
    assert theirs != {"epsilon": 1.0}
    optim.L2ProjectedOptim([leaf(1.0)], epsilon=2.0, defaults=ours, lr=1.0)
    assert ours == {"epsilon": 1.0}


def test_arguments_for_a_ready_made_optimizer_are_ignored() -> None:
    inner = SGD([leaf(1.0)], lr=1.0)
    assert rai_optim.SignedGradientOptim(None, inner, lr=7.0).param_groups[0]["lr"] == 1.0
    with pytest.raises(TypeError, match="lr would have no effect"):
        optim.SignedGradientOptim(None, SGD([leaf(1.0)], lr=1.0), lr=7.0)


class Marked(torch.autograd.Function):
    """Nothing but a node of the graph, counted as long as it lives."""

    nodes: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Marked.nodes.add(ctx)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def test_the_best_iterates_hold_the_graphs_of_all_steps() -> None:
    def nodes(module: Any, optimizer: Any) -> list[int]:
        alive: list[int] = []

        def model(x: Tensor) -> Tensor:
            alive.append(len(Marked.nodes))
            return Marked.apply(x)  # pyright: ignore[reportReturnType]

        with quiet():
            module.gradient_ascent(
                model=model,
                data=torch.zeros(3, 2),
                target=torch.zeros(3),
                criterion=lambda output, _: output.sum(1),
                optimizer=optimizer,
                lr=0.1,
                steps=8,
                use_best=True,
            )
        return alive

    assert max(nodes(attacks, optim.SignedGradientOptim)) <= 1
    assert max(nodes(rai_perturbations, rai_optim.SignedGradientOptim)) >= 7


@pytest.mark.parametrize("name", ["TopQGradientOptimizer", "L1qNormedGradientOptim"])
def test_hydra_zen_cannot_build_the_sparse_ones(name: str) -> None:
    with pytest.raises(HydraZenUnsupportedPrimitiveError):
        builds(getattr(rai_optim, name), zen_partial=True, populate_full_signature=True, q=0.5)
    config = builds(getattr(optim, name), zen_partial=True, populate_full_signature=True, q=0.5)
    assert instantiate(config)([leaf(1.0)], lr=1.0).param_groups[0]["q"] == 0.5


@pytest.mark.parametrize("name", ["ClampedGradientOptimizer", "ClampedParameterOptimizer"])
def test_hydra_zen_gives_the_clamping_ones_their_parameters_twice(name: str) -> None:
    theirs, ours = (
        builds(getattr(module, name), zen_partial=True, populate_full_signature=True, clamp_max=1.0)
        for module in (rai_optim, optim)
    )
    with pytest.raises(TypeError, match="multiple values for argument 'params'"):
        instantiate(theirs)([leaf(1.0)], lr=1.0)
    assert instantiate(ours)([leaf(1.0)], lr=1.0).param_groups[0]["clamp_max"] == 1.0


def test_each_step_calls_a_deprecated_function_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    plain = torch.Tensor.storage
    monkeypatch.setattr(torch.Tensor, "storage", lambda self: calls.append(None) or plain(self))
    stepped(optim.SignedGradientOptim([leaf([1.0])], lr=1.0), torch.ones(1, 1))
    assert not calls
    stepped(rai_optim.SignedGradientOptim([leaf([1.0])], lr=1.0), torch.ones(1, 1))
    assert calls


def test_top_q_builds_python_lists_of_all_kept_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[int] = []
    plain = torch.tensor

    def tensor(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        made = plain(data, *args, **kwargs)
        listed.append(made.numel())
        return made

    gradient, made = torch.arange(800.0).view(8, 100), []
    optimizers = [module.TopQGradientOptimizer([torch.zeros(8, 100)], q=0.5, lr=1.0) for module in (rai_optim, optim)]
    monkeypatch.setattr(torch, "tensor", tensor)
    for optimizer in optimizers:
        listed.clear()
        stepped(optimizer, gradient)
        made.append(sum(listed))
    assert made[0] >= 400
    assert made[1] <= 8


def test_a_short_datum_moves_entries_that_should_be_zeroed() -> None:
    """With four entries, q=0.95 keeps none of rai_toolbox's gradient; raiopt keeps the largest."""
    for module, moves in ((rai_optim, False), (optim, True)):
        x = leaf([0.0, 0.0, 0.0, 0.0])
        found = stepped(module.TopQGradientOptimizer([x], q=0.95, lr=1.0), torch.tensor([[1.0, -4.0, 2.0, 3.0]]))
        assert found.tolist() == ([[0.0, 4.0, 0.0, 0.0]] if moves else [[0.0, 0.0, 0.0, 0.0]])
