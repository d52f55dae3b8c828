"""Optimizers whose gradient remembers earlier steps, or looks at points around the parameter.

As members of a chain they are the attacks that were made to transfer from one model to another.
"""

from typing import Any

from torch import Tensor
from torch.optim import SGD
from torch.optim.optimizer import ParamsT

from raiopt import checks, sampling
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.inner import InnerOptimizer
from raiopt.optim.signatures import with_defaults


class MomentumGradientOptim(ParamTransformingOptimizer):
    """Replaces the gradient by the sum of all so far, each step's predecessors multiplied by `mu`.

    In a chain it sums what the members before it made of the gradient, and those after it see the sum: with
    L1-normed before it and the sign after it, this is MI-FGSM (Dong et al. 2018, https://arxiv.org/abs/1710.06081).
    The sum is part of the state that checkpoints hold, as `momentum.<number of the parameter>`.

    Args:
        mu: At least 0; 1 in the paper.

    >>> import torch
    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = MomentumGradientOptim([x], mu=0.5, lr=1.0)
    >>> for gradient in ([[2.0, 0.0]], [[0.0, 2.0]]):
    ...     x.grad = torch.tensor(gradient)
    ...     optimizer.step()
    >>> x.grad
    tensor([[1., 2.]])
    """

    def __init__(
        self, params: ParamsT | None, InnerOpt: InnerOptimizer = SGD, *, mu: float = 1.0, **shared: Any
    ) -> None:
        super().__init__(params, InnerOpt, **with_defaults(shared, mu=mu))

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        checks.number("mu", group["mu"], low=0)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        total = self._memory("momentum", optim_group)
        param.grad.add_(total, alpha=optim_group["mu"])
        total.copy_(param.grad)


class LookaheadGradientOptim(ParamTransformingOptimizer):
    """Replaces the gradient by that at the point where the last move, taken once more `mu` times, would lead.

    For a parameter x that is x + mu (x - x before the last step); the first step takes the gradient as it is. Followed
    by `MomentumGradientOptim` this is Nesterov's method; followed by L1-normed, momentum and sign it is NI-FGSM (Lin et
    al. 2020, https://arxiv.org/abs/1908.06281). The paper looks along the sum of gradients, whose length has nothing to
    do with that of a step; the last move is as long as the step, and it knows ball and box.

    It stands first in a chain, before `MomentumGradientOptim`, whose `mu` it shares. Each step needs a second gradient,
    which it asks for by the group's `gradient`: see `raiopt.perturbations.solver.published`.

    Args:
        mu: At least 0; 1 in the paper.

    For half of x squared the gradient is where it is taken, at first 1, then at 0.9 - 0.1:

    >>> import torch
    >>> x = torch.ones(1, 1, requires_grad=True)
    >>> optimizer = LookaheadGradientOptim([x], lr=0.1)
    >>> optimizer.param_groups[0]["gradient"] = lambda: x.detach().clone()
    >>> for _ in range(2):
    ...     x.grad = x.detach().clone()
    ...     optimizer.step()
    >>> x.grad
    tensor([[0.8000]])
    """

    replaces_gradient = True
    further_gradients = 1

    def __init__(
        self, params: ParamsT | None, InnerOpt: InnerOptimizer = SGD, *, mu: float = 1.0, **shared: Any
    ) -> None:
        super().__init__(params, InnerOpt, **with_defaults(shared, mu=mu))

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        checks.number("mu", group["mu"], low=0)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        here, before = param.clone(), self._memory("lookahead", optim_group)
        if self._turn("lookahead.turn", optim_group) > 0:
            param.add_(param - before, alpha=optim_group["mu"])
            param.grad.copy_(_gradient(self, param, optim_group))
            param.copy_(here)
        before.copy_(here)


class VarianceTunedGradientOptim(ParamTransformingOptimizer):
    """Adds to the gradient by how much, one step ago, those of the parameter's neighbours differed from its own.

    The difference is that of the mean over `neighbors` points, drawn uniformly within `beta * epsilon` of each entry.
    Before L1-normed, momentum and sign it makes the chain VMI-FGSM (Wang and He 2021,
    https://arxiv.org/abs/2103.15571), with `LookaheadGradientOptim` before it VNI-FGSM. Each step needs `neighbors`
    more gradients, which it asks for by the group's `gradient`: see `raiopt.perturbations.solver.published`.

    Args:
        epsilon: The radius of the ball that the chain projects onto. That of an Linf ball is meant: for another, choose
            `beta` so that the product is a change of one entry.
        beta: At least 0; 1.5 in the paper.
        neighbors: At least 1; 20 in the paper.

    The gradient of the absolute value is 1 right of 0, -1 for about a quarter of the points within 0.2 of 0.1:

    >>> import torch
    >>> x = torch.full((1, 1), 0.1, requires_grad=True)
    >>> optimizer = VarianceTunedGradientOptim([x], epsilon=0.1, beta=2.0, neighbors=1000, lr=0.0)
    >>> generators = [sampling.keyed_generator(0, 0)]
    >>> optimizer.param_groups[0].update(gradient=lambda: x.detach().sign(), generators=generators)
    >>> for _ in range(2):
    ...     x.grad = x.detach().sign()
    ...     optimizer.step()
    >>> x.grad.round(decimals=1)
    tensor([[0.5000]])
    """

    def __init__(
        self,
        params: ParamsT | None,
        InnerOpt: InnerOptimizer = SGD,
        *,
        epsilon: float | Tensor,
        beta: float = 1.5,
        neighbors: int = 5,
        **shared: Any,
    ) -> None:
        super().__init__(params, InnerOpt, **with_defaults(shared, epsilon=epsilon, beta=beta, neighbors=neighbors))
        self.further_gradients = neighbors

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        checks.number("beta", group["beta"], low=0)
        checks.number("neighbors", group["neighbors"], low=1, integer=True)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        here, variance = param.clone(), self._memory("variance", optim_group)
        count, radius = optim_group["neighbors"], optim_group["beta"] * optim_group["epsilon"]
        around = -param.grad
        for _ in range(count):
            drawn = sampling.uniform_rows(param, param.shape[1:], optim_group.get("generators"))
            param.copy_(here + (2 * drawn - 1) * radius)
            around.add_(_gradient(self, param, optim_group), alpha=1 / count)
        param.copy_(here)
        param.grad.add_(variance)
        variance.copy_(around)


def _gradient(asking: ParamTransformingOptimizer, param: Tensor, optim_group: dict[str, Any]) -> Tensor:
    """Returns the gradient of the same losses at the parameter's present value, seen as a batch like it."""
    if "gradient" not in optim_group:
        raise ValueError(
            f"{type(asking).__name__} reads 'gradient' (a function) from its group: run it with raiopt.attack or "
            "gradient_ascent, or set optimizer.param_groups[0]['gradient'] before each step."
        )
    return optim_group["gradient"]().reshape(param.shape)
