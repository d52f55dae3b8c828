"""Saves figures as files, and selects the figures for a set of runs."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from raiopt import checks
from raiopt.reports import series
from raiopt.reports.figures.coordinates import parallel
from raiopt.reports.figures.curves import AXES, fooled_against, loss_against, robust_against_epsilon
from raiopt.reports.figures.dots import classes, jobs
from raiopt.reports.figures.maps import confusion_matrix, heatmap
from raiopt.reports.runs import Run, differing_options
from raiopt.results.files import make_folder, replace_file
from raiopt.results.tables import jobs_frame, options_of

METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
WHICH: tuple[series.Which, ...] = ("clean", "adversarial")
Draw = Callable[[], Figure]
_CANVASES = {"png": FigureCanvasAgg, "pdf": FigureCanvasPdf, "svg": FigureCanvasSVG}
_SETTINGS: Any = {"pdf.fonttype": 42, "svg.hashsalt": "raiopt"}
_LOCK = threading.RLock()
"""Guards global settings that matplotlib reads while writing a file, which all threads share."""


def save_figure(figure: Figure, file: Path | str) -> Path:
    """Writes a figure as .png (200 dots per inch), .pdf (fonts embedded as TrueType) or .svg, and returns the file.

    Files contain no date, so equal figures give equal files.

    Raises:
        ValueError: If the file has a different suffix.

    >>> import tempfile
    >>> frame = pl.DataFrame({"label": [0, 1], "prediction": [0, 0], "count": [5, 1]})
    >>> file = save_figure(confusion_matrix(frame), f"{tempfile.mkdtemp()}/confusion.pdf")
    >>> file.read_bytes()[:5]
    b'%PDF-'
    """
    file = Path(file)
    kind = checks.choice("the ending of file", file.suffix.removeprefix("."), METADATA)
    dots, canvas = figure.dpi, figure.canvas
    with _LOCK, matplotlib.rc_context(_SETTINGS):
        try:  # printed by the canvas, because savefig draws everything twice
            figure.set_dpi(200 if kind == "png" else 72)
            writer: Any = _CANVASES[kind](figure)
            write = getattr(writer, f"print_{kind}")
            replace_file(file, lambda temporary: write(temporary, metadata=METADATA[kind]))
        finally:
            figure.set_dpi(dots)
            figure.set_canvas(canvas)
    return file


def save_figures(runs: Sequence[Run], folder: Path | str, problems: series.Problems | None = None) -> list[Path]:
    """Writes every figure that has content for these runs as PNG and PDF, and returns the files.

    These are: robust accuracy against the radius, if there are several radii; loss and share fooled; for several runs,
    their options and accuracies. The heat map shows the largest group of runs with the same model, data and ball, over
    the two most influential options; results by class are those of the best run of that group.

    Args:
        runs: The runs from `load_runs`.
        folder: Files are written into its subfolder `figures`, which is created; existing files are replaced.
        problems: Collects the reasons why runs were left out, by their folder.

    >>> import tempfile
    >>> save_figures([], tempfile.mkdtemp())
    []
    """
    place = make_folder(Path(folder) / "figures", parents=True)
    files = []
    for name, draw in _worth_drawing(runs, problems).items():
        figure = draw()
        files.append(save_figure(figure, place / f"{name}.png"))
        figure.set_layout_engine("none")  # the layout is final
        files.append(save_figure(figure, place / f"{name}.pdf"))
    return files


def _worth_drawing(runs: Sequence[Run], problems: series.Problems | None) -> dict[str, Draw]:
    curves, steps = series.epsilon_curves(runs, problems), series.step_curves(runs, problems)
    drawn: dict[str, Draw] = {}
    if curves["epsilon"].n_unique() > 2:  # two radii, one of which is 0, do not make a curve
        drawn["robust_against_epsilon"] = partial(robust_against_epsilon, curves)
    for by, column in AXES.items():
        if len(steps.drop_nulls([column, "loss"])):
            drawn[f"loss_against_{by}"] = partial(loss_against, steps, by)
        if len(steps.drop_nulls(column)):
            drawn[f"fooled_against_{by}"] = partial(fooled_against, steps, by)
    finished = [run for run in runs if run.metrics]
    if not finished:
        return drawn
    points = series.job_points(finished)
    peers = points["peers"].to_list()
    most = max(peers, key=peers.count)
    group = [run for run, of in zip(finished, peers, strict=True) if of == most]
    if len(finished) > 1:
        frame = jobs_frame([run.job for run in finished], differing_options(finished))
        if any(frame[name].n_unique() > 1 for name in options_of(frame)):
            drawn["parallel"] = partial(parallel, frame)
        drawn["jobs"] = partial(jobs, points)
        drawn |= _heatmap(group, most if len(group) < len(finished) else "")
    best = min(group, key=lambda run: run.robust)
    label = points["label"][finished.index(best)] if len(finished) > 1 else ""
    with series.leaving_out(best, problems):
        drawn |= _by_class(best, label)
    return drawn


def _heatmap(group: Sequence[Run], title: str) -> dict[str, Draw]:
    options = [name for name in differing_options(group) if name != "seed"]
    if len(options) < 2:
        return {}
    frame = jobs_frame([run.job for run in group], options)

    def reach(name: str) -> float:
        best = frame.group_by(name).agg(pl.col("robust_accuracy").min())["robust_accuracy"]
        return float(np.ptp(best.to_numpy()))

    x, y = sorted(options, key=reach, reverse=True)[:2]
    return {"heatmap": partial(heatmap, frame, x, y, title=title)}


def _by_class(run: Run, label: str) -> dict[str, Draw]:
    drawn: dict[str, Draw] = {"classes": partial(classes, series.class_results(run), label)}
    for which in WHICH:
        title = ", ".join(filter(None, [f"{which} images", label]))
        drawn[f"confusion_{which}"] = partial(confusion_matrix, series.confusion(run, which), run.class_names, title)
    return drawn
