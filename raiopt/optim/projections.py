"""Optimizers that hold the parameter in a set: a ball of radius `epsilon`, or bounds."""

import math
from typing import Any

from torch import Tensor
from torch.optim import SGD
from torch.optim.optimizer import ParamsT

from raiopt import checks, transforms
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.gradients import ClampingOptimizer, L2NormedGradientOptim, SignedGradientOptim
from raiopt.optim.inner import InnerOptimizer


def _project_(param: Tensor, group: dict[str, Any], p: float) -> None:
    """Moves each datum to the nearest point of the ball of the group within the box of the group."""
    project_ = {2: transforms.project_l2_, math.inf: transforms.project_linf_}[p]
    project_(param, group["epsilon"], group.get("lower"), group.get("upper"))


class ProjectedParameterOptimizer(ParamTransformingOptimizer):
    """Projects each datum onto the Lp ball after the inner optimizer stepped, and leaves the gradient alone.

    If the group has `lower` and `upper`, it moves to the nearest point that lies in the ball and between them.

    Args:
        p: 2 or infinity.
        epsilon: The radius of the ball of each datum: with `param_ndim=1` each row of pixels has its own ball, with
            None the whole parameter has one. A number, or a tensor that broadcasts to the parameter's shape.

    >>> import torch
    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = ProjectedParameterOptimizer([x], p=2, epsilon=0.5, lr=1.0)
    >>> x.backward(gradient=torch.tensor([[-3.0, -4.0]]))
    >>> optimizer.step()
    >>> x
    tensor([[0.3000, 0.4000]], requires_grad=True)
    """

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        p: float,
        epsilon: float | Tensor,
        param_ndim: int | None = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        **inner_opt_kwargs: Any,
    ) -> None:
        self.p = self.ball = checks.choice("p", p, (2, math.inf))
        super().__init__(
            params,
            InnerOpt,
            param_ndim=param_ndim,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            defaults={"epsilon": epsilon, **(defaults or {})},
            **inner_opt_kwargs,
        )

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        _project_(param, optim_group, self.p)


class L2ProjectedOptim(L2NormedGradientOptim):
    """Divides each datum of the gradient by its L2 norm, and after the step projects the datum onto the L2 ball.

    The projected gradient descent of Madry et al. 2018, https://arxiv.org/abs/1706.06083, in the L2 norm.
    `epsilon` and the box are those of `ProjectedParameterOptimizer`.

    >>> import torch
    >>> x = torch.zeros(2, 2, requires_grad=True)
    >>> optimizer = L2ProjectedOptim([x], epsilon=0.5, lr=1.0)
    >>> x.backward(gradient=torch.tensor([[-3.0, -4.0], [0.0, 0.1]]))
    >>> optimizer.step()
    >>> x
    tensor([[ 0.3000,  0.4000],
            [ 0.0000, -0.5000]], requires_grad=True)
    """

    ball = 2

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        epsilon: float | Tensor,
        param_ndim: int | None = -1,
        grad_scale: float = 1.0,
        grad_bias: float = 0.0,
        defaults: dict[str, Any] | None = None,
        div_by_zero_eps: float | None = None,
        **inner_opt_kwargs: Any,
    ) -> None:
        super().__init__(
            params,
            InnerOpt,
            param_ndim=param_ndim,
            grad_scale=grad_scale,
            grad_bias=grad_bias,
            defaults={"epsilon": epsilon, **(defaults or {})},
            div_by_zero_eps=div_by_zero_eps,
            **inner_opt_kwargs,
        )

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        _project_(param, optim_group, 2)


class LinfProjectedOptim(SignedGradientOptim):
    """Replaces the gradient by its sign, and after the step projects each datum onto the Linf ball.

    The projected gradient descent of Madry et al. 2018, https://arxiv.org/abs/1706.06083.
    `epsilon` and the box are those of `ProjectedParameterOptimizer`.

    >>> import torch
    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = LinfProjectedOptim([x], epsilon=0.3, lr=1.0)
    >>> x.backward(gradient=torch.tensor([[-3.0, 0.1]]))
    >>> optimizer.step()
    >>> x
    tensor([[ 0.3000, -0.3000]], requires_grad=True)
    """

    ball = math.inf
    p = math.inf

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        epsilon: float | Tensor,
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
            defaults={"epsilon": epsilon, **(defaults or {})},
            **inner_opt_kwargs,
        )

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        _project_(param, optim_group, math.inf)


class ClampedParameterOptimizer(ClampingOptimizer):
    """Clamps each entry of the parameter after the inner optimizer stepped; see `ClampedGradientOptimizer`.

    >>> import torch
    >>> x = torch.ones(2, requires_grad=True)
    >>> optimizer = ClampedParameterOptimizer([x], clamp_min=0.0, lr=1.0)
    >>> x.backward(gradient=torch.tensor([2.0, -2.0]))
    >>> optimizer.step()
    >>> x
    tensor([0., 3.], requires_grad=True)
    """

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        transforms.clamp_(param, optim_group["clamp_min"], optim_group["clamp_max"])
