"""Spatial perturbations: rotation, shift and zoom of images, which move pixels instead of changing their values."""

from collections.abc import Callable, Sequence
from math import radians
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raiopt import checks
from raiopt.perturbations.models import started, template


class AffinePerturbation(nn.Module):
    """Rotates, shifts and zooms each image (N, C, H, W) about its centre, according to the parameter `pose` (N, 4).

    The columns of `pose` are rotation (anticlockwise), shift to the right, shift down and zoom (positive enlarges),
    each in [-1, 1] relative to its largest value; 0 is the identity, up to rounding. Pixels are interpolated
    bilinearly, and are 0 outside the image. `data_or_shape`, `init_fn`, `device` and `dtype` are those of
    `AdditivePerturbation`. Source: Engstrom et al., 2019 (https://arxiv.org/abs/1712.02779), there without zoom.

    Args:
        rotation: The largest angle, in degrees.
        translation: The largest shift, as a share of the image's width and height.
        scale: The largest zoom, below 1: the image's sides are multiplied by 1 - scale to 1 + scale.

    Raises:
        ValueError: If the data are not images, or a largest value is negative or too large.

    >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> quarter_turn = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    >>> perturbation = AffinePerturbation(image, lambda pose: pose.copy_(quarter_turn), rotation=90)
    >>> perturbation(image).detach().round(decimals=4)
    tensor([[[[2., 4.],
              [1., 3.]]]])
    """

    def __init__(
        self,
        data_or_shape: Tensor | Sequence[int],
        init_fn: Callable[..., Any] | None = None,
        *,
        rotation: float = 30.0,
        translation: float = 0.1,
        scale: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **init_fn_kwargs: Any,
    ) -> None:
        super().__init__()
        like = template(data_or_shape, device, dtype)
        if like.ndim != 4:
            raise ValueError(f"An affine perturbation needs images of shape (N, C, H, W), got {tuple(like.shape)}.")
        for name, value, high in (("rotation", rotation, 180), ("translation", translation, 1), ("scale", scale, 1)):
            checks.number(name, value, low=0, high=high)
        if scale >= 1:
            raise ValueError(f"scale={scale} must be below 1: an image cannot shrink to nothing.")
        self.rotation, self.translation, self.scale = rotation, translation, scale
        self.pose = started(like.new_zeros(len(like), 4), init_fn, init_fn_kwargs)

    def forward(self, data: Tensor) -> Tensor:
        """Returns the transformed images, in the shape of `data`, which must have as many images as `pose` has rows."""
        work = torch.promote_types(data.dtype, torch.float32)  # half precision places pixels too coarsely
        grid = F.affine_grid(self._sources(data.shape).to(work), list(data.shape), align_corners=False)
        moved = F.grid_sample(data.to(work), grid, align_corners=False)
        known = data.detach()
        low, high = (extreme(known, dim=(1, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax))
        # Because of rounding, the interpolation weights can sum to more than 1.
        return moved.to(data.dtype).clamp(low.clamp(max=0), high.clamp(min=0))

    def _sources(self, shape: torch.Size) -> Tensor:
        """Returns the matrices (N, 2, 3) that map a position in the transformed image to its source in the original.

        Positions are (x, y), from -1 to 1 within the image, so a rotation depends on the ratio of width to height.
        """
        turn, right, down, zoom = self.pose.to(torch.promote_types(self.pose.dtype, torch.float32)).unbind(1)
        wider = shape[3] / shape[2]
        shrink = 1 / (1 + self.scale * zoom)
        cos, sin = shrink * (radians(self.rotation) * turn).cos(), shrink * (radians(self.rotation) * turn).sin()
        linear = torch.stack([cos, -sin / wider, sin * wider, cos], dim=1).view(-1, 2, 2)
        shift = 2 * self.translation * torch.stack([right, down], dim=1)
        return torch.cat([linear, -linear @ shift[:, :, None]], dim=2)

    def is_shared(self, data: Tensor) -> bool:
        """Returns False: each sample has its own row of `pose`."""
        return False

    def select(self, index: Tensor) -> None:
        """Does nothing, because only the parameter has a row for each sample."""

    def bounds(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Returns -1 and 1, shaped like `pose`."""
        return -torch.ones_like(self.pose), torch.ones_like(self.pose)
