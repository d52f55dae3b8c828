"""Optimizers that constrain the parameter to a ball of radius `epsilon`, or to bounds."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.optim import SGD

from raiopt import checks, transforms
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.gradients import ClampingOptimizer, L2NormedGradientOptim, SignedGradientOptim
from raiopt.optim.inner import InnerOptimizer, Params
from raiopt.optim.signatures import with_defaults
from raiopt.optim.sparse import L1qNormedGradientOptim
from raiopt.optim.traits import Traits


def project_(param: Tensor, group: dict[str, Any], p: float | None, **options: Any) -> None:
    """Projects each datum in place onto the group's Lp ball, intersected with the group's box."""
    project = {
        0: transforms.project_l0_,
        1: transforms.project_l1_,
        2: transforms.project_l2_,
        math.inf: transforms.project_linf_,
    }[p]  # pyright: ignore[reportArgumentType]
    box = (None, None) if p == math.inf else (group.get("lower"), group.get("upper"))  # for Linf the clamp in base.py
    project(param, group["epsilon"], *box, **options)


class ProjectedParameterOptimizer(ParamTransformingOptimizer):
    """Projects each datum onto the Lp ball after the inner optimizer's step; the gradient is not changed.

    If the group has `lower` and `upper`, the projection is onto the part of the ball within these bounds.

    Args:
        p: 0, 1, 2 or infinity. Points of the L0 ball have at most `epsilon` nonzero entries.
        epsilon: The radius of each datum's ball: with `param_ndim=1` each row of pixels has its own ball, with None
            the whole parameter has one. A number, or a tensor that broadcasts to the parameter's shape.
        pixels: For p=0: count pixels, with all their channels, instead of entries; see `raiopt.transforms.project_l0_`.

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
        params: Params,
        InnerOpt: InnerOptimizer = SGD,
        *,
        p: float,
        epsilon: float | Tensor,
        pixels: bool = False,
        **shared: Any,
    ) -> None:
        self.p = checks.choice("p", p, (0, 1, 2, math.inf))
        if pixels and p != 0:
            raise ValueError(f"pixels=True would have no effect with p={p}: only an L0 ball has a number of pixels.")
        self.traits = Traits(ball=p, pixels=pixels)
        super().__init__(params, InnerOpt, **with_defaults(shared, epsilon=epsilon))

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, optim_group, self.p, **({"pixels": True} if self.traits.pixels else {}))


class LinfProjectedOptim(SignedGradientOptim):
    """Replaces the gradient by its sign and projects each datum onto the Linf ball after the step.

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

    p = math.inf
    traits = Traits(ball=math.inf)

    def __init__(
        self, params: Params, InnerOpt: InnerOptimizer = SGD, *, epsilon: float | Tensor, **shared: Any
    ) -> None:
        super().__init__(params, InnerOpt, **with_defaults(shared, epsilon=epsilon))

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, optim_group, math.inf)


class L2ProjectedOptim(L2NormedGradientOptim):
    """Divides each datum of the gradient by its L2 norm and projects the datum onto the L2 ball after the step.

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

    traits = Traits(ball=2)

    def __init__(
        self, params: Params, InnerOpt: InnerOptimizer = SGD, *, epsilon: float | Tensor, **shared: Any
    ) -> None:
        super().__init__(params, InnerOpt, **with_defaults(shared, epsilon=epsilon))

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, optim_group, 2)


class L1ProjectedOptim(L1qNormedGradientOptim):
    """Steps along the sign of the gradient's largest entries, then projects each datum onto the L1 ball.

    The step is that of `L1qNormedGradientOptim`; the projection is onto the intersection of ball and box (Croce and
    Hein 2021, https://arxiv.org/abs/2103.01208); `epsilon` and the box are those of `ProjectedParameterOptimizer`. With
    a fixed q, all kept entries move by the same amount; with `dq`, the larger ones move more.

    Args:
        q: The fraction of the gradient's entries that is set to zero, in [0, 1]; 0.9 keeps the largest tenth.

    >>> import torch
    >>> x = torch.zeros(1, 4, requires_grad=True)
    >>> optimizer = L1ProjectedOptim([x], epsilon=0.5, q=0.5, lr=2.0)
    >>> x.backward(gradient=torch.tensor([[0.5, 1.0, -2.5, 0.3]]))
    >>> optimizer.step()
    >>> x
    tensor([[ 0.0000, -0.2500,  0.2500,  0.0000]], requires_grad=True)
    """

    p = 1
    traits = Traits(ball=1)

    def __init__(
        self, params: Params, InnerOpt: InnerOptimizer = SGD, *, epsilon: float | Tensor, q: float, **shared: Any
    ) -> None:
        super().__init__(params, InnerOpt, q=q, **with_defaults(shared, epsilon=epsilon))

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, optim_group, 1)


class L0ProjectedOptim(L2NormedGradientOptim):
    """Divides each datum of the gradient by its L2 norm and projects the datum onto the L0 ball after the step.

    The projection keeps `epsilon` entries and sets the others to 0: iterative hard thresholding, Blumensath and Davies
    2009, https://arxiv.org/abs/0805.0510. Without a box the entries are unbounded.

    Args:
        epsilon: The number of nonzero entries per datum, at least 1; one number, or one for each sample.
        pixels: Count pixels, with all their channels, instead of entries.

    >>> import torch
    >>> x = torch.zeros(1, 3, requires_grad=True)
    >>> optimizer = L0ProjectedOptim([x], epsilon=1, lr=5.0)
    >>> x.backward(gradient=torch.tensor([[3.0, -4.0, 0.0]]))
    >>> optimizer.step()
    >>> x
    tensor([[-0., 4., 0.]], requires_grad=True)
    """

    traits = Traits(ball=0)

    def __init__(
        self,
        params: Params,
        InnerOpt: InnerOptimizer = SGD,
        *,
        epsilon: float | Tensor,
        pixels: bool = False,
        **shared: Any,
    ) -> None:
        self.traits = replace(self.traits, pixels=pixels)
        super().__init__(params, InnerOpt, **with_defaults(shared, epsilon=epsilon))

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, optim_group, 0, pixels=self.traits.pixels)


class ClampedParameterOptimizer(ClampingOptimizer):
    """Clamps each entry of the parameter after the inner optimizer's step; see `ClampingOptimizer`.

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
