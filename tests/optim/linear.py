"""A linear model whose strongest perturbation has a closed form, and the optimizers that must find it.

The loss of sample i is <w_i, x_i + δ_i>. Its largest increase is computed here in NumPy and float64, by other means
than the package uses; `scripts/compare_linear` prints how much of it each case reaches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam

from raiopt import AdditivePerturbation, gradient_ascent
from raiopt.optim import (
    AdaptiveStepOptim,
    ChainedParamTransformingOptimizer,
    L0ProjectedOptim,
    L1FrankWolfe,
    L1ProjectedOptim,
    L1qFrankWolfe,
    L2FrankWolfe,
    L2ProjectedOptim,
    LinfFrankWolfe,
    LinfProjectedOptim,
    ParamTransformingOptimizer,
    ProjectedParameterOptimizer,
    SteepestGradientOptim,
    SteepestProjectedOptim,
)
from tests.reference import Array, array

SHAPE = (8, 3, 8, 8)
EPSILON = {0: 10, 1: 10.0, 2: 2.0, math.inf: 0.1}


def problem() -> tuple[Tensor, Tensor]:
    """Images in [0, 1], of which a sixth of the entries is black or white, and the weights of each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(SHAPE).uniform_(-0.1, 1.1, generator=generator).clamp_(0, 1)
    return images, torch.randn(SHAPE, generator=generator)


def largest_increase(
    images: Tensor, weights: Tensor, p: float, epsilon: float, *, box: bool, pixels: bool = False
) -> Array:
    """The largest <w, δ> of each sample over the Lp ball, of shape (N,).

    Every entry of δ has the sign of its weight, so only their sizes, at most `room`, are left to choose.
    """
    x, w = (array(a).reshape(len(images), -1) for a in (images, weights))
    size, room = np.abs(w), (np.where(w > 0, 1 - x, x) if box else np.full_like(x, math.inf))
    if p == math.inf:
        return (size * np.minimum(room, epsilon)).sum(1)
    if p == 2:
        return _along_the_sphere(size, room, epsilon)
    if p == 1:  # a fractional knapsack: entries with the largest gain per unit are filled first
        order = np.argsort(-size, axis=1)
        size, room = (np.take_along_axis(a, order, axis=1) for a in (size, np.minimum(room, epsilon)))
        before = np.cumsum(room, axis=1) - room
        return (size * np.clip(epsilon - before, 0, room)).sum(1)
    gains = size * room
    if pixels:
        gains = gains.reshape(len(x), images.shape[1], -1).sum(1)
    return np.sort(gains, axis=1)[:, -int(epsilon) :].sum(1)


def _along_the_sphere(size: Array, room: Array, epsilon: float) -> Array:
    """The largest increase over the L2 ball, at min(t size, room) for the largest t that the ball allows."""
    low, high = np.zeros(len(size)), np.full(len(size), 1e6)
    for _ in range(200):
        middle = (low + high) / 2
        inside = np.linalg.norm(np.minimum(middle[:, None] * size, room), axis=1) <= epsilon
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return (size * np.minimum(low[:, None] * size, room)).sum(1)


@dataclass(frozen=True)
class Case:
    """An optimizer with settings that a user could choose, and the set that it has to search."""

    Optim: Callable[..., ParamTransformingOptimizer]
    p: float
    box: bool
    steps: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return "Projected ○ Steepest" if self.Optim is steepest_projected else self.Optim.__name__

    @property
    def words(self) -> str:
        """The settings as a user would type them."""
        shown = {name: getattr(value, "__name__", value) for name, value in self.settings.items()}
        return ", ".join(f"{k}={v}" for k, v in {"epsilon": EPSILON[self.p], **shown, "steps": self.steps}.items())

    def __str__(self) -> str:
        return f"{self.name}, {'box' if self.box else 'no box'}, {self.words}"

    def shares(self) -> Array:
        """How much of the largest increase of its loss each sample has after the search, of shape (N,)."""
        images, weights = problem()
        perturbation = AdditivePerturbation(images)
        group: dict[str, Any] = {"params": perturbation.parameters()}
        if self.box:
            group.update(zip(("lower", "upper"), perturbation.bounds(images) or (), strict=True))
        draws = {"generator": torch.Generator().manual_seed(0)} if "dq" in self.settings else {}
        adversarial, _ = gradient_ascent(
            model=lambda x: (weights * x).flatten(1).sum(1),
            data=images,
            target=torch.zeros(len(images)),
            criterion=lambda output, _: output,
            perturbation_model=perturbation,
            optimizer=self.Optim([group], epsilon=EPSILON[self.p], **self.settings, **draws),
            steps=self.steps,
            use_best=True,
        )
        increase = (array(weights) * (array(adversarial) - array(images))).reshape(len(images), -1).sum(1)
        pixels = self.settings.get("pixels", False)
        return increase / largest_increase(images, weights, self.p, EPSILON[self.p], box=self.box, pixels=pixels)


