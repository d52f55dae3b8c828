"""Optimizers that combine gradients of earlier steps, or of points near the parameter.

In chains, they form the attacks that were designed to transfer between models.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD

from raiopt import sampling
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.inner import InnerOptimizer, Params
from raiopt.optim.signatures import with_defaults
from raiopt.optim.traits import Traits


class MomentumGradientOptim(ParamTransformingOptimizer):
    """Replaces the gradient by the sum of all gradients so far, discounted by `mu` in each step.

    In a chain, it sums the gradients transformed by the members before it: with L1-normed before and the sign after
    it, this is MI-FGSM (Dong et al. 2018, https://arxiv.org/abs/1710.06081).
    Checkpoints contain the sum: `optimizer.state["MomentumGradientOptim.0"]["momentum"]` for the first parameter.

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

    _limits: ClassVar = {"mu": {"low": 0}}

    def __init__(self, params: Params, InnerOpt: InnerOptimizer = SGD, *, mu: float = 1.0, **shared: Any) -> None:
        super().__init__(params, InnerOpt, **with_defaults(shared, mu=mu))

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        return {"momentum": torch.zeros_like(param)}

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        state = self._state(param, optim_group)
        state.momentum = param.grad.add_(state.momentum, alpha=optim_group["mu"])


class LookaheadGradientOptim(ParamTransformingOptimizer):
    """Replaces the gradient by the gradient at a look-ahead point: x_k + mu (x_k - x_k-1).

    The first step uses the gradient unchanged. Followed by `MomentumGradientOptim`, this is Nesterov's method; followed
    by L1-normed, momentum and sign, it is NI-FGSM (Lin et al. 2020, https://arxiv.org/abs/1908.06281). The paper looks
    ahead along the sum of gradients, whose length is unrelated to the step size; the last displacement, used here, has
    the length of a step and respects ball and box.

    It must be the first member of a chain, before `MomentumGradientOptim`, whose `mu` it shares. Each step computes a
    second gradient by calling the group's `gradient`: see `raiopt.attacks.search.published`.

    Args:
        mu: At least 0; 1 in the paper.

    The gradient of x^2 / 2 is x: first 1, then 0.8 at the look-ahead point 0.9 - 0.1:

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

    traits = Traits(further_gradients=1, replaces_gradient=True)

    _limits: ClassVar = {"mu": {"low": 0}}

    def __init__(self, params: Params, InnerOpt: InnerOptimizer = SGD, *, mu: float = 1.0, **shared: Any) -> None:
        super().__init__(params, InnerOpt, **with_defaults(shared, mu=mu))

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        return {"k": 0, "last": torch.zeros_like(param)}

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        here, state = param.clone(), self._state(param, optim_group)
        if state.k > 0:
            param.add_(param - state.last, alpha=optim_group["mu"])
            param.grad.copy_(self._read("gradient", optim_group)().reshape(param.shape))
            param.copy_(here)
        state.last = here
        state.k += 1


class VarianceTunedGradientOptim(ParamTransformingOptimizer):
    """Adds the gradient variance of the previous step: the mean gradient at random neighbours minus the gradient.

    The mean is taken over `neighbors` points, drawn uniformly within `beta * epsilon` of each entry.
    Followed by L1-normed, momentum and sign, it is VMI-FGSM (Wang and He 2021, https://arxiv.org/abs/2103.15571); with
    `LookaheadGradientOptim` before it, VNI-FGSM. Each step computes `neighbors` additional gradients by calling the
    group's `gradient`: see `raiopt.attacks.search.published`.

    Args:
        epsilon: The radius of the Linf ball that the chain projects onto. For another ball, choose `beta` so that
            `beta * epsilon` is a suitable change of a single entry.
        beta: At least 0; 1.5 in the paper.
        neighbors: At least 1; 20 in the paper.

    The gradient of ``abs(x)`` is 1 for x > 0, and -1 for about a quarter of the points within 0.2 of 0.1:

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

    _limits: ClassVar = {"beta": {"low": 0}, "neighbors": {"low": 1, "integer": True}}

    def __init__(
        self,
        params: Params,
        InnerOpt: InnerOptimizer = SGD,
        *,
        epsilon: float | Tensor,
        beta: float = 1.5,
        neighbors: int = 5,
        **shared: Any,
    ) -> None:
        super().__init__(params, InnerOpt, **with_defaults(shared, epsilon=epsilon, beta=beta, neighbors=neighbors))
        self.traits = replace(self.traits, further_gradients=neighbors)

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        return {"variance": torch.zeros_like(param)}

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        here, state = param.clone(), self._state(param, optim_group)
        count, radius = optim_group["neighbors"], optim_group["beta"] * optim_group["epsilon"]
        around = -param.grad
        for _ in range(count):
            drawn = sampling.uniform_rows(param, param.shape[1:], optim_group.get("generators"))
            param.copy_(here + (2 * drawn - 1) * radius)
            around.add_(self._read("gradient", optim_group)().reshape(param.shape), alpha=1 / count)
        param.copy_(here)
        param.grad.add_(state.variance)
        state.variance = around
