"""Optimizers that change the gradient alone."""

from typing import Any

from torch import Tensor
from torch.optim import SGD
from torch.optim.optimizer import ParamsT

from raiopt import checks, transforms
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.inner import InnerOptimizer


class SignedGradientOptim(ParamTransformingOptimizer):
    """Replaces each entry of the gradient by its sign before the inner optimizer steps.

    With SGD this is the step of Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572.

    >>> import torch
    >>> x = torch.tensor([-1.5, 1.5], requires_grad=True)
    >>> optimizer = SignedGradientOptim([x], lr=1.0)
    >>> (torch.tensor([-2.0, 2.0]) * x).sum().backward()
    >>> optimizer.step()
    >>> x.grad, x
    (tensor([-1.,  1.]), tensor([-0.5000,  0.5000], requires_grad=True))
    """

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        param_ndim: int | None = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        **inner_opt_kwargs: Any,
    ) -> None:
        super().__init__(
            params,
            InnerOpt,
            param_ndim=param_ndim,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            defaults=defaults,
            **inner_opt_kwargs,
        )

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            param.grad.sign_()


class _NormedGradientOptim(ParamTransformingOptimizer):
    """Divides each datum of the gradient by its p-norm before the inner optimizer steps."""

    p: float

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        param_ndim: int | None = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        div_by_zero_eps: float | None = None,
        **inner_opt_kwargs: Any,
    ) -> None:
        if div_by_zero_eps is not None:
            checks.number("div_by_zero_eps", div_by_zero_eps, low=0)
        self.div_by_zero_eps = div_by_zero_eps
        super().__init__(
            params,
            InnerOpt,
            param_ndim=param_ndim,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            defaults=defaults,
            **inner_opt_kwargs,
        )

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            transforms.normalize_(param.grad, self.p, self.div_by_zero_eps)


class L1NormedGradientOptim(_NormedGradientOptim):
    """Divides each datum of the gradient by its L1 norm before the inner optimizer steps.

    `div_by_zero_eps` bounds the divisor from below; None means the smallest normal number of the gradient's type, which
    is 1.18e-38 in float32.

    Here the whole parameter is one datum, whose gradient (2, 2) has the norm 4:

    >>> import torch
    >>> x = torch.tensor([-1.0, 1.0], requires_grad=True)
    >>> optimizer = L1NormedGradientOptim([x], param_ndim=None, lr=1.0)
    >>> (torch.tensor([2.0, 2.0]) * x).sum().backward()
    >>> optimizer.step()
    >>> x.grad, x
    (tensor([0.5000, 0.5000]), tensor([-1.5000,  0.5000], requires_grad=True))
    """

    p = 1


class L2NormedGradientOptim(_NormedGradientOptim):
    """Divides each datum of the gradient by its L2 norm before the inner optimizer steps; see `L1NormedGradientOptim`.

    >>> import torch
    >>> x = torch.zeros(2, 2, requires_grad=True)
    >>> optimizer = L2NormedGradientOptim([x], lr=1.0)
    >>> x.backward(gradient=torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    >>> optimizer.step()
    >>> x.grad
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """

    p = 2


class ClampingOptimizer(ParamTransformingOptimizer):
    """Holds `clamp_min` and `clamp_max`; subclasses say what is clamped to them.

    Args:
        clamp_min: The lower bound: a number, or a tensor that broadcasts to the parameter's shape. None: no bound; at
            least one of the two must be given.
        clamp_max: The upper bound.
    """

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        clamp_min: float | Tensor | None = None,
        clamp_max: float | Tensor | None = None,
        param_ndim: int | None = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        **inner_opt_kwargs: Any,
    ) -> None:
        super().__init__(
            params,
            InnerOpt,
            param_ndim=param_ndim,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            defaults={"clamp_min": clamp_min, "clamp_max": clamp_max, **(defaults or {})},
            **inner_opt_kwargs,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group["clamp_min"] is None and group["clamp_max"] is None:
            raise TypeError("clamp_min and clamp_max must not both be None: give at least one of the two.")


class ClampedGradientOptimizer(ClampingOptimizer):
    """Clamps each entry of the gradient to [clamp_min, clamp_max] before the inner optimizer steps.

    Each bound is a number, a tensor that broadcasts to the parameter's shape, or None; one of them must be given.

    >>> import torch
    >>> x = torch.ones(2, requires_grad=True)
    >>> optimizer = ClampedGradientOptimizer([x], clamp_min=-1.0, clamp_max=3.0, lr=0.1)
    >>> x.backward(gradient=torch.tensor([-2.0, 2.0]))
    >>> optimizer.step()
    >>> x
    tensor([1.1000, 0.8000], requires_grad=True)
    """

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            transforms.clamp_(param.grad, optim_group["clamp_min"], optim_group["clamp_max"])
