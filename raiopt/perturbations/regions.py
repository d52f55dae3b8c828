"""Perturbations of a part of each image (a rectangle or a patch), constructed from plain option values."""

from collections.abc import Sequence
from typing import Any

from torch import Generator, Tensor

from raiopt import checks
from raiopt.perturbations.models import AdditivePerturbation
from raiopt.perturbations.patches import PatchPerturbation, random_places


def masked(images: Tensor, *, region: Sequence[int]) -> AdditivePerturbation:
    """Returns an additive perturbation, one per sample, restricted to a rectangle.

    Args:
        region: `[top,left,height,width]` in pixels.
    """
    top, left, height, width = _integers("region", region, "[top,left,height,width]", lows=(0, 0, 1, 1))
    rows, columns = images.shape[-2:]
    if top + height > rows or left + width > columns:
        raise ValueError(f"region={list(region)} must lie within the images, which are {rows} by {columns} pixels.")
    mask = images.new_zeros(rows, columns)
    mask[top : top + height, left : left + width] = 1
    return AdditivePerturbation(images, mask=mask)


def patch(
    images: Tensor,
    generators: Sequence[Generator],
    *,
    size: int | Sequence[int] = 16,
    place: str | Sequence[int] = "random",
    shared: bool = True,
) -> PatchPerturbation:
    """Returns a patch that replaces the pixels under it, one for the batch (shared) or one per sample.

    Args:
        size: Height and width in pixels, `[height,width]`; an integer is both.
        place: `random` for each sample, `center`, or `[row,column]` of the upper left corner.
        shared: One patch for all images of a batch, instead of one for each.
    """
    sides = size if isinstance(size, int) else _integers("size", size, "an integer or [height,width]", lows=(1, 1))
    if isinstance(place, str):
        checks.choice("place", place, ["random", "center", "[row,column]"])
        places = random_places(images.shape, sides, generators) if place == "random" else None
    else:
        places = _integers("place", place, "random, center or [row,column]", lows=(0, 0))
    return PatchPerturbation(images, size=sides, places=places, shared=shared)


def _integers(name: str, value: Any, form: str, *, lows: Sequence[int]) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != len(lows):
        raise ValueError(f"{name}={value} must be {form}.")
    for entry, low in zip(value, lows, strict=True):
        checks.number(name, entry, low=low, integer=True)
    return tuple(value)
