import inspect

import pytest
import torch
from hydra_zen import builds, instantiate, to_yaml
from torch.optim import SGD, Adam

from raiopt.optim import (
    ClampedGradientOptimizer,
    L1NormedGradientOptim,
    L2NormedGradientOptim,
    LpNormedGradientOptim,
    SteepestGradientOptim,
)
from tests.optim.table import FRANK_WOLFE, WITH_INNER, Row

CLASSES = [row for row in WITH_INNER if isinstance(row.make, type)]


@pytest.mark.parametrize("Optim", [L1NormedGradientOptim, L2NormedGradientOptim])
def test_the_divisor_may_be_bounded(Optim: type[L1NormedGradientOptim]) -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    x.grad = torch.tensor([[0.5, 0.0]])
    optimizer = Optim([x], div_by_zero_eps=2.0, lr=1.0)
    optimizer.step()
    assert x.tolist() == [[-0.25, 0.0]]
    assert optimizer.p == {L1NormedGradientOptim: 1, L2NormedGradientOptim: 2}[Optim]
    with pytest.raises(ValueError, match="div_by_zero_eps=-1"):
        Optim([x], div_by_zero_eps=-1)


def test_float16_keeps_a_zero_gradient() -> None:  # it once became NaN, as float32's smallest number is 0 there
    for Optim in (L1NormedGradientOptim, L2NormedGradientOptim):
        for eps in (None, 1.1754943508222875e-38):
            x = torch.ones(1, 2, dtype=torch.float16, requires_grad=True)
            x.grad = torch.zeros_like(x)
            Optim([x], lr=1.0, div_by_zero_eps=eps).step()
            assert x.tolist() == [[1.0, 1.0]]


def test_a_clamp_without_bounds_is_refused() -> None:
    with pytest.raises(TypeError, match="clamp_min and clamp_max must not both be None"):
        ClampedGradientOptimizer([torch.zeros(1, requires_grad=True)], lr=1.0)


@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_hydra_zen_builds_every_class_with_its_full_signature(row: Row) -> None:  # defaults once were generators
    x = torch.zeros(1, 2, requires_grad=True)
    has_default = str(row) == "ParamTransformingOptimizer"  # then hydra's partial cannot take params by position
    for InnerOpt, expected in ((SGD, SGD), (builds(Adam, zen_partial=True, eps=1e-4), Adam)):
        config = builds(row.make, zen_partial=True, populate_full_signature=True, InnerOpt=InnerOpt)
        assert "param_ndim: -1" in to_yaml(config)
        make = instantiate(config, **row.required)
        optimizer = make(params=[x]) if has_default else make([x])
        assert type(optimizer) is row.make
        assert type(optimizer.inner_opt) is expected
        assert optimizer.param_groups[0].get("eps", 1e-4) == 1e-4


@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_signatures_hold_plain_values_and_keyword_only_hyperparameters(row: Row) -> None:
    parameters = inspect.signature(row.make).parameters
    assert list(parameters)[:2] == ["params", "InnerOpt"]
    assert parameters["InnerOpt"].default is SGD
    assert str(row) == "ParamTransformingOptimizer" or parameters["params"].default is inspect.Parameter.empty
    for parameter in list(parameters.values())[2:]:
        assert parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        assert parameter.default is inspect.Parameter.empty or isinstance(parameter.default, int | float | None)
    assert {"param_ndim", "grad_scale", "grad_bias"} <= parameters.keys()
    assert ("defaults" in parameters) == (str(row) == "ParamTransformingOptimizer")  # in a config, Hydra's own key
    assert parameters["param_ndim"].default == -1


@pytest.mark.parametrize("row", FRANK_WOLFE, ids=str)
def test_hydra_zen_builds_frank_wolfe(row: Row) -> None:
    config = builds(row.make, zen_partial=True, populate_full_signature=True)
    text = to_yaml(config)
    assert "param_ndim: -1" in text
    assert "lr: 2.0" in text
    assert "InnerOpt" not in text
    assert type(instantiate(config, **row.required, lr=0.5)([torch.zeros(1, 2, requires_grad=True)])) is row.make


@pytest.mark.parametrize("Optim", [LpNormedGradientOptim, SteepestGradientOptim])
def test_the_order_of_a_norm_must_be_at_least_1(Optim: type[LpNormedGradientOptim]) -> None:
    with pytest.raises(ValueError, match=r"p=0.5 must be a finite number, at least 1\. Infinity is allowed too"):
        Optim([torch.zeros(1, requires_grad=True)], p=0.5, lr=1.0)
    assert Optim([torch.zeros(1, requires_grad=True)], p=float("inf"), lr=1.0).p == float("inf")
