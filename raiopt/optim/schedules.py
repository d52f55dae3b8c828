"""Step size schedules: functions of the optimizer and the number of steps that return a torch scheduler or None."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from raiopt import checks
from raiopt.optim.traits import traits_of


def auto(optimizer: Optimizer, steps: int) -> LambdaLR | None:
    """Cosine; constant for an optimizer that sets its own step size, such as apgd."""
    return (constant if traits_of(optimizer).sets_own_steps else cosine)(optimizer, steps)


def constant(optimizer: Optimizer, steps: int) -> None:
    """The step size stays the same."""


def linear(optimizer: Optimizer, steps: int, *, final: float = 0.0) -> LambdaLR:
    """The step size falls linearly to `final` times its first value.

    Args:
        final: The last step size as a share of the first one.
    """
    checks.number("final", final, low=0, high=1)
    return _multiplied(optimizer, lambda step: 1 + (final - 1) * min(1.0, step / max(1, steps)))


def cosine(optimizer: Optimizer, steps: int, *, final: float = 0.0) -> LambdaLR:
    """The step size falls along half a cosine to `final` times its first value."""
    checks.number("final", final, low=0, high=1)

    def share(step: int) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))) / 2

    return _multiplied(optimizer, share)


def exponential(optimizer: Optimizer, steps: int, *, final: float = 0.01) -> LambdaLR:
    """The step size falls by the same factor in each step, to `final` times its first value."""
    checks.number("final", final, low=1e-12, high=1)
    return _multiplied(optimizer, lambda step: final ** min(1.0, step / max(1, steps)))


def _multiplied(optimizer: Optimizer, share: Callable[[int], float]) -> LambdaLR:
    """Returns a scheduler that multiplies the initial learning rate by `share(step)`."""
    if traits_of(optimizer).sets_own_steps:
        raise ValueError(f"{type(optimizer).__name__} sets its own step size: take schedule=auto.")
    return LambdaLR(optimizer, share)
