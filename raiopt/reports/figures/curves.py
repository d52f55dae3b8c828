"""Line plots: robust accuracy against the radius, loss and share fooled against steps or passes."""

from typing import Literal

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raiopt import checks
from raiopt.reports.figures.style import (
    COLUMN,
    PAGE,
    STYLES,
    name_axes,
    new_axes,
    new_figure,
    norm_words,
    plain,
    with_legend,
)

By = Literal["steps", "passes"]
AXES: dict[By, str] = {"steps": "step", "passes": "passes"}
"""The column of `series.step_curves` for each horizontal axis."""
CURVES = len(STYLES)
"""The largest number of curves."""


def robust_against_epsilon(frame: pl.DataFrame, width: float | None = None) -> Figure:
    """Draws robust accuracy against the radius with 95 % bands, one panel per norm.

    Args:
        frame: The table from `series.epsilon_curves`; of many curves, those with the smallest accuracies are drawn.

    Raises:
        ValueError: If the table is empty.

    >>> curve = {"label": "a", "peers": "m on d", "norm": "linf", "scope": None, "epsilon": [0.0, 0.1]}
    >>> captions = {"robust": [1.0, 0.5], "low": [0.9, 0.4], "high": [1.0, 0.6]}
    >>> figure = robust_against_epsilon(pl.DataFrame(curve | captions))
    >>> figure.axes[0].get_lines()[0].get_ydata().tolist()
    [100.0, 50.0]
    """
    _check_rows(frame)
    shown, note = _most_telling(frame, pl.col("robust").mean(), "of the smallest robust accuracy")
    panels = shown.partition_by("norm", "scope", maintain_order=True)
    figure = new_figure(width or (COLUMN if len(panels) == 1 else PAGE), 2.0)
    lines: dict[str, Line2D] = {}
    for place, panel in enumerate(panels, 1):
        axes = new_axes(figure, (1, len(panels), place))
        _draw(axes, panel, "epsilon", "robust", ("low", "high"), lines, scale=100)
        axes.set_ylim(-2, 102)
        axes.locator_params(axis="x", nbins=5)
        ball = " ".join(filter(None, [norm_words(panel["norm"][0]), plain(panel["scope"][0] or "")]))
        name_axes(axes, rf"radius $\varepsilon$ ({ball})", "robust accuracy (%)")
    return with_legend(figure, lines, note)


def loss_against(frame: pl.DataFrame, by: By = "steps", width: float | None = None) -> Figure:
    """Draws the median loss of the attacked samples, with quartiles if there are few curves.

    Args:
        frame: The table from `series.step_curves`.
        by: The horizontal axis: "steps", or "passes" (forward and backward passes per sample).

    Raises:
        ValueError: If there is nothing to draw, such as when no run recorded its passes.

    >>> loss = {"loss": [0.1, 0.3], "loss_low": [0.0, 0.2], "loss_high": [0.2, 0.4]}
    >>> figure = loss_against(pl.DataFrame({"label": "a", "peers": "m on d", "step": [0, 1], **loss}))
    >>> figure.axes[0].get_ylabel()
    'loss (median, quartiles)'
    """
    return _against(frame, by, "loss", "of the largest loss at the end", width)


def fooled_against(frame: pl.DataFrame, by: By = "steps", width: float | None = None) -> Figure:
    """Draws the share of the attacked samples that were fooled at any step so far; arguments as in `loss_against`.

    >>> frame = pl.DataFrame({"label": "a", "peers": "m on d", "step": [0, 1], "fooled_so_far": [0.0, 0.25]})
    >>> fooled_against(frame).axes[0].get_lines()[0].get_ydata().tolist()
    [0.0, 25.0]
    """
    return _against(frame, by, "fooled_so_far", "most fooled at the end", width)


def _against(frame: pl.DataFrame, by: By, value: str, chosen: str, width: float | None) -> Figure:
    x = AXES[checks.choice("by", by, AXES)]
    frame = frame.drop_nulls([x, value])
    _check_rows(frame, f" with {x} and {value}")
    shown, note = _most_telling(frame, -pl.col(value).last(), chosen)
    figure, lines = new_figure(width or COLUMN, 2.0), {}
    axes, few = new_axes(figure), shown["label"].n_unique() <= 3
    of_loss = value == "loss"
    bounds = ("loss_low", "loss_high") if of_loss and few else None
    _draw(axes, shown, x, value, bounds, lines, scale=1 if of_loss else 100)
    axes.locator_params(axis="x", nbins=6, integer=by == "steps")
    captions = "loss (median, quartiles)" if bounds else "median loss" if of_loss else "fooled so far (%)"
    name_axes(axes, "step" if by == "steps" else "passes of a sample (forward and backward)", captions)
    if not of_loss:
        axes.set_ylim(bottom=0)
    return with_legend(figure, lines, note)


def _check_rows(frame: pl.DataFrame, which: str = "") -> None:
    if frame.is_empty():
        raise ValueError(f"frame has no rows{which}: there is nothing to draw.")


def _draw(
    axes: Axes,
    frame: pl.DataFrame,
    x: str,
    y: str,
    bounds: tuple[str, str] | None,
    lines: dict[str, Line2D],
    scale: float,
) -> None:
    """Draws one line per label, in its style from `lines`; new labels are added there."""
    for (label,), curve in frame.group_by("label", maintain_order=True):
        colour, marker, dashes = STYLES[list(lines).index(label) if label in lines else len(lines)]
        at, values = curve[x].to_numpy(), scale * curve[y].to_numpy()
        every = max(1, len(at) // 8)
        style = {"ls": dashes, "marker": marker, "markevery": every, "ms": 3.5, "lw": 1.2}
        (line,) = axes.plot(at, values, color=colour, **style)
        lines.setdefault(str(label), line)
        if bounds:
            low, high = (scale * curve[name].to_numpy() for name in bounds)
            axes.fill_between(at, low, high, color=colour, alpha=0.12, lw=0)


def _most_telling(frame: pl.DataFrame, score: pl.Expr, what: str) -> tuple[pl.DataFrame, str]:
    """Returns the curves to draw, the best of each comparable group first, and a note about the omitted ones."""
    ranked = (
        frame.group_by("label", "peers", maintain_order=True)
        .agg(score.alias("_score"))
        .with_columns(pl.col("_score").rank("ordinal").over("peers").alias("_rank"))
    )
    if len(ranked) <= CURVES:
        return frame, ""
    kept = ranked.sort("_rank", "_score", maintain_order=True).head(CURVES)
    of = " for their model, data and ball" if ranked["peers"].n_unique() > 1 else ""
    return (
        frame.join(kept, on=["label", "peers"], how="semi", maintain_order="left"),
        f"{CURVES} of {len(ranked)} curves, those {what}{of}",
    )