def steepest_projected(params: Any, *, p: float, epsilon: float, **shared: Any) -> ParamTransformingOptimizer:
    """The chain of the steepest step and the projection, both in the p-norm."""
    members = partial(SteepestGradientOptim, p=p), partial(ProjectedParameterOptimizer, p=p, epsilon=epsilon)
    return ChainedParamTransformingOptimizer(*members, params=params, **shared)


def _both(Optim: Callable[..., ParamTransformingOptimizer], p: float, steps: int, /, **settings: Any) -> list[Case]:
    """The case without and with the box."""
    return [Case(Optim, p, box, steps, settings) for box in (False, True)]


# Without a box the best point of the L1 ball is one entry (q=0.995 of 192 keeps one); with it, about a tenth of the
# entries fill the ball (q=0.9), the larger ones before the others (dq=0.1). Steps of the L0 ball have to end at the
# walls, so lr is large. The steepest L1 step moves a single entry and L1qFrankWolfe ignores the box: neither fills one.
CASES = [
    *_both(LinfProjectedOptim, math.inf, 10, lr=0.025),
    *_both(ProjectedParameterOptimizer, math.inf, 20, p=math.inf, InnerOpt=SGD, lr=1.0),
    *_both(ProjectedParameterOptimizer, math.inf, 10, p=math.inf, InnerOpt=Adam, lr=0.025),
    *_both(steepest_projected, math.inf, 10, p=math.inf, lr=0.025),
    *_both(LinfFrankWolfe, math.inf, 5),
    *_both(L2ProjectedOptim, 2, 20, lr=0.5),
    *_both(ProjectedParameterOptimizer, 2, 20, p=2, InnerOpt=SGD, lr=0.05),
    *_both(steepest_projected, 2, 20, p=2, lr=0.5),
    *_both(L2FrankWolfe, 2, 5),
    *(case for p in (math.inf, 2) for case in _both(AdaptiveStepOptim, p, 50, p=p, steps=50)),
    *(case for p in (math.inf, 2) for case in _both(SteepestProjectedOptim, p, 50, p=p, lr=0.25)),
    Case(AdaptiveStepOptim, 1, False, 50, {"p": 1, "q": 0.995, "steps": 50}),
    Case(SteepestProjectedOptim, 1, False, 50, {"p": 1, "q": 0.995, "lr": 0.25}),
    Case(L1ProjectedOptim, 1, False, 10, {"q": 0.995, "lr": 2.5}),
    Case(L1ProjectedOptim, 1, True, 100, {"q": 0.9, "dq": 0.1, "lr": 2.5}),
    *_both(ProjectedParameterOptimizer, 1, 50, p=1, InnerOpt=SGD, lr=10.0),
    Case(steepest_projected, 1, False, 10, {"p": 1, "lr": 2.5}),
    *_both(L1FrankWolfe, 1, 5),
    Case(L1qFrankWolfe, 1, False, 5, {"q": 0.995}),
    *(Case(L0ProjectedOptim, 0, True, 10, {"pixels": pixels, "lr": 100.0}) for pixels in (False, True)),
    *(
        Case(ProjectedParameterOptimizer, 0, True, 10, {"p": 0, "pixels": pixels, "InnerOpt": SGD, "lr": 10.0})
        for pixels in (False, True)
    ),
]
