"""Optimizers that change only the gradient: its sign, its norm, its bounds."""

import math
from typing import Any

from torch import Tensor
from torch.optim import SGD

from raiopt import checks, transforms
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.inner import InnerOptimizer, Params
from raiopt.optim.signatures import with_defaults


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

    def __init__(self, params: Params, InnerOpt: InnerOptimizer = SGD, **shared: Any) -> None:
        super().__init__(params, InnerOpt, **shared)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            param.grad.sign_()


class _NormedGradientOptim(ParamTransformingOptimizer):
    """Divides each datum of the gradient by its p-norm before the inner optimizer steps."""

    p: float

    def __init__(
        self, params: Params, InnerOpt: InnerOptimizer = SGD, *, div_by_zero_eps: float | None = None, **shared: Any
    ) -> None:
        if div_by_zero_eps is not None:
            checks.number("div_by_zero_eps", div_by_zero_eps, low=0)
        self.div_by_zero_eps = div_by_zero_eps
        super().__init__(params, InnerOpt, **shared)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            transforms.normalize_(param.grad, self.p, self.div_by_zero_eps)


class L1NormedGradientOptim(_NormedGradientOptim):
    """Divides each datum of the gradient by its L1 norm before the inner optimizer steps.

    Args:
        div_by_zero_eps: Lower bound of the divisor; None: the smallest normal number of the gradient's type, which is
            1.18e-38 in float32.

    Here the whole parameter is one datum, whose gradient (2, 2) has L1 norm 4:

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


class LinfNormedGradientOptim(_NormedGradientOptim):
    """Divides each datum of the gradient by its largest magnitude; see `L1NormedGradientOptim`.

    Unlike the sign, this keeps the direction of the gradient; no entry moves further than `lr`.

    >>> import torch
    >>> x = torch.zeros(1, 3, requires_grad=True)
    >>> optimizer = LinfNormedGradientOptim([x], lr=1.0)
    >>> x.backward(gradient=torch.tensor([[3.0, -4.0, 1.0]]))
    >>> optimizer.step()
    >>> x.grad
    tensor([[ 0.7500, -1.0000,  0.2500]])
    """

    p = math.inf


class LpNormedGradientOptim(_NormedGradientOptim):
    """Divides each datum of the gradient by its p-norm; see `L1NormedGradientOptim`.

    Args:
        p: At least 1, infinity included.

    >>> import torch
    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = LpNormedGradientOptim([x], p=3, lr=1.0)
    >>> x.backward(gradient=torch.tensor([[1.0, 1.0]]))
    >>> optimizer.step()
    >>> x.grad ** 3
    tensor([[0.5000, 0.5000]])
    """

    def __init__(self, params: Params, InnerOpt: InnerOptimizer = SGD, *, p: float, **shared: Any) -> None:
        self.p = transforms.check_order(p)
        super().__init__(params, InnerOpt, **shared)


class SteepestGradientOptim(ParamTransformingOptimizer):
    """Replaces each datum of the gradient by the direction of Lp norm 1 in which the loss changes most.

    That is the sign for p=inf, the normalized gradient for p=2, only its largest entry (ties share the norm) for p=1,
    and the dual direction otherwise: Boyd and Vandenberghe 2004, section 9.4,
    https://web.stanford.edu/~boyd/cvxbook/.

    Args:
        p: The norm in which a step has length `lr`; at least 1, infinity included.

    >>> import torch
    >>> x = torch.zeros(1, 3, requires_grad=True)
    >>> optimizer = SteepestGradientOptim([x], p=1, lr=1.0)
    >>> x.backward(gradient=torch.tensor([[3.0, -4.0, 1.0]]))
    >>> optimizer.step()
    >>> x
    tensor([[0., 1., 0.]], requires_grad=True)
    """

    def __init__(self, params: Params, InnerOpt: InnerOptimizer = SGD, *, p: float, **shared: Any) -> None:
        self.p = transforms.check_order(p)
        super().__init__(params, InnerOpt, **shared)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            transforms.steepest_(param.grad, self.p)


class ClampingOptimizer(ParamTransformingOptimizer):
    """Base of the optimizers that clamp the gradient or the parameter to `clamp_min` and `clamp_max`.

    Args:
        clamp_min: The lower bound: a number, or a tensor that broadcasts to the parameter's shape. None: no bound; at
            least one of the two must be given.
        clamp_max: The upper bound.
    """

    def __init__(
        self,
        params: Params,
        InnerOpt: InnerOptimizer = SGD,
        *,
        clamp_min: float | Tensor | None = None,
        clamp_max: float | Tensor | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(params, InnerOpt, **with_defaults(shared, clamp_min=clamp_min, clamp_max=clamp_max))

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        if group["clamp_min"] is None and group["clamp_max"] is None:
            raise TypeError("clamp_min and clamp_max must not both be None: give at least one of the two.")


class ClampedGradientOptimizer(ClampingOptimizer):
    """Clamps each entry of the gradient to [clamp_min, clamp_max] before the inner optimizer steps.

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
