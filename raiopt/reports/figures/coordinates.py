"""Parallel coordinates: one line per job over all varying options."""

import textwrap
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from raiopt.reports.figures.style import (
    COLUMN,
    INK,
    PAGE,
    SMALL,
    TEXT,
    fitted,
    in_order,
    new_figure,
    plain,
    short,
    shown,
)
from raiopt.results.tables import options_of

TICKS = 12
"""The largest number of marked values per axis."""


def parallel(frame: pl.DataFrame, width: float | None = None) -> Figure:
    """Draws one line per job over all varying options and robust accuracy at the right; the smallest is drawn on top.

    Args:
        frame: The table from `load_sweep`.

    Raises:
        ValueError: If no job has a robust accuracy, or no option varies.

    >>> robust = {"ball": "Linf 0.1", "robust_accuracy": [0.5, 0.25]}
    >>> frame = pl.DataFrame({"status": "finished", "optim.lr": [1, 2], "optim": ["a", "b"], **robust})
    >>> [text.get_text() for text in parallel(frame).axes[0].get_xticklabels()]
    ['lr', 'optim', 'robust\\naccuracy (%)']
    """
    frame = frame.drop_nulls("robust_accuracy").sort("robust_accuracy", descending=True)
    options = [name for name in options_of(frame) if frame[name].n_unique() > 1]
    if not options:
        raise ValueError("frame has no option that varies between jobs with robust accuracy; parallel needs one.")
    figure = new_figure(width or (COLUMN if len(options) < 3 else PAGE), 2.6)
    axes = figure.add_subplot()
    robust, order = 100 * frame["robust_accuracy"].to_numpy(), np.linspace(-0.5, 0.5, len(frame))
    low, span = robust.min(), float(np.ptp(robust))
    heights = (robust - low) / span if span else np.full(len(robust), 0.5)
    scales = [_positions(frame[name].to_list(), order) for name in options]
    at = np.column_stack([*(places for places, _ in scales), heights])
    colours = matplotlib.colormaps["cividis"](0.85 * heights)
    lines = np.stack([np.broadcast_to(np.arange(at.shape[1]), at.shape), at], axis=2)
    colours[:-1, 3] = max(0.15, min(1, 60 / len(at)))  # many lines are more transparent, except the best
    axes.add_collection(LineCollection(list(lines), colors=colours, linewidths=[0.9] * (len(at) - 1) + [2.2]))
    ticks = np.linspace(0, 1, 5) if span else [0.5]
    marks = [*(captions for _, captions in scales), {place: f"{low + place * span:.1f}" for place in ticks}]
    for place, captions in enumerate(marks):
        axes.plot([place, place], [-0.08, 1.08], color=INK, lw=0.6, zorder=3)
        for height, text in captions.items():
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
            side = {"x": place + 0.03, "ha": "left"} if place else {"x": -0.03, "ha": "right"}
            axes.text(y=height, s=text, fontsize=SMALL, va="center", bbox=box, zorder=4, **side)
    names = [textwrap.fill(plain(short(name)), 14) for name in options]
    axes.set_xticks(range(len(marks)), [*names, "robust\naccuracy (%)"], fontsize=TEXT)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _positions(values: list[Any], order: np.ndarray) -> tuple[np.ndarray, dict[float, str]]:
    """Returns where values lie on an axis from 0 to 1, and what to write where: few evenly, many numbers to scale.

    Args:
        order: The position of each job, from -0.5 to 0.5; jobs of one value lie side by side in this order.
    """
    known = in_order(list(dict.fromkeys(values)))
    if len(known) > TICKS and all(isinstance(value, int | float) for value in known):
        return _to_scale(np.array(values, float))
    at = dict(zip(known, np.linspace(0, 1, len(known)), strict=True))
    spread = min(0.15, 0.6 / len(known)) if len(known) < len(values) else 0
    marks = {at[value]: fitted(shown(value), 24) for value in known[:: -(-len(known) // TICKS)]}
    return np.array([at[value] for value in values]) + spread * order, marks


def _to_scale(numbers: np.ndarray) -> tuple[np.ndarray, dict[float, str]]:
    log = numbers.min() > 0 and numbers.max() > 50 * numbers.min()
    scaled = np.log(numbers) if log else numbers
    low, span = scaled.min(), np.ptp(scaled)
    marks = {place: low + place * span for place in np.linspace(0, 1, 5)}
    return (scaled - low) / span, {place: f"{np.exp(m) if log else m:.2g}" for place, m in marks.items()}
