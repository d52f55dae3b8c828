"""Converts PIL images to pixels in [0, 1]: resize and crop belong to the data, mean and std to the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raiopt import checks


@dataclass(frozen=True)
class Geometry:
    """A resize of the shorter side, then a centre crop.

    Args:
        resize: The length of the shorter side in pixels.
        crop: The length of both sides in pixels.
        interpolation: A value of torchvision's `InterpolationMode`: "bilinear", "bicubic", "nearest", ...
        antialias: Recorded from the preset; PIL images are always resized with antialiasing.

    Examples:
        >>> image = Image.new("RGB", (60, 40), "white")
        >>> Geometry(resize=32, crop=24).apply(image).shape
        torch.Size([3, 24, 24])
    """

    resize: int
    crop: int
    interpolation: str = "bilinear"
    antialias: bool = True

    def apply(self, image: Image.Image) -> Tensor:
        """Returns float32 pixels (3, crop, crop) in [0, 1], like torchvision's presets, but not normalised."""
        from raiopt.zoo import vision  # imported on first use: the built-in digits need no torchvision

        resized = vision.functional.resize(
            as_rgb(image),  # pyright: ignore[reportArgumentType]  # typed for tensors, documented for PIL too
            [self.resize],
            interpolation=vision.InterpolationMode(self.interpolation),
            antialias=self.antialias,
        )
        return pixels(vision.functional.center_crop(resized, [self.crop]))  # pyright: ignore[reportArgumentType]


def square(size: int) -> Geometry:
    """Returns the geometry that resizes the shorter side to `size` pixels and crops the image to a square."""
    checks.number("data.size", size, low=1, integer=True)
    return Geometry(resize=size, crop=size)


def as_rgb(image: Image.Image) -> Image.Image:
    """Returns the image as RGB; 16-bit grey is scaled to 8 bits (PIL's own conversion clips it to white)."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(max=255).astype(np.uint8))
    return image.convert("RGB")


def pixels(image: Image.Image) -> Tensor:
    """Returns a PIL image as float32 pixels (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(as_rgb(image))).permute(2, 0, 1).contiguous().float().div_(255)
