"""Converts image arrays to pictures for pages and files. Nothing here needs torch."""

from typing import Any

import numpy as np
from PIL import Image

KINDS = ("Easiest successes", "Hardest successes", "Remained robust")
"""The kinds of examples that a run keeps."""


def picture(pixels: Any) -> Image.Image:
    """Returns an image (C, H, W) as an RGB picture; if C is not 1 or 3, only the first, or the first three, channels.

    Args:
        pixels: An array with values in [0, 1], to which it is clipped, or of type uint8.

    >>> picture(np.array([[[0.0, 0.5, 2.0]]])).getpixel((1, 0))
    (128, 128, 128)
    """
    array = np.asarray(pixels)
    if array.dtype != np.uint8:
        array = np.floor(np.nan_to_num(array.astype(np.float64)).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    channels = array[:3] if len(array) >= 3 else array[:1].repeat(3, axis=0)
    return Image.fromarray(np.ascontiguousarray(channels.transpose(1, 2, 0)))


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """Returns a picture scaled to fit into `width` by `height` pixels; small ones are enlarged with sharp pixels."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def around_grey(delta: Any) -> tuple[np.ndarray, float]:
    """Returns a perturbation as pixels in [0, 1], where 0.5 (grey) means no change, and its largest magnitude.

    >>> pixels, largest = around_grey(np.array([-0.1, 0.0, 0.05]))
    >>> pixels.tolist(), largest
    ([0.0, 0.5, 0.75], 0.1)
    """
    delta = np.asarray(delta, dtype=np.float64)
    largest = float(np.abs(delta).max(initial=0))
    return (0.5 + delta / (2 * largest) if largest > 0 else np.full_like(delta, 0.5)), largest
