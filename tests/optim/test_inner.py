from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, Optimizer

from raiopt.optim import L2ProjectedOptim, ParamTransformingOptimizer, SignedGradientOptim


def leaf() -> torch.Tensor:
    return torch.ones(1, 2, requires_grad=True)


@pytest.mark.parametrize("InnerOpt", [Adam, partial(Adam, betas=(0.5, 0.9))])
def test_a_class_or_a_partial_is_built(InnerOpt: Any) -> None:
    optimizer = ParamTransformingOptimizer([leaf()], InnerOpt, lr=0.25)
    assert type(optimizer.inner_opt) is Adam
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("given", [False, True])
def test_a_ready_made_optimizer_brings_its_parameters(given: bool) -> None:
    x = leaf()
    inner = SGD([x], lr=0.25)
    optimizer = SignedGradientOptim([x] if given else None, inner)
    assert optimizer.inner_opt is inner
    x.grad = torch.tensor([[-3.0, 0.5]])
    optimizer.step()
    assert x.tolist() == [[1.25, 0.75]]


def test_arguments_that_a_ready_made_optimizer_cannot_take_are_errors() -> None:  # they were once ignored
    inner = SGD([leaf()], lr=0.25)
    with pytest.raises(TypeError, match="lr, momentum would have no effect: InnerOpt is a ready-made SGD"):
        SignedGradientOptim(None, inner, lr=1.0, momentum=0.9)
    with pytest.raises(ValueError, match="params must be None"):
        SignedGradientOptim([leaf()], inner)


def test_a_second_optimizer_around_one_inner_must_agree() -> None:
    inner = SGD([leaf()], lr=0.25)
    L2ProjectedOptim(None, inner, epsilon=1.0)
    assert L2ProjectedOptim(None, inner, epsilon=1.0).param_groups[0]["epsilon"] == 1.0
    with pytest.raises(ValueError, match=r"epsilon=2\.0 would have no effect: epsilon=1\.0 is set already"):
        L2ProjectedOptim(None, inner, epsilon=2.0)
    with pytest.raises(ValueError, match="epsilon=tensor"):
        L2ProjectedOptim(None, inner, epsilon=torch.tensor(1.0))


@pytest.mark.parametrize(("name", "meant"), [("Adam", "Adam"), ("sgdd", "SGD"), ("adamw", "AdamW"), ("zzz", "Adam")])
def test_a_name_instead_of_a_class_is_refused_with_a_hint(name: Any, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"InnerOpt='{name}' must be .* pass torch\.optim\.{meant} itself"):
        ParamTransformingOptimizer([leaf()], name)


@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf")])
def test_a_bad_learning_rate_is_named(lr: float) -> None:
    with pytest.raises(ValueError, match=f"lr={lr} must be a finite number, at least 0"):
        ParamTransformingOptimizer([leaf()], lr=lr)
    with pytest.raises(ValueError, match=f"lr={lr} must be a finite number, at least 0"):
        ParamTransformingOptimizer([{"params": [leaf()], "lr": lr}])


def test_an_inner_optimizer_needs_no_learning_rate() -> None:
    class Halving(Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for param in group["params"]:
                    param.detach().mul_(0.5)

    x = leaf()
    L2ProjectedOptim([x], Halving, epsilon=0.5).step()
    torch.testing.assert_close(x.detach().norm(), torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"lr=-1\.0 must"):
        ParamTransformingOptimizer([{"params": [leaf()], "lr": -1.0}], Halving)


def test_invalid_inner_optimizers_are_refused() -> None:
    with pytest.raises(TypeError, match="params=None must be the parameters"):
        ParamTransformingOptimizer(lr=1.0)
    with pytest.raises(TypeError, match="must make a torch optimizer, but makes list"):
        ParamTransformingOptimizer([leaf()], list)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"not a SignedGradientOptim: combine .* ChainedParamTransformingOptimizer"):
        ParamTransformingOptimizer([leaf()], SignedGradientOptim)
    with pytest.raises(TypeError, match="nonsense"):
        ParamTransformingOptimizer([leaf()], nonsense=1)
    with pytest.raises(TypeError, match="params argument"):
        ParamTransformingOptimizer(leaf())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="empty parameter list"):
        ParamTransformingOptimizer([])


def test_a_differentiable_step_is_refused() -> None:  # its derivative once left out the transforms
    with pytest.raises(ValueError, match="differentiable=True"):
        ParamTransformingOptimizer([leaf()], differentiable=True)
    with pytest.raises(ValueError, match="differentiable=True"):
        ParamTransformingOptimizer(None, SGD([leaf()], differentiable=True))
