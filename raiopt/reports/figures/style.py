"""The common style of all figures: sizes, colours, axes, and text formatting."""

import textwrap
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN, PAGE = 3.3, 6.8
"""Widths in inches of a column and of a page of two columns."""
TEXT, SMALL = 8, 7
"""Sizes of text in points."""
LINE = 0.15
"""Height of a line of small text in inches."""
STYLES: list[tuple[str, str, Any]] = [
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", (0, (4, 1.5))),
    ("#009E73", "^", (0, (1, 1))),
    ("#CC79A7", "D", (0, (6, 1.5, 1, 1.5))),
    ("#E69F00", "v", (0, (2, 1))),
    ("#56B4E9", "P", (0, (4, 1, 1, 1, 1, 1))),
    ("#000000", "x", (0, (3, 2))),
]
"""Colours that can be distinguished without seeing red or green (Okabe and Ito 2008), markers, dashes."""
INK, QUIET = "#000000", "#777777"


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of that size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def new_axes(figure: Figure, place: tuple[int, int, int] = (1, 1, 1), grid: Literal["both", "x"] = "both") -> Axes:
    """Returns axes with a light grid and no frame."""
    axes = figure.add_subplot(*place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=TEXT, width=0.6, length=3)
    axes.grid(axis=grid, color="#e4e4e4", lw=0.5)
    axes.set_axisbelow(True)
    return axes


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Sets the labels of the axes."""
    axes.set_xlabel(x, fontsize=TEXT)
    axes.set_ylabel(y, fontsize=TEXT)


def titled(figure: Figure, title: str) -> Figure:
    """Adds a small title of at most three lines, if it is not empty."""
    width, height = figure.get_size_inches()
    room = int(width * 15)
    captions = textwrap.fill(fitted(title, 3 * room), room)
    if title:
        figure.suptitle(captions, x=0.02, ha="left", fontsize=SMALL)
        figure.set_size_inches(width, height + LINE * (1 + captions.count("\n")))
    return figure


def with_legend(figure: Figure, handles: dict[str, Any], note: str = "") -> Figure:
    """Adds a legend below the axes, with as many columns as fit, and a note below it."""
    width, height = figure.get_size_inches()
    room = int(width * 16)
    captions = [textwrap.fill(fitted(label, 3 * room), room - 6) for label in handles]
    longest = max(map(len, captions), default=room)
    one_row = sum(len(label) + 7 for label in captions) <= room
    columns = len(captions) if one_row else max(1, min(len(captions), room // (longest + 7)))
    note = textwrap.fill(note, room)
    rows = -(-sum(1 + label.count("\n") for label in captions) // columns) + (1 + note.count("\n")) * bool(note)
    figure.set_size_inches(width, height + LINE * rows)  # so that the axes keep their size
    figure.legend(
        list(handles.values()),
        captions,
        loc="outside lower center",
        ncols=columns,
        fontsize=SMALL,
        frameon=False,
        handlelength=3,
        title=note or None,
        title_fontsize=SMALL,
    )
    return figure


def in_order(values: list[Any]) -> list[Any]:
    """Returns numbers in ascending order, with null first; other values in their original order."""
    numbers = [v for v in values if v is not None]
    if all(isinstance(v, int | float) for v in numbers):
        return [None] * (None in values) + sorted(numbers)
    return values


def shown(value: Any) -> str:
    """Returns a swept value as typed on the command line."""
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def short(option: str) -> str:
    """Returns the name of an option without the prefix "optim."."""
    return option.removeprefix("optim.")


def norm_words(name: str) -> str:
    """Returns linf, l2, l1 or l0 as mathematical notation."""
    return r"$L_\infty$" if name == "linf" else f"$L_{{{name[1:]}}}$"


def fitted(text: str, room: int) -> str:
    """Returns the text, with its middle replaced by dots if it is longer than `room`."""
    return plain(text if len(text) <= room else f"{text[: room // 2 - 1]}...{text[2 - room // 2 :]}")


def plain(text: str) -> str:
    """Returns the text escaped so that matplotlib shows it literally, not as mathematics."""
    return " ".join(text.split()).replace("$", r"\$")
