"""Adversarial patches, which replace a rectangle of each image."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from raiopt import checks
from raiopt.perturbations.models import started, template


class PatchPerturbation(nn.Module):
    """Replaces a rectangle of each image (N, C, H, W) by the parameter `patch`.

    `patch` has the shape (1, C, h, w) if it is shared, else (N, C, h, w). `data_or_shape`, `init_fn`, `device` and
    `dtype` are those of `AdditivePerturbation`. Source: Brown et al., 2017 (https://arxiv.org/abs/1712.09665), without
    the paper's random scaling and rotation.

    Args:
        size: The height and width of the patch in pixels; an int is both.
        places: The (row, column) of the patch's upper left corner, one for all images or an integer tensor (N, 2); see
            `random_places`. None: the centre. The buffer `places` has the shape (N, 2).
        shared: One patch for all images, instead of one for each.

    Raises:
        TypeError: If `size` or `places` are not integers.
        ValueError: If the data are not images, or the patch does not lie within them.

    >>> perturbation = PatchPerturbation((1, 1, 3, 4), torch.nn.init.ones_, size=2, places=(1, 0))
    >>> perturbation(torch.zeros(1, 1, 3, 4)).detach()[0, 0]
    tensor([[0., 0., 0., 0.],
            [1., 1., 0., 0.],
            [1., 1., 0., 0.]])
    """

    places: Tensor

    def __init__(
        self,
        data_or_shape: Tensor | Sequence[int],
        init_fn: Callable[..., Any] | None = None,
        *,
        size: int | Sequence[int],
        places: Tensor | Sequence[int] | None = None,
        shared: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **init_fn_kwargs: Any,
    ) -> None:
        super().__init__()
        like = template(data_or_shape, device, dtype)
        places_per_side = _places_per_side(like.shape, size)
        count, channels, height, width = like.shape
        side = height - places_per_side[0] + 1, width - places_per_side[1] + 1
        self.shared = shared
        self.patch = started(like.new_zeros(1 if shared else count, channels, *side), init_fn, init_fn_kwargs)
        if places is None:
            places = [(count - 1) // 2 for count in places_per_side]
        self.register_buffer("places", _places(places, count, places_per_side).to(like.device))

    def forward(self, data: Tensor) -> Tensor:
        """Returns the images with the patch applied; `data` must have as many images as there are places."""
        if len(data) != len(self.places):
            raise ValueError(f"data has {len(data)} images, but there are places for {len(self.places)}.")
        count, channels, height, width = len(data), *self.patch.shape[1:]
        top, left = self.places.view(count, 2, 1, 1, 1).unbind(1)
        images, planes, rows, columns = (torch.arange(n, device=data.device) for n in (count, channels, height, width))
        index = (images[:, None, None, None], planes[:, None, None], top + rows[:, None], left + columns)
        return data.index_put(index, self.patch.to(data.dtype).expand(count, -1, -1, -1))

    def is_shared(self, data: Tensor) -> bool:
        """Returns whether the samples of `data` share the patch."""
        return self.shared

    def select(self, index: Tensor) -> None:
        """Keeps the places with these indices."""
        self.places = self.places.index_select(0, index)

    def bounds(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Returns 0 and 1, shaped like `patch`."""
        return torch.zeros_like(self.patch), torch.ones_like(self.patch)


def random_places(shape: Sequence[int], size: int | Sequence[int], generators: Sequence[Generator]) -> Tensor:
    """Returns a place (row, column) for each image, of shape (N, 2): uniform among those where the patch fits.

    Args:
        shape: The shape of the images, (N, C, H, W).
        size: See `PatchPerturbation`.
        generators: One per image, so that its place does not depend on others; see `raiopt.sampling.keyed_generator`.

    >>> random_places((2, 3, 8, 8), 8, [torch.Generator()] * 2)
    tensor([[0, 0],
            [0, 0]])
    """
    places_per_side = _places_per_side(shape, size)
    if len(generators) != shape[0]:
        raise ValueError(f"generators must be one for each of the {shape[0]} images, got {len(generators)}.")
    draws = [
        [torch.randint(most, (), generator=g, device=g.device).item() for most in places_per_side] for g in generators
    ]
    return torch.tensor(draws, dtype=torch.int64).view(-1, 2)


def _places_per_side(shape: Sequence[int], size: int | Sequence[int]) -> tuple[int, int]:
    """Returns the numbers of rows and of columns of an image on which the patch's upper left corner can lie."""
    if len(shape) != 4:
        raise ValueError(f"A patch needs images of shape (N, C, H, W), got {tuple(shape)}.")
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2:
        raise ValueError(f"size={size!r} must be an integer or (height, width).")
    height, width = (
        checks.number("size", side, low=1, high=most, integer=True, remedy=f"The images are {shape[2]} by {shape[3]}.")
        for side, most in zip(pair, shape[2:], strict=True)
    )
    return shape[2] - height + 1, shape[3] - width + 1


def _places(places: Tensor | Sequence[int], count: int, places_per_side: tuple[int, int]) -> Tensor:
    found = torch.as_tensor(places)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"places must be integers, got {found.dtype}.")
    if found.shape not in ((2,), (count, 2)):
        raise ValueError(f"places of shape {tuple(found.shape)} must be (row, column), or have the shape ({count}, 2).")
    wrong = ((found < 0) | (found >= torch.tensor(places_per_side, device=found.device))).reshape(-1, 2).any(1)
    if wrong.any():
        first = found.reshape(-1, 2)[wrong][0].tolist()
        raise ValueError(
            f"places has the corner {tuple(first)}, but the patch lies within the image only from (0, 0) to "
            f"{(places_per_side[0] - 1, places_per_side[1] - 1)}."
        )
    return found.long().expand(count, 2).clone()
