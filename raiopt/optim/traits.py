"""The properties of an optimizer that a search needs to know."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Traits:
    """Properties of an optimizer that determine how a search runs it.

    A class declares them as `traits = Traits(...)`; if they depend on its arguments, it sets `self.traits` in
    `__init__`.

    Args:
        ball: The p of the ball of radius `epsilon` that the parameter is projected onto after a step. None: no ball.
        pixels: An L0 ball counts pixels, with all their channels, instead of entries.
        smallest_norm: It minimizes the norm of adversarial examples, so the search continues after the first success.
        sets_own_steps: It sets its own step sizes, so it must not be combined with a schedule.
        needs_boundary_loss: It needs a loss that is 0 at the decision boundary.
        gradient_free: It uses only the losses, so no gradient needs to be computed.
        further_gradients: The number of gradients per step in addition to the one in `param.grad`.
        replaces_gradient: It overwrites `param.grad` with another gradient, so it must come first in a chain.
    """

    ball: float | None = None
    pixels: bool = False
    smallest_norm: bool = False
    sets_own_steps: bool = False
    needs_boundary_loss: bool = False
    gradient_free: bool = False
    further_gradients: int = 0
    replaces_gradient: bool = False


def traits_of(optimizer: Any) -> Traits:
    """Returns the traits of any torch optimizer, with defaults for those that declare none."""
    return getattr(optimizer, "traits", Traits())


def chained(members: Sequence[Traits], moving: Sequence[Traits]) -> Traits:
    """Returns the traits of a chain.

    Args:
        members: The traits of all members.
        moving: The traits of the members that change the parameter; the last one determines the ball.
    """
    last = moving[-1] if moving else Traits()
    return Traits(
        ball=last.ball,
        pixels=last.pixels,
        smallest_norm=any(traits.smallest_norm for traits in members),
        sets_own_steps=any(traits.sets_own_steps for traits in members),
        needs_boundary_loss=any(traits.needs_boundary_loss for traits in members),
        further_gradients=sum(traits.further_gradients for traits in members),
    )
