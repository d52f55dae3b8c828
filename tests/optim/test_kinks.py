"""Edge cases of user-defined optimizers, and of parameters that are not images."""

import inspect
from functools import partial
from typing import Any

import pytest
import torch
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra_zen import builds, instantiate
from torch import Tensor
from torch.optim import SGD, Adafactor, Optimizer

from raiopt.attacks.search import published
from raiopt.optim import (
    ChainedParamTransformingOptimizer,
    ClampedParameterOptimizer,
    L1NormedGradientOptim,
    L2NormedGradientOptim,
    L2ProjectedOptim,
    LinfProjectedOptim,
    MomentumGradientOptim,
    ParamTransformingOptimizer,
    SignedGradientOptim,
)
from tests.optim.table import TABLE, Row


def with_gradient(*shape: int, value: float = 1.0) -> Tensor:
    x = torch.zeros(shape, requires_grad=True)
    x.grad = torch.full_like(x, value)
    return x


@pytest.mark.parametrize("name", ["index", "number", "state"])
def test_user_keys_of_a_group_are_not_modified(name: str) -> None:  # index was overwritten in a hook, then deleted
    seen: list[Any] = []

    class Reading(MomentumGradientOptim):
        def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
            super()._pre_step_transform_(param, optim_group)
            seen.append(optim_group[name])

    optimizer = Reading([{"params": [with_gradient(2, 3)], name: "mine"}], lr=1.0)
    before = dict(optimizer.param_groups[0])
    optimizer.step()
    assert seen == ["mine"]
    assert optimizer.param_groups[0] == before


@pytest.mark.parametrize("name", ["losses", "fooled", "gradient", "generators"])
def test_publishing_restores_a_user_key_of_the_same_name(name: str) -> None:
    optimizer = SignedGradientOptim([{"params": [with_gradient(2, 3)], name: "mine"}], lr=1.0)
    with published(optimizer, **{name: torch.zeros(2)}):
        assert isinstance(optimizer.param_groups[0][name], Tensor)
    assert optimizer.param_groups[0][name] == "mine"


@pytest.mark.parametrize("param_ndim", [-1, 0, 1, None])
@pytest.mark.parametrize("what", ["grad", "param"])
def test_replaced_data_are_an_error_with_and_without_a_view(param_ndim: Any, what: str) -> None:
    class Binding(ParamTransformingOptimizer):
        def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
            changed = param.grad if what == "grad" else param
            assert changed is not None
            changed.data = changed.data + 1

    with pytest.raises(ValueError, match=r"Binding\._pre_step_transform_ bound a new tensor .* in place") as error:
        Binding([with_gradient(2, 3)], lr=1.0, param_ndim=param_ndim).step()
    assert "no effect" not in str(error.value)


def test_a_full_signature_is_an_option_of_a_hydra_group() -> None:  # defaults collided with Hydra's list of defaults
    Option = builds(L2ProjectedOptim, epsilon=1.0, lr=0.5, zen_partial=True, populate_full_signature=True)
    ConfigStore.instance().store(group="kink", name="l2", node=Option)
    ConfigStore.instance().store(name="kinks", node={"defaults": [{"kink": "l2"}]})

    with initialize(version_base="1.3", config_path=None):
        config = compose("kinks", overrides=["kink.epsilon=2.0"])
    optimizer = instantiate(config.kink)([with_gradient(1, 2)])
    assert (type(optimizer), optimizer.param_groups[0]["epsilon"]) == (L2ProjectedOptim, 2.0)


class Plain(ParamTransformingOptimizer):
    """Has no `__init__` of its own."""


def test_a_class_without_init_is_built_by_position() -> None:  # the partial held params=None
    make = instantiate(builds(Plain, lr=0.5, zen_partial=True, populate_full_signature=True))
    assert type(make([with_gradient(1, 2)])) is Plain


@pytest.mark.parametrize("has_init", ["neither", "class", "mixin", "both"])
def test_a_mixin_keeps_the_full_signature(has_init: str) -> None:
    class Mixin:
        if has_init in ("mixin", "both"):

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)

    class Mixed(Mixin, L2NormedGradientOptim):
        if has_init in ("class", "both"):

            def __init__(self, params: Any, InnerOpt: Any = SGD, *, own: int = 3, **shared: Any) -> None:
                super().__init__(params, InnerOpt, **shared)

    own = ["own"] if has_init in ("class", "both") else []
    expected = list(inspect.signature(L2NormedGradientOptim).parameters)
    found = inspect.signature(Mixed).parameters
    assert [name for name in found if name not in own] == expected
    assert own == [name for name in found if name not in expected]
    assert found["params"].default is inspect.Parameter.empty
    assert type(Mixed([with_gradient(1, 2)], lr=1.0)) is Mixed


@pytest.mark.parametrize("row", TABLE, ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_parameters_without_elements_are_left_alone(row: Row, shape: tuple[int, ...]) -> None:
    empty, x = with_gradient(*shape), with_gradient(2, 3)
    optimizer = row.build([empty, x], lr=1.0)
    optimizer.step()
    assert empty.shape == shape
    assert x.abs().sum() > 0


@pytest.mark.parametrize("name", ["grad_scale", "grad_bias"])
def test_scale_and_bias_may_be_tensors(name: str) -> None:
    x, values = with_gradient(2, 3), torch.tensor([[2.0], [3.0]])
    optimizer = ParamTransformingOptimizer([x], lr=1.0, **{name: values})  # pyright: ignore[reportArgumentType]
    optimizer.step()
    expected = (1 * values if name == "grad_scale" else 1 + values).expand(2, 3)
    assert torch.equal(x.grad, expected)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=rf"{name} of shape \(4,\) must broadcast to the parameter's shape \(2, 3\)"):
        ParamTransformingOptimizer([x], lr=1.0, **{name: torch.ones(4)})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("param_ndim", [-1, None])
