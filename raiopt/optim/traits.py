"""What whoever runs a search must know of an optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Traits:
    """Properties of an optimizer that decide how a search runs it.

    A class declares them as `traits = Traits(...)`; one whose arguments decide sets `self.traits` in its `__init__`.

    Args:
        ball: The p of the ball of radius `epsilon` that the parameter is projected onto after a step. None: no ball.
        pixels: An L0 ball counts pixels, with all their channels, instead of entries.
        smallest_norm: It minimises the norm of adversarial examples, and so goes on after the first success.
        sets_own_steps: It decides on the size of its steps, so that no schedule should.
        needs_boundary_loss: It needs a loss that is 0 at the decision boundary.
        gradient_free: It moves by the losses only: no gradient needs to be computed.
        further_gradients: How many gradients a step computes in addition to the one in `param.grad`.
        replaces_gradient: It overwrites `param.grad` by another gradient, so it must stand first in a chain.
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
    """Returns the traits of any torch optimizer; one that declares none has the defaults."""
    return getattr(optimizer, "traits", Traits())


def chained(members: Sequence[Traits], moving: Sequence[Traits]) -> Traits:
    """Returns the traits of a chain.

    Args:
        members: The traits of all members.
        moving: Those of the members that change the parameter: the last one decides on the ball.
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
