"""The picture of a job: clean images, perturbations and adversarial images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from raiopt.results.files import replace_file
from raiopt.results.pictures import around_grey, fitted, picture

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


def exhibits_of(rows: dict[str, Tensor], classes: Sequence[str] | None) -> list[Exhibit]:
    """Returns the first few of the samples that a run kept as examples."""

    def name(number: Tensor) -> str:
        return classes[int(number)] if classes else f"class {int(number)}"

    keys = ("image", "delta", "label", "prediction", "broken")
    return [
        Exhibit(image, delta, name(label), name(prediction), bool(broken))
        for image, delta, label, prediction, broken in zip(*(rows.get(key, ())[:SHOWN] for key in keys), strict=True)
    ]


def draw_gallery(exhibits: Sequence[Exhibit], path: Path, title: str) -> None:
    """Writes a PNG with one column per exhibit: clean image, perturbation, adversarial image.

    The perturbation is drawn around grey, scaled by its largest magnitude, which is written below it.
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
        image, delta = (tensor.float().numpy() for tensor in (shown.image, shown.delta))
        stretched, largest = around_grey(delta)
        cells = (
            (image, shown.label, INK),
            (stretched, f"\u00b1{largest:.3g}", QUIET),
            (image + delta, shown.prediction, BAD if shown.broken else GOOD),
        )
        for row, (pixels, caption, colour) in enumerate(cells):
            y = TITLE + row * (CELL + CAPTION)
            cell = fitted(picture(pixels), CELL, CELL)
            page.paste(cell, (x + (CELL - cell.width) // 2, y + (CELL - cell.height) // 2))
            draw.rectangle((x - 1, y - 1, x + CELL, y + CELL), outline="#d0d5dd")
            draw.text((x, y + CELL + 5), _fit(draw, caption, small, CELL), colour, small)
    # Compression level 4 takes half the time of the default, for a file that is 6 % larger.
    replace_file(path, lambda temporary: page.save(temporary, "PNG", compress_level=4))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Returns the text, truncated with an ellipsis if it is wider than `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "...", font) > width:
        text = text[:-1]
    return text + "..."
