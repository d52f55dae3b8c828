"""Heat maps: a metric over two options, and confusion matrices."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raiopt import checks
from raiopt.reports.figures.style import (
    COLUMN,
    INK,
    PAGE,
    SMALL,
    STYLES,
    TEXT,
    fitted,
    in_order,
    name_axes,
    new_figure,
    plain,
    short,
    shown,
    titled,
)
from raiopt.results.tables import METRICS, options_of

CELLS = 15
"""The largest number of rows or columns with numbers in their cells, and of names on an axis."""
BRIGHT = 0.46
"""From this value on, black text is more readable than white on the colours of cividis."""


def heatmap(
    frame: pl.DataFrame, x: str, y: str, value: str = "robust_accuracy", title: str = "", width: float | None = None
) -> Figure:
    """Draws a metric over two options; each cell shows the best value over all other options, the best cell is framed.

    The best value is the smallest, except for target_reached, where it is the largest. Jobs without results are left
    out.

    Args:
        frame: The table from `load_sweep`, filtered if necessary: compare only jobs with the same ball, model and data.
        x: Option along the horizontal axis, a column of the table.
        y: Option along the vertical axis.
        value: The metric.

    Raises:
        ValueError: If there is no such column, x and y are equal, or no job has results.

    >>> robust = {"ball": "Linf 0.1", "robust_accuracy": [0.5, 0.25, 0.75]}
    >>> frame = pl.DataFrame({"status": "finished", "optim.lr": [1, 2, 1], "optim": ["a", "a", "b"], **robust})
    >>> [text.get_text() for text in heatmap(frame, "optim.lr", "optim").axes[0].texts]
    ['50.0', '25.0', '75.0']
    """
    options = options_of(frame)
    checks.choice("x", x, options)
    checks.choice("y", y, [option for option in options if option != x])
    checks.choice("value", value, METRICS)
    largest, share = value == "target_reached", value.endswith(("_accuracy", "_reached"))
    best = pl.col(value).max() if largest else pl.col(value).min()
    cells = frame.drop_nulls(value).group_by(x, y, maintain_order=True).agg(best * (100 if share else 1))
    if cells.is_empty():
        raise ValueError(f"frame has no job with {value}: load_sweep shows why in the column error.")
    columns, rows = (in_order(cells[name].unique(maintain_order=True).to_list()) for name in (x, y))
    table = np.full((len(rows), len(columns)), np.nan)
    for at_x, at_y, cell in cells.select(x, y, value).iter_rows():
        table[rows.index(at_y), columns.index(at_x)] = cell
    word = value.replace("_", " ") + (" (%)" if share else "")
    figure = new_figure(width or (COLUMN if len(columns) <= 8 else PAGE), 0.9 + 0.28 * min(max(len(rows), 3), 20))
    axes = _map(figure, table, word, ".1f" if share else ".3g")
    _mark(axes, "x", [shown(v) for v in columns])
    _mark(axes, "y", [shown(v) for v in rows])
    name_axes(axes, plain(short(x)), plain(short(y)))
    for row, column in np.argwhere(table == (np.nanmax(table) if largest else np.nanmin(table))):
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=STYLES[1][0], lw=1.5, clip_on=False))
    others = [short(name) for name in options if name not in (x, y) and frame[name].n_unique() > 1]
    captions = f"{'largest' if largest else 'smallest'} over {', '.join(others)}" if others else ""
    return titled(figure, "; ".join(filter(None, [title, captions])))


def confusion_matrix(
    frame: pl.DataFrame, names: list[str] | None = None, title: str = "", width: float | None = None
) -> Figure:
    """Draws a confusion matrix: colours show shares of a class, numbers show counts.

    Args:
        frame: The table from `series.confusion`; samples without a prediction only count towards their class's total.
        names: The names of all classes; None: use their numbers.

    Raises:
        ValueError: If the table is empty.

    >>> frame = pl.DataFrame({"label": [0, 1, 1], "prediction": [0, 0, 1], "count": [5, 1, 3]})
    >>> confusion_matrix(frame).axes[0].images[0].get_array().tolist()
    [[100.0, 0.0], [25.0, 75.0]]
    """
    found = np.unique(pl.concat([frame["label"], frame["prediction"]]).drop_nulls().to_numpy())
    if not len(found):
        raise ValueError("frame has no rows: there is nothing to draw.")
    table, total = np.zeros((len(found), len(found))), np.zeros((len(found), 1))
    np.add.at(total, np.searchsorted(found, frame["label"].to_numpy()), frame["count"].to_numpy()[:, None])
    known = frame.drop_nulls("prediction")
    at = tuple(np.searchsorted(found, known[name].to_numpy()) for name in ("label", "prediction"))
    table[at] = known["count"].to_numpy()
    shares = table / np.maximum(total, 1)
    figure = new_figure(width or COLUMN, 3.0)
    axes = _map(figure, 100 * shares, "share of the class (%)", "", limits=(0, 100), square=True)
    if len(found) <= CELLS:
        _number(axes, table, ".0f", whole=True, bright=shares > BRIGHT)
    captions = [names[number] if names is not None and number < len(names) else str(number) for number in found]
    _mark(axes, "x", captions)
    _mark(axes, "y", captions)
    name_axes(axes, "prediction", "class")
    return titled(figure, title)


def _map(
    figure: Figure,
    table: np.ndarray,
    word: str,
    form: str,
    limits: tuple[float, float] | None = None,
    square: bool = False,
) -> Axes:
    """Draws a table as colours, with numbers in the cells if `form` is given and there is space."""
    axes = figure.add_subplot()
    low, high = limits or (np.nanmin(table), np.nanmax(table))
    image = axes.imshow(table, "cividis", vmin=low, vmax=high, aspect="equal" if square else "auto")
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
    bar.set_label(word, fontsize=TEXT)
    bar.ax.tick_params(labelsize=SMALL, width=0.6, length=2)
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(labelsize=SMALL, width=0.6, length=2)
    if form and max(table.shape) <= CELLS:
        _number(axes, table, form, bright=table > low + BRIGHT * (high - low))
    return axes


def _number(axes: Axes, table: np.ndarray, form: str, bright: np.ndarray, whole: bool = False) -> None:
    """Writes numbers into the cells, omitting zeros among counts; none if they would be too small to read."""
    captions = {
        at: f"{value:{form}}" for at, value in np.ndenumerate(table) if not np.isnan(value) and (value or not whole)
    }
    room = 45 * axes.figure.bbox.width / axes.figure.dpi / table.shape[1]  # points; the rest has the names and the bar
    size = min(SMALL, room / (0.62 * max(map(len, captions.values()), default=1)))
    for (row, column), text in captions.items() if size >= 4 else ():
        colour = INK if bright[row, column] else "white"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)


def _mark(axes: Axes, direction: str, words: Sequence[str]) -> None:
    """Labels the rows or columns of a map; if there are many, only some of them."""
    every = -(-len(words) // CELLS)
    at = range(0, len(words), every)
    captions = [fitted(words[number], 16) for number in at]
    if direction == "y":
        axes.set_yticks(at, captions)
    elif sum(map(len, captions)) > 40:
        axes.set_xticks(at, captions, rotation=90)
    else:
        axes.set_xticks(at, captions)