def test_a_sparse_gradient_has_one_clear_message(param_ndim: int | None) -> None:
    table = torch.nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"The gradient must be dense, but its layout is torch.sparse_coo"):
        L1NormedGradientOptim(table.parameters(), lr=1.0, param_ndim=param_ndim).step()


class Rated(Optimizer):
    """An optimizer whose learning rate may be None or a function of the step, as some have it."""

    def __init__(self, params: Any, lr: Any = None) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            rate = 1.0 if group["lr"] is None else group["lr"](0)
            for param in group["params"]:
                param.data.add_(param.grad, alpha=-rate)


@pytest.mark.parametrize(("given", "moved"), [({}, -1.0), ({"lr": None}, -1.0), ({"lr": lambda step: 0.5}, -0.5)])
def test_a_learning_rate_may_be_any_value_that_the_inner_optimizer_takes(given: dict[str, Any], moved: float) -> None:
    x = with_gradient(1, 2, value=7.0)
    optimizer = SignedGradientOptim([x], Rated, **given)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert (x == moved).all()


@pytest.mark.parametrize("lr", [None, lambda step: 0.5])
def test_a_learning_rate_that_the_inner_optimizer_refuses_has_one_clear_message(lr: Any) -> None:
    with pytest.raises(TypeError, match=r"lr=.* must be a number: InnerOpt=.*SGD"):
        SignedGradientOptim([with_gradient(1, 2)], lr=lr)
    assert type(SignedGradientOptim([with_gradient(1, 2)], Adafactor).inner_opt) is Adafactor


def test_a_refused_checkpoint_changes_nothing() -> None:
    optimizer = L2ProjectedOptim([with_gradient(1, 2)], epsilon=1.0, lr=0.5, InnerOpt=partial(SGD, momentum=0.9))
    optimizer.step()
    bad = optimizer.state_dict()
    bad["param_groups"][0]["epsilon"], bad["state"] = -1.0, {}
    groups, state = optimizer.param_groups, dict(optimizer.state)
    before = dict(groups[0])
    with pytest.raises(ValueError, match=r"epsilon=-1\.0"):
        optimizer.load_state_dict(bad)
    assert optimizer.param_groups is groups
    assert groups[0] == before
    assert optimizer.state == state
    optimizer.step()


def test_a_loaded_state_is_a_copy() -> None:
    make = partial(ChainedParamTransformingOptimizer, MomentumGradientOptim, MomentumGradientOptim)
    first = make(params=[with_gradient(1, 2)], lr=1.0)
    first.step()
    saved = first.state_dict()
    second = make(params=[with_gradient(1, 2)], lr=1.0)
    second.load_state_dict(saved)
    second.state["MomentumGradientOptim.0"]["steps"] = 3
    assert "steps" not in first.state["MomentumGradientOptim.0"]


def test_a_nested_chain_keeps_its_own_state() -> None:
    inner = partial(ChainedParamTransformingOptimizer, MomentumGradientOptim)
    x = with_gradient(1, 2)
    optimizer = ChainedParamTransformingOptimizer(MomentumGradientOptim, inner, params=[x], lr=1.0)
    for _ in range(2):
        x.grad = torch.ones_like(x)
        optimizer.step()
    assert (x.grad == 3).all()  # the sums of the sums 1, 2
    assert len(optimizer.state) == 2


@pytest.mark.parametrize(
    "make",
    [
        SignedGradientOptim,
        partial(ClampedParameterOptimizer, clamp_min=-0.25),
        partial(LinfProjectedOptim, epsilon=0.25),
    ],
)
def test_a_single_number_is_a_parameter(make: Any) -> None:
    x = torch.tensor(0.0, requires_grad=True)
    x.grad = torch.tensor(3.0)
    optimizer = make([x], lr=1.0)
    optimizer.param_groups[0]["upper"] = torch.tensor(0.1)
    optimizer.step()
    assert x.item() == (-1.0 if make is SignedGradientOptim else -0.25)


def test_a_state_view_writes_into_the_stored_state() -> None:
    class Counting(ParamTransformingOptimizer):
        def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
            return {"k": 0, "size": 1.0, "last": torch.zeros_like(param)}

        def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
            state = self._state(param, optim_group)
            state.k += 1
            state.size = 2 * state.size
            state.size += 1
            state.last = param.grad
            with pytest.raises(AttributeError, match=r"no 'lost': _init_state must name it\. It has k, size, last"):
                state.lost = 1
            with pytest.raises(TypeError, match=r"state\.k is one number: .* float for one number per datum"):
                state.k = torch.zeros(2)

    x = with_gradient(2, 3, 4)
    optimizer = Counting([x], lr=1.0, param_ndim=1)
    optimizer.step()
    optimizer.step()
    own = optimizer.state["Counting.0"]
    assert (own["k"], own["last"].shape) == (2, (2, 3, 4))
    assert own["size"].shape == (2, 3, 1, 1)  # rows belong to the rows of the parameter
    assert (own["size"] == 7).all()
