"""Minimum-norm attacks with a radius per datum that shrinks while the datum is adversarial and grows otherwise."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import SGD

from raiopt import checks, transforms
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.inner import InnerOptimizer, Params
from raiopt.optim.projections import project_
from raiopt.optim.signatures import with_defaults
from raiopt.optim.state import State
from raiopt.optim.traits import Traits

FINAL_ALPHA = 0.01  # the last step size as a share of the first one
FINAL_GAMMA = 0.02  # the last relative change of a radius as a share of gamma
LARGEST_RADIUS = 1e9  # used instead of infinity, so that products stay finite
ROUNDING = 1e-20  # smaller entries of a normalised gradient would count as changed pixels
L0_GROWTH = 1.2  # growth factor of the number of entries, until the first success on a datum

_SUPPORTS = {
    0: transforms.support_l0_,
    1: transforms.support_l1_,
    2: transforms.support_l2_,
    math.inf: transforms.support_linf_,
}
_DUAL = {0: math.inf, 1: math.inf, 2: 2, math.inf: 1}


class MinimumNormOptim(ParamTransformingOptimizer):
    """Base of the minimum-norm attacks, which minimise the norm of adversarial examples within the box.

    `epsilon` is the largest norm that counts as success; iterates may leave that ball. `raiopt.attack` continues after
    the first success and keeps the adversarial iterate with the smallest norm.
    """

    traits = Traits(smallest_norm=True)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group({**group, "epsilon": _finite(group["epsilon"])})


def _finite(epsilon: Any) -> Any:
    if isinstance(epsilon, Tensor):
        return epsilon.masked_fill(epsilon == math.inf, LARGEST_RADIUS)
    return LARGEST_RADIUS if epsilon == math.inf else epsilon


class _RadiusOptim(MinimumNormOptim):
    """Projects each datum onto a ball with its own radius, which subclasses adapt in each step."""

    traits = replace(MinimumNormOptim.traits, sets_own_steps=True)

    _limits: ClassVar = {"steps": {"low": 1, "integer": True}, "gamma": {"above": 0, "high": 0.5}}

    def __init__(
        self,
        params: Params,
        InnerOpt: InnerOptimizer = SGD,
        *,
        steps: int,
        epsilon: float | Tensor = math.inf,
        gamma: float = 0.05,
        lr: float = 1.0,
        **shared: Any,
    ) -> None:
        super().__init__(params, InnerOpt, lr=lr, **with_defaults(shared, epsilon=epsilon, steps=steps, gamma=gamma))

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        return {"k": 0, "epsilon": LARGEST_RADIUS}

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        project_(param, {**optim_group, "epsilon": self._state(param, optim_group).epsilon}, self.traits.ball)


def _cosine(share: float, final: float) -> float:
    """Returns a factor that falls from 1 to `final` along half a cosine while `share` grows from 0 to 1."""
    return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, share))) / 2


class DDNOptim(_RadiusOptim):
    """DDN (decoupled direction and norm): a step along the L2-normed gradient, then rescaling to the datum's radius.

    The radius epsilon_k starts at 1 and is multiplied by 1 - gamma if the datum is adversarial, else by 1 + gamma (Rony
    et al. 2019, https://arxiv.org/abs/1811.09600). The point on the sphere is projected onto the box; colours are not
    quantised. Reads `fooled`: see `raiopt.attacks.search.published`.

    Args:
        steps: The number of steps of the search. The step size falls along half a cosine to 0.01 of `lr`.
        epsilon: The largest norm that counts as success; infinity: no limit.
        gamma: The relative change of the radius, above 0 and at most 0.5.
        lr: The initial step size.

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer = DDNOptim([x], steps=100)
    >>> optimizer.param_groups[0]["fooled"] = torch.tensor([False])
    >>> x.grad = torch.tensor([[-3.0, -4.0]])
    >>> optimizer.step()
    >>> x
    tensor([[0.6300, 0.8400]], requires_grad=True)
    """

    traits = replace(_RadiusOptim.traits, ball=2)

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        return {**super()._init_state(param, optim_group), "largest": LARGEST_RADIUS}

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        s, gamma = self._state(param, optim_group), optim_group["gamma"]
        if s.k == 0:
            s.epsilon = 1.0
            self._limit_to_box(s, param, optim_group)
        adversarial = self._published("fooled", optim_group, param)
        s.epsilon = (s.epsilon * (1 + torch.where(adversarial, -gamma, gamma))).minimum(s.largest)
        alpha = _cosine(s.k / optim_group["steps"], FINAL_ALPHA)
        transforms.normalize_(param.grad, 2).mul_(alpha)
        s.k += 1

    def _limit_to_box(self, s: State, param: Tensor, optim_group: dict[str, Any]) -> None:
        """Sets the largest radius to the norm of the farthest corner of the box."""
        if optim_group.get("lower") is not None and optim_group.get("upper") is not None:
            zero = torch.zeros_like(param)
            corner = (zero - optim_group["lower"]).maximum(zero + optim_group["upper"])
            s.largest = transforms.norms(corner, 2)

    def _post_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is not None:
            size = transforms.norms(param, 2)
            param.mul_(self._state(param, optim_group).epsilon / size.clamp(min=torch.finfo(size.dtype).tiny))
        super()._post_step_transform_(param, optim_group)


class FMNOptim(_RadiusOptim):
    """FMN (fast minimum norm): dual averaging with FMN's adaptive radius, or FMN's own step with `update="paper"`.

    The radius epsilon_k is that of Pintor et al. 2021 (https://arxiv.org/abs/2102.12827): until the first success it
    grows to where the linearized loss is 0; then it shrinks by the fraction gamma_k while the datum is adversarial, to
    at most the smallest norm of a success, and grows by that fraction otherwise. The published step is
    x_k+1 = P(x_k - alpha_k g), with g the L2-normed gradient and P the projection onto ball and box. The default step
    moves by the fraction alpha_k from x_k towards the support point of ball and box for the mean of all g so far; in an
    L0 ball it moves the whole distance (dual averaging: Nesterov 2009, https://doi.org/10.1007/s10107-007-0149-x). It
    finds smaller norms in the same number of steps, for every p.

    Reads `losses` and `fooled`: see `raiopt.attacks.search.published`. If the loss is 0 at the decision boundary, as
    for the margin, the initial radius is a good estimate; later steps work with any loss.

    Args:
        p: 0, 1, 2 or infinity. L0 counts entries and needs a box.
        steps: The number of steps of the search. alpha_k, which is also the weight of the newest gradient, falls from 1
            to 0.01 along half a cosine (with dual averaging and p=0 or 1: exponentially). gamma_k falls to 0.02 of
            gamma.
        epsilon: The largest norm that counts as success; infinity: no limit.
        gamma: The relative change of the radius, above 0 and at most 0.5; for p=0 the change is at least 1.
        lr: A factor of alpha_k, with SGD.
        update: "dual_averaging" or "paper".

    The smallest perturbation that makes the loss 2 - x1 - 2 x2 negative is just above (0, 1) in L1:

    >>> x = torch.zeros(1, 2, requires_grad=True)
    >>> optimizer, least = FMNOptim([x], p=1, steps=100), math.inf
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     losses = 2 - x @ torch.tensor([1.0, 2.0])
    ...     losses.sum().backward()
    ...     if losses.item() < 0:
    ...         least = min(least, x.abs().sum().item())
    ...     optimizer.param_groups[0].update(losses=losses.detach(), fooled=losses.detach() < 0)
    ...     optimizer.step()
    >>> 1 < least < 1.01
    True
    """

    def __init__(
        self, params: Params, InnerOpt: InnerOptimizer = SGD, *, p: float, update: str = "dual_averaging", **shared: Any
    ) -> None:
        self.p = checks.choice("p", p, (0, 1, 2, math.inf))
        self.update = checks.choice("update", update, ("dual_averaging", "paper"))
        self.traits = replace(self.traits, ball=p)
        super().__init__(params, InnerOpt, **shared)

    def _init_state(self, param: Tensor, optim_group: dict[str, Any]) -> dict[str, Any]:
        mean = {"g_mean": torch.zeros_like(param)} if self.update == "dual_averaging" else {}
        return {**super()._init_state(param, optim_group), **mean, "smallest": math.inf}

    def _pre_step_transform_(self, param: Tensor, optim_group: dict[str, Any]) -> None:
        if param.grad is None:
            return
        s = self._state(param, optim_group)
        share = s.k / optim_group["steps"]
        self._adapt_epsilon(s, param, optim_group, gamma=optim_group["gamma"] * _cosine(share, FINAL_GAMMA))
        g, alpha = transforms.normalize_(param.grad, 2), _cosine(share, FINAL_ALPHA)
        if self.update == "paper":
            g.mul_(alpha)
        else:
            alpha = FINAL_ALPHA ** min(1.0, share) if self.p in (0, 1) else alpha
            self._aim_(s, param, optim_group, alpha)
        s.k += 1

    def _adapt_epsilon(self, s: State, param: Tensor, group: dict[str, Any], gamma: float) -> None:
        """Updates the radii, given the loss and the gradient at the current parameter."""
        size = (param != 0).flatten(1).sum(1).view_as(s.smallest) if self.p == 0 else transforms.norms(param, self.p)
        if s.k == 0:
            s.epsilon = size
        losses, adversarial = (self._published(name, group, param) for name in ("losses", "fooled"))
        dual_norm = transforms.norms(param.grad, _DUAL[self.p])  # pyright: ignore[reportArgumentType]
        boundary = size + losses.abs() / dual_norm.clamp(min=torch.finfo(dual_norm.dtype).tiny)
        change = (gamma * s.epsilon).clamp_(min=1.0 if self.p == 0 else 0.0)
        s.smallest = torch.where(adversarial, s.smallest.minimum(size), s.smallest)
        first = boundary.maximum(s.epsilon + change) if self.p or s.k == 0 else s.epsilon * L0_GROWTH
        grown = torch.where(s.smallest < math.inf, s.epsilon + change, first)
        shrunk = (s.epsilon - change).minimum(s.smallest).clamp_(min=0)
        s.epsilon = torch.where(adversarial, shrunk, grown).clamp_(max=LARGEST_RADIUS)

    def _aim_(self, s: State, param: Tensor, group: dict[str, Any], alpha: float) -> None:
        """Replaces the gradient by minus the step towards the support point for the mean of all normed gradients."""
        s.g_mean.lerp_(param.grad, alpha)  # pyright: ignore[reportArgumentType]
        s.g_mean *= s.g_mean.abs() > ROUNDING
        box = (group.get(name) for name in ("lower", "upper"))
        goal = _SUPPORTS[self.p](-s.g_mean, s.epsilon, *box)
        had_no_gradient = transforms.norms(s.g_mean, math.inf) == 0
        torch.sub(param, torch.where(had_no_gradient, param, goal), out=param.grad)
        if self.p != 0:  # a point between two sparse points is not sparse
            param.grad.mul_(alpha)  # pyright: ignore[reportOptionalMemberAccess]
