"""Optimizers that keep only the largest entries of the gradient."""

from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.optim import SGD

from raiopt import checks, transforms
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.inner import InnerOptimizer, Params
from raiopt.optim.signatures import with_defaults


class TopQGradientOptimizer(ParamTransformingOptimizer):
    """Sets to zero, in each datum of the gradient, the fraction `q` of entries with the smallest magnitude.

    Of d entries, exactly round((1 - q) d) are kept, at least one unless q is 1; ties are broken arbitrarily.

    Args:
        q: In [0, 1]; 0.9 keeps the largest tenth.
        dq: In [0, 1]; if not 0, each step draws one q for all data of a parameter, uniformly between q - dq and
            q + dq, limited to [0, 1].
        generator: Draws q. It must be on the CPU, because each step would wait for a draw on another device. None: the
            global generator.

    >>> import torch
    >>> x = torch.ones(2, 2, requires_grad=True)
    >>> optimizer = TopQGradientOptimizer([x], q=0.5, param_ndim=None, lr=1.0)
    >>> x.backward(gradient=torch.tensor([[0.5, 1.0], [-2.5, 0.3]]))
    >>> optimizer.step()
    >>> x
    tensor([[1.0000, 0.0000],
            [3.5000, 1.0000]], requires_grad=True)
    """

    _limits: ClassVar = {"q": {"low": 0, "high": 1, "scalar": True}, "dq": {"low": 0, "high": 1, "scalar": True}}

    def __init__(
        self,
        params: Params,
        InnerOpt: InnerOptimizer = SGD,
        *,
        q: float,
        dq: float = 0.0,
        generator: Generator | None = None,
        **shared: Any,
    ) -> None:
        if not isinstance(generator, Generator | None):
            raise TypeError(f"generator={generator!r} must be a torch.Generator or None.")
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(
                f"generator must be on the CPU, not on {generator.device}: its draws are read in each step."
            )
        self._generator = generator
        super().__init__(params, InnerOpt, **with_defaults(shared, q=q, dq=dq))

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            transforms.keep_top_(param.grad, self._draw(**optim_group))

    def _draw(self, *, q: float, dq: float, **_: Any) -> float:
        """Returns the q of one step."""
        if dq == 0:
            return q
        low, high = max(0.0, q - dq), min(1.0, q + dq)
        return (high - low) * torch.rand(1, generator=self._generator).item() + low


class L1qNormedGradientOptim(TopQGradientOptimizer):
    """Replaces each datum of the gradient by the signs of its largest entries, scaled to an L1 norm of 1.

    The sparse step of Tramèr and Boneh 2019, https://arxiv.org/abs/1904.13000. See `TopQGradientOptimizer` for q.

    Args:
        div_by_zero_eps: See `L1NormedGradientOptim`.

    >>> import torch
    >>> x = torch.zeros(1, 4, requires_grad=True)
    >>> optimizer = L1qNormedGradientOptim([x], q=0.5, lr=1.0)
    >>> x.backward(gradient=torch.tensor([[0.5, 1.0, -2.5, 0.3]]))
    >>> optimizer.step()
    >>> x
    tensor([[ 0.0000, -0.5000,  0.5000,  0.0000]], requires_grad=True)
    """

    def __init__(
        self,
        params: Params,
        InnerOpt: InnerOptimizer = SGD,
        *,
        q: float,
        div_by_zero_eps: float | None = None,
        **shared: Any,
    ) -> None:
        if div_by_zero_eps is not None:
            checks.number("div_by_zero_eps", div_by_zero_eps, low=0)
        self.div_by_zero_eps = div_by_zero_eps
        super().__init__(params, InnerOpt, q=q, **shared)

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        super()._pre_step_transform_(param=param, optim_group=optim_group)
        if param.grad is not None:
            transforms.normalize_(param.grad.sign_(), 1, self.div_by_zero_eps)
