from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam

from raiopt.optim import L2NormedGradientOptim, L2ProjectedOptim, ParamTransformingOptimizer
from tests.optim.table import TABLE, WITH_INNER, Row

each = pytest.mark.parametrize("row", TABLE, ids=str)


def leaf(*values: float) -> Tensor:
    return torch.tensor([list(values)], requires_grad=True)


class Recorder(ParamTransformingOptimizer):
    """Notes what its hooks see."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        self.seen: list[tuple[str, tuple[int, ...], bool, bool]] = []
        super().__init__(params, **kwargs)

    def _pre_step_transform_(self, param: Tensor, **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.seen.append(("pre", tuple(param.shape), param.grad is not None, torch.is_grad_enabled()))

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        assert optim_group is self.param_groups[0]
        self.seen.append(("post", tuple(param.shape), param.grad is not None, torch.is_grad_enabled()))


@pytest.mark.parametrize("requires_grad", [True, False])
def test_hooks_see_each_parameter_as_a_batch_without_autograd(requires_grad: bool) -> None:
    x, y = torch.zeros(2, 3, 4, requires_grad=True), torch.zeros(5, 6, requires_grad=requires_grad)
    x.grad = torch.ones_like(x)
    optimizer = Recorder([x, y], lr=1.0, param_ndim=1)
    optimizer.step()
    shapes = [((6, 4), True), ((5, 6), False)]
    assert optimizer.seen == [(when, *seen, False) for when in ("pre", "post") for seen in shapes]
    assert x.grad.shape == x.shape


def test_a_hook_may_be_called_without_an_instance() -> None:
    x = leaf(3.0, 4.0)
    x.grad = torch.ones_like(x)
    ParamTransformingOptimizer._pre_step_transform_(None, param=x, optim_group={})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("what", ["gradient", "nothing", "parameter", "no gradient"])
def test_replacing_the_data_of_a_parameter_is_an_error(what: str) -> None:
    class Binding(ParamTransformingOptimizer):
        def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
            if what == "parameter":
                param.data = param.data + 1
            elif what == "nothing":
                param.grad = None
            else:
                param.grad = torch.zeros_like(param)

    x = leaf(1.0)
    if what != "no gradient":
        x.grad = torch.ones_like(x)
    with pytest.raises(ValueError, match=r"Binding._pre_step_transform_ bound a new tensor .* in place"):
        Binding([x], lr=1.0).step()


def test_a_subclass_may_set_defaults_in_a_dict() -> None:
    class Old(ParamTransformingOptimizer):
        def __init__(self, params: Any, InnerOpt: Any = SGD, *, power: float, defaults: Any = None, **kw: Any) -> None:
            defaults = {} if defaults is None else defaults
            defaults.setdefault("power", power)
            super().__init__(params, InnerOpt, defaults=defaults, **kw)

    x, y = leaf(1.0), leaf(2.0)
    optimizer = Old([{"params": [x]}, {"params": [y], "power": 3.0}], power=2.0, lr=1.0)
    assert [group["power"] for group in optimizer.param_groups] == [2.0, 3.0]
    assert optimizer.defaults["power"] == 2.0


def test_a_group_comes_before_defaults_and_defaults_before_keywords() -> None:
    x, y = leaf(1.0), leaf(2.0)
    groups = [{"params": [x], "param_ndim": 0, "lr": 3.0}, {"params": [y]}]
    optimizer = ParamTransformingOptimizer(groups, param_ndim=2, lr=1.0, defaults={"param_ndim": 1, "lr": 2.0})
    assert [(group["param_ndim"], group["lr"]) for group in optimizer.param_groups] == [(0, 3.0), (1, 2.0)]


def test_the_callers_defaults_and_groups_are_not_modified() -> None:  # they were once written into
    defaults, group = {"epsilon": 1.0}, {"params": [leaf(1.0)]}
    ParamTransformingOptimizer([group], defaults=defaults, lr=1.0)
    assert defaults == {"epsilon": 1.0}
    assert group.keys() == {"params"}


@pytest.mark.parametrize("row", WITH_INNER, ids=str)
def test_inner_optimizer_owns_parameters_groups_and_state(row: Row) -> None:
    optimizer = row.build([leaf(1.0, 2.0)], InnerOpt=Adam, lr=0.1)
    for _ in range(2):
        assert optimizer.param_groups is optimizer.inner_opt.param_groups
        assert optimizer.state is optimizer.inner_opt.state
        assert optimizer.defaults is optimizer.inner_opt.defaults
        assert optimizer.__getstate__() == optimizer.inner_opt.__getstate__()
        optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups = groups = list(optimizer.param_groups)
    assert optimizer.inner_opt.param_groups is groups


@each
def test_a_refused_group_is_removed_again(row: Row) -> None:  # it once went in unchecked
    optimizer = row.build([leaf(1.0)], lr=1.0)
    for bad in ({"param_ndim": 3}, {"epsilon": -3.0}, {"lr": -1.0}, {"lower": 1.0}, {"grad_scale": "1"}):
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(bad))}="):
            optimizer.add_param_group({"params": [leaf(1.0)], **bad})
        assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [leaf(1.0)], "param_ndim": None})
    assert [group["param_ndim"] for group in optimizer.param_groups] == [-1, None]


def test_several_groups_each_have_their_own_ball() -> None:
    x, y = torch.full((2, 2), 3.0, requires_grad=True), torch.full((2, 2), 3.0, requires_grad=True)
    groups = [{"params": [x], "epsilon": 1.0}, {"params": [y], "param_ndim": None}]
    L2ProjectedOptim(groups, epsilon=2.0, lr=1.0).project()
    torch.testing.assert_close(x.detach().norm(dim=1), torch.ones(2))
    torch.testing.assert_close(y.detach().norm(), torch.tensor(2.0))


def test_repr_names_both_optimizers() -> None:
    text = repr(L2NormedGradientOptim([leaf(1.0)], InnerOpt=Adam, lr=0.5))
    assert text.startswith("L2NormedGradientOptim [Adam](\nParameter Group 0\n")
    assert "    lr: 0.5\n" in text
    assert "    param_ndim: -1\n" in text


def test_scale_and_bias_are_skipped_without_a_gradient() -> None:
    x = leaf(1.0)
    ParamTransformingOptimizer([x], grad_scale=2.0, grad_bias=1.0, lr=1.0).step()
    assert x.grad is None
    assert x.item() == 1.0
