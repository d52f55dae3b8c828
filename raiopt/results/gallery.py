"""The picture of a job: clean images, what was added to them, and what the model then saw, side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from raiopt.attacks import Outcome

SHOWN = 8
CELL, GAP, MARGIN, TITLE, CAPTION = 128, 10, 14, 34, 36
INK, QUIET, GOOD, BAD, PAPER = "#1c2430", "#667085", "#0b6e4f", "#b42318", "#ffffff"


@dataclass(frozen=True)
class Exhibit:
    """One sample of the gallery: image and perturbation (C, H, W), and the names of its classes."""

    image: Tensor
    delta: Tensor
    label: str
    prediction: str
    broken: bool


def exhibits_of(outcome: Outcome) -> dict[str, Tensor]:
    """Returns what the gallery may show of a batch: its first broken samples and its first others, as rows."""
    trial = outcome.trial
    if trial is None:
        return {}
    broken = trial.verdict.broken
    chosen = torch.cat([rows.nonzero().flatten()[:SHOWN] for rows in (broken, ~broken)])
    of_batch = outcome.attacked.nonzero().flatten()[chosen]
    rows = {
        "image": outcome.images[of_batch],
        "delta": trial.delta[chosen],
        "label": outcome.labels[of_batch],
        "prediction": trial.verdict.prediction[chosen],
        "broken": broken[chosen],
    }
    return {name: tensor.cpu().contiguous() for name, tensor in rows.items()}


def chosen_exhibits(batches: Iterable[dict[str, Tensor]], classes: Sequence[str] | None) -> list[Exhibit]:
    """Returns the first few broken samples of all batches, and others where too few broke."""

    def name(number: Tensor) -> str:
        return classes[int(number)] if classes else f"class {int(number)}"

    broken: list[Exhibit] = []
    others: list[Exhibit] = []
    for batch in batches:
        for row in zip(*(batch[key] for key in ("image", "delta", "label", "prediction", "broken")), strict=True):
            image, delta, label, prediction, is_broken = row
            shelf = broken if is_broken else others
            if len(shelf) < SHOWN:
                shelf.append(Exhibit(image, delta, name(label), name(prediction), bool(is_broken)))
    return (broken + others)[:SHOWN]


def draw_gallery(exhibits: Sequence[Exhibit], path: Path, title: str) -> None:
    """Writes a PNG with a column an exhibit: clean, perturbation, adversarial.

    The perturbation is drawn around grey, each column stretched by its own largest magnitude, which stands below it.
    """
    columns = max(len(exhibits), 4)
    rows = ("clean", "perturbation", "adversarial")
    left = MARGIN + 96
    size = (left + columns * (CELL + GAP) + MARGIN, TITLE + len(rows) * (CELL + CAPTION) + MARGIN)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    font, small = _font(15), _font(13)
    draw.text((MARGIN, 8), _fit(draw, title, font, size[0] - 2 * MARGIN), INK, font)
    for row, name in enumerate(rows):
        draw.text((MARGIN, TITLE + row * (CELL + CAPTION) + CELL // 2 - 8), name, QUIET, small)
    if not exhibits:
        draw.text((left, TITLE + CELL // 2 - 8), "No sample was attacked.", INK, font)
    for column, shown in enumerate(exhibits):
        x = left + column * (CELL + GAP)
        largest = float(shown.delta.abs().max())
        stretched = 0.5 + shown.delta / (2 * largest) if largest > 0 else torch.full_like(shown.delta, 0.5)
        cells = (
            (shown.image, shown.label, INK),
            (stretched, f"\u00b1{largest:.3g}", QUIET),
            (shown.image + shown.delta, shown.prediction, BAD if shown.broken else GOOD),
        )
        for row, (pixels, caption, colour) in enumerate(cells):
            y = TITLE + row * (CELL + CAPTION)
            cell = _picture(pixels)
            page.paste(cell, (x + (CELL - cell.width) // 2, y + (CELL - cell.height) // 2))
            draw.rectangle((x - 1, y - 1, x + CELL, y + CELL), outline="#d0d5dd")
            draw.text((x, y + CELL + 5), _fit(draw, caption, small, CELL), colour, small)
    page.save(path, compress_level=4)  # half the time of the default for a file that is 6 % larger


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _picture(pixels: Tensor) -> Image.Image:
    """Returns an image (C, H, W) in [0, 1] as a picture that fills a cell; small ones keep their pixels sharp."""
    array = (pixels.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3])
    scale = CELL / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Returns the text, cut at its end with an ellipsis if it is wider than `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text + "..."
