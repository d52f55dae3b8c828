"""Dot plots with intervals: one row per job or class."""

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from raiopt.reports.figures.style import (
    COLUMN,
    LINE,
    PAGE,
    QUIET,
    SMALL,
    STYLES,
    fitted,
    name_axes,
    new_axes,
    new_figure,
    titled,
    with_legend,
)

ROWS = 30
"""The largest number of rows; those with the smallest robust accuracy are drawn."""


def jobs(frame: pl.DataFrame, width: float | None = None) -> Figure:
    """Draws robust accuracy (filled, with 95 % intervals) and clean accuracy (hollow) of each run.

    Args:
        frame: The table from `series.job_points`; of many runs, those with the smallest robust accuracy are drawn.

    Raises:
        ValueError: If the table is empty.

    >>> captions = {"label": ["a", "b"], "robust": [0.5, 0.25], "low": [0.4, 0.2], "high": [0.6, 0.3]}
    >>> [text.get_text() for text in jobs(pl.DataFrame({**captions, "clean": 0.9})).axes[0].get_yticklabels()]
    ['b', 'a']
    """
    return _dots(frame, "label", "robust", "clean", "runs", width or PAGE)


def classes(frame: pl.DataFrame, title: str = "", width: float | None = None) -> Figure:
    """Draws robust accuracy (filled, with 95 % intervals) and clean accuracy (hollow) of each class.

    Args:
        frame: The table from `series.class_results`; of many classes, those with the smallest robust accuracy are
            drawn.

    Raises:
        ValueError: If the table is empty.

    >>> captions = {"name": ["cat"], "robust_accuracy": [0.5], "low": [0.4], "high": [0.6], "clean_accuracy": [1]}
    >>> classes(pl.DataFrame(captions), "digits_robust").get_suptitle()
    'digits_robust'
    """
    figure = _dots(frame, "name", "robust_accuracy", "clean_accuracy", "classes", width or COLUMN)
    return titled(figure, title)


def _dots(frame: pl.DataFrame, name: str, robust: str, clean: str, what: str, width: float) -> Figure:
    if frame.is_empty():
        raise ValueError("frame has no rows: there is nothing to draw.")
    shown = frame.sort(robust, maintain_order=True).head(ROWS)
    at, share, start = np.arange(len(shown)), shown[robust].to_numpy() * 100, shown[clean].to_numpy() * 100
    reach = [share - shown["low"].to_numpy() * 100, shown["high"].to_numpy() * 100 - share]
    figure = new_figure(width, 0.6 + LINE * max(len(shown), 3))
    axes = new_axes(figure, grid="x")
    colour = STYLES[0][0]
    hollow = axes.plot(start, at, "o", ms=6, mfc="none", mec=QUIET, mew=0.8, clip_on=False)[0]
    full = axes.errorbar(share, at, xerr=np.maximum(reach, 0), fmt="o", ms=3.5, color=colour, elinewidth=1)
    axes.set_xlim(-2, 102)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks(at, [fitted(text, int(8 * width)) for text in shown[name]], fontsize=SMALL)
    name_axes(axes, "accuracy (%)", "")
    left = len(frame) - len(shown)
    note = f"the {len(shown)} {what} with the smallest robust accuracy of {len(frame)}" if left else ""
    return with_legend(figure, {"robust, 95 % interval": full, "clean": hollow}, note)
