import re
from typing import Any

import pytest
import torch
from torch import Tensor

from raiopt.optim import ClampedParameterOptimizer, L2ProjectedOptim, ParamTransformingOptimizer

NAN = float("nan")


def checked(group: dict[str, Any]) -> None:
    optimizer = ParamTransformingOptimizer([torch.zeros(2, 3, 4, requires_grad=True)], lr=1.0)
    optimizer.param_groups[0].update(group)
    optimizer._check_group(optimizer.param_groups[0])


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"epsilon": -1.0}, "epsilon=-1.0 must be a finite number, at least 0."),
        ({"epsilon": NAN}, "epsilon=nan must"),
        ({"epsilon": torch.tensor([[[1.0]], [[-2.0]]])}, "1 of its 2 entries break this, first -2.0"),
        (
            {"epsilon": torch.ones(5)},
            "epsilon of shape (5,) must broadcast to the parameter's shape (2, 3, 4); one value",
        ),
        ({"epsilon": torch.arange(3.0).view(3, 1)}, "epsilon of shape (3, 1) must be constant within each datum"),
        ({"lower": 0.1}, "lower=0.1 must be a finite number, at most 0."),
        ({"upper": torch.full((4,), -0.1)}, "upper must be a finite number, at least 0."),
        ({"upper": torch.ones(3)}, "upper of shape (3,) must broadcast"),
        ({"clamp_min": 1.0, "clamp_max": 0.5}, "clamp_min=1.0 is above clamp_max=0.5."),
        ({"clamp_min": torch.ones(4), "clamp_max": 0.5}, "is above clamp_max=0.5."),
        ({"clamp_max": NAN}, "clamp_max=nan must"),
        ({"grad_scale": NAN}, "grad_scale=nan must"),
        ({"grad_bias": NAN}, "grad_bias=nan must"),
        ({"lr": -1.0}, "lr=-1.0 must be a finite number, at least 0."),
        ({"param_ndim": 4}, "param_ndim=4 is out of range for a tensor of shape (2, 3, 4)"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(group: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        checked(group)


@pytest.mark.parametrize("name", ["epsilon", "lower", "upper", "clamp_min", "clamp_max", "grad_scale", "lr"])
def test_a_value_of_another_type_is_a_type_error(name: str) -> None:
    for value in ("1", True, [1.0]):
        with pytest.raises(TypeError, match=f"{name}="):
            checked({name: value})


@pytest.mark.parametrize(
    "group",
    [
        {"epsilon": torch.arange(2.0).view(2, 1, 1), "lower": -torch.ones(3, 1), "upper": torch.ones(2, 3, 4)},
        {"epsilon": torch.arange(3.0).view(3, 1), "param_ndim": 1},
        {"epsilon": torch.arange(4.0), "param_ndim": 0},
        {"epsilon": torch.tensor(2.0), "param_ndim": None, "lower": None},
        {"lower": 0, "upper": 0, "clamp_min": None, "clamp_max": -3, "lr": torch.tensor(0.1)},
    ],
)
def test_numbers_and_tensors_that_broadcast_pass(group: dict[str, Any]) -> None:
    checked(group)


class Looking(ParamTransformingOptimizer):
    """Keeps what the group holds during the transform."""

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        self.seen = dict(optim_group)
        if optim_group.get("fail"):
            raise RuntimeError("inside")


@pytest.mark.parametrize(("param_ndim", "rows"), [(-1, 2), (2, 2), (1, 6), (0, 24), (None, 1)])
def test_hooks_see_tensors_in_the_form_of_the_batch_and_the_group_keeps_its_own(
    param_ndim: int | None, rows: int
) -> None:
    x = torch.zeros(2, 3, 4, requires_grad=True)
    epsilon = torch.tensor(3.0) if param_ndim is None else torch.tensor([1.0, 2.0]).view(2, 1, 1)
    upper, clamp_max = torch.rand(2, 3, 4), torch.rand(4)
    optimizer = Looking([x], lr=1.0, param_ndim=param_ndim)
    group = optimizer.param_groups[0]
    own = {"epsilon": epsilon, "upper": upper, "lower": -0.5, "clamp_min": None, "clamp_max": clamp_max}
    group.update(own)
    optimizer.project()
    seen, batch = optimizer.seen, (rows, *optimizer.seen["upper"].shape[1:])
    assert seen["epsilon"].shape == (rows, *[1] * (len(batch) - 1))
    assert torch.equal(seen["epsilon"].flatten(), epsilon.expand(2, 3, 4).reshape(rows, -1)[:, 0])
    assert seen["upper"].shape == batch
    assert seen["upper"].data_ptr() == upper.data_ptr()
    assert torch.equal(seen["clamp_max"].flatten(), clamp_max.expand(2, 3, 4).flatten())
    assert seen["lower"] == -0.5
    assert seen["clamp_min"] is None
    assert all(group[name] is value for name, value in own.items())


def test_the_group_has_its_own_tensors_back_after_an_error() -> None:
    epsilon = torch.ones(2, 1)
    optimizer = Looking([torch.zeros(2, 3, requires_grad=True)], lr=1.0, defaults={"epsilon": epsilon, "fail": True})
    with pytest.raises(RuntimeError, match="inside"):
        optimizer.project()
    assert optimizer.param_groups[0]["epsilon"] is epsilon


def test_tensors_of_another_dtype_are_converted() -> None:
    x = torch.full((2, 2), 3.0, requires_grad=True)
    optimizer = L2ProjectedOptim([x], lr=1.0, epsilon=torch.tensor([[1.0], [2.0]], dtype=torch.float64))
    optimizer.param_groups[0]["upper"] = torch.full((2, 2), 0.5, dtype=torch.float64)
    optimizer.project()
    torch.testing.assert_close(x.detach(), torch.full((2, 2), 0.5))


def test_bounds_of_a_clamp_may_be_tensors() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    x.grad = torch.tensor([[-9.0, 9.0, 0.1], [9.0, -9.0, 0.1]])
    ClampedParameterOptimizer([x], clamp_min=-torch.ones(2, 1), clamp_max=torch.tensor([1.0, 2.0, 3.0]), lr=1.0).step()
    torch.testing.assert_close(x.detach(), torch.tensor([[1.0, -1.0, -0.1], [-1.0, 2.0, -0.1]]))
