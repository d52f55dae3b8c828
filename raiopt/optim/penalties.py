"""Minimum-norm attacks for any torch optimizer: the gradient of the norm plus that of a weighted loss."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD, Adam

from raiopt import transforms
from raiopt.optim.inner import InnerOptimizer, Params
from raiopt.optim.signatures import with_defaults
from raiopt.optim.smallest import ROUNDING, MinimumNormOptim
from raiopt.optim.state import State


class CWOptim(MinimumNormOptim):
    """Carlini and Wagner: adds the gradient of the squared L2 norm to c times that of the loss, and searches for c.

    Carlini and Wagner 2017, https://arxiv.org/abs/1608.04644. The loss only counts while the datum is not adversarial.
    The steps are divided into rounds with constant c. Until the first round with an adversarial datum, c grows tenfold
    after each round; then it is the midpoint of the largest c that failed and the smallest that succeeded. A round
    starts where the previous one ended, not at zero. The box is enforced by projection instead of a change of
    variables, so the perturbation keeps its units. Reads `fooled`: see `raiopt.attacks.search.published`.

    Args:
        steps: The number of steps of the search.
        epsilon: The largest norm that counts as success; infinity: no limit.
        searches: The number of rounds, each of at least one step.
        c: The c of the first round; 0.001 in the paper, which takes thousands of steps.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = CWOptim([x], steps=100, lr=0.1)
    >>> optimizer.param_groups[0]["fooled"] = torch.tensor([False])
    >>> x.grad = torch.tensor([[-3.0, -4.0]])
    >>> optimizer.step()
    >>> x
    tensor([[0.1000, 0.1000]], requires_grad=True)
    """

    traits = replace(MinimumNormOptim.traits, ball=2)

    _limits: ClassVar = {
        "steps": {"low": 1, "integer": True},
        "searches": {"low": 1, "integer": True},
        "c": {"above": 0},
    }

    def __init__(
        self,
        params: Params,
        InnerOpt: InnerOptimizer = Adam,
        *,
        steps: int,
        epsilon: float | Tensor = math.inf,
        searches: int = 9,
        c: float = 1.0,
        **shared: Any,
    ) -> None:
        own = with_defaults(shared, epsilon=epsilon, steps=steps, searches=searches, c=c)
        super().__init__(params, InnerOpt, **own)

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        return {"k": 0, "c": float(optim_group["c"]), "failed": 0.0, "succeeded": math.inf, "was_adversarial": 0.0}

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        s, adversarial = self._state(param, optim_group), self._published("fooled", optim_group, param)
        s.was_adversarial = s.was_adversarial.maximum(adversarial.to(s.c.dtype))
        if s.k > 0 and s.k % math.ceil(optim_group["steps"] / optim_group["searches"]) == 0:
            s.succeeded = torch.where(s.was_adversarial > 0, s.c, s.succeeded)
            s.failed = torch.where(s.was_adversarial > 0, s.failed, s.c)
            s.c = torch.where(s.succeeded < math.inf, (s.failed + s.succeeded) / 2, 10 * s.c)
            s.was_adversarial = 0.0
        param.grad.mul_(torch.where(adversarial, 0.0, s.c)).add_(param, alpha=2)
        s.k += 1


class ALMAOptim(MinimumNormOptim):
    """ALMA (augmented Lagrangian): adds the gradient of the L2 norm to that of an adaptively weighted penalty.

    Rony et al. 2021, https://arxiv.org/abs/2011.11857. Let y be the loss divided by the initial loss, at most 0 if the
    datum is adversarial. The penalty is

        P(y) = m y + m r y^2 + r^2 y^3 / 6  for y >= 0,   m y / (1 - r y)  for y < 0

    times the distance to the decision boundary in the first linearization. In each step, m moves a tenth of the way to
    P'(y). Every tenth step, r grows by a fifth if the datum was never adversarial so far and y fell by less than 5 % in
    these ten steps. Steps have momentum and are at most `lr` times that distance long; use a scheduler that ends near
    0.

    Reads `losses` and `fooled`: see `raiopt.attacks.search.published`. Needs a loss that is 0 at the decision
    boundary, such as the margin or, as in the paper, dlr; `raiopt.attack` refuses others, and a loss that is negative
    before the first success raises a ValueError in the first step.

    Args:
        epsilon: The largest norm that counts as success; infinity: no limit.
        mu: The momentum.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = ALMAOptim([x], lr=0.1)
    >>> optimizer.param_groups[0].update(losses=torch.tensor([10.0]), fooled=torch.tensor([False]))
    >>> x.grad = torch.tensor([[-3.0, -4.0]])
    >>> optimizer.step()
    >>> x
    tensor([[0.1200, 0.1600]], requires_grad=True)
    """

    traits = replace(MinimumNormOptim.traits, ball=2, needs_boundary_loss=True)

    _limits: ClassVar = {"mu": {"low": 0, "high": 1}}

    def __init__(
        self,
        params: Params,
        InnerOpt: InnerOptimizer = SGD,
        *,
        epsilon: float | Tensor = math.inf,
        mu: float = 0.9,
        **shared: Any,
    ) -> None:
        super().__init__(params, InnerOpt, **with_defaults(shared, epsilon=epsilon, mu=mu))

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        return {
            "k": 0,
            "momentum": torch.zeros_like(param),
            "first_loss": 0.0,
            "first_slope": 0.0,
            "m": 1.0,
            "r": 1.0,
            "y_before": math.inf,
            "was_adversarial": 0.0,
        }

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        s = self._state(param, optim_group)
        losses, adversarial = (self._published(name, optim_group, param) for name in ("losses", "fooled"))
        if s.k == 0 and len(optim_group["losses"]) <= len(param) and ((losses < 0) & ~adversarial).any():
            raise ValueError(
                f"{type(self).__name__} needs losses of at least 0 until a sample is fooled, and got "
                f"{losses.min().item():.4g}: use criterion=margin or dlr instead of the cross entropy."
            )
        new = s.first_slope == 0  # not yet initialized: waits for a gradient large enough to divide by
        s.first_loss = torch.where(new, losses.abs().clamp(min=1e-6), s.first_loss)
        slopes = transforms.norms(param.grad, 2)
        s.first_slope = torch.where(new & (slopes > ROUNDING), slopes, s.first_slope)
        derivative = self._derivative(s, losses / s.first_loss, adversarial)
        gradient = param.grad.mul_(torch.where(s.first_slope > 0, derivative / s.first_slope, 0.0))
        gradient.addcdiv_(param, transforms.norms(param, 2).clamp_(min=torch.finfo(s.m.dtype).tiny))
        distance = torch.where(s.first_slope > 0, s.first_loss / s.first_slope, 0.0)
        gradient.mul_(distance / transforms.norms(gradient, 2).clamp_(min=1))
        s.momentum = gradient.add_(s.momentum, alpha=optim_group["mu"])
        s.k += 1

    def _derivative(self, s: State, y: Tensor, adversarial: Tensor) -> Tensor:
        """Returns P'(y) of each datum, of shape (N, 1, ...), and adapts m and r."""
        above, below = s.r * y.clamp(min=0), s.r * y.clamp(max=0)
        derivative = s.m / (1 - below).square() + 2 * s.m * above + above.square() / 2
        s.m.lerp_(derivative, 0.1).clamp_(1e-6, 1e12)
        s.was_adversarial = s.was_adversarial.maximum(adversarial.to(s.m.dtype))
        if s.k % 10 == 0:
            s.r *= torch.where((s.was_adversarial == 0) & (y > 0.95 * s.y_before), 1.2, 1.0)
            s.y_before = y
        return derivative
