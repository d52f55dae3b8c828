"""The example samples of a run as pictures embedded in a page."""

import base64
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from raiopt.results.pictures import around_grey, picture

MAX_SIDE, MAX_SHARP_SIDE = 160, 96
"""Pixels of the longer side: larger pictures are scaled down; up to the second size, they are stored losslessly."""


def exhibits(kept: dict[str, np.ndarray], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Returns the samples with their pictures, in the order in which they were kept.

    Args:
        kept: `Run.exhibits()`.
        names: The names of the classes; None: show their numbers.
    """
    return list(_exhibits(kept, names)) if kept else []


def _exhibits(kept: dict[str, np.ndarray], names: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    def named(number: int) -> str:
        return names[number] if names is not None and 0 <= number < len(names) else str(number)

    for row in range(len(kept["ids"])):
        clean = kept["image"][row].astype(np.float32) / 255
        delta = np.nan_to_num(kept["delta"][row].astype(np.float32))
        stretched, largest = around_grey(delta)
        yield {
            "id": int(kept["ids"][row]),
            "kind": int(kept["kind"][row]),
            "broken": bool(kept["broken"][row]),
            "largest": largest,
            **{part: named(int(kept[part][row])) for part in ("label", "clean_prediction", "prediction")},
            **{part: float(kept[part][row]) for part in ("clean_confidence", "adversarial_confidence")},
            "clean": data_uri(clean),
            "delta": data_uri(stretched),
            "adversarial": data_uri(clean + delta),
            "sharp": max(clean.shape[1:]) <= MAX_SHARP_SIDE,
        }


def data_uri(pixels: np.ndarray) -> str:
    """Returns an image (C, H, W), clipped to [0, 1], as a WebP picture in a data URI.

    >>> data_uri(np.zeros((3, 2, 2)))[:23]
    'data:image/webp;base64,'
    """
    drawn = picture(pixels)
    sharp = max(drawn.size) <= MAX_SHARP_SIDE
    drawn.thumbnail((MAX_SIDE, MAX_SIDE))
    file = BytesIO()
    drawn.save(file, "WEBP", lossless=sharp, quality=50 if sharp else 80, method=2)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
