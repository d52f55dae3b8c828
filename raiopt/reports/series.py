"""Tidy tables of runs for figures and pages. Nothing here needs torch.

Each function on several runs skips those that did not finish or whose files cannot be read, and adds the reason to
`problems`, if given, by the run's folder. In the tables, `run` is that folder, `label` a short name made of the
differing options, and `peers` the model, data and ball that runs must share to be comparable. Accuracies are shares of
all samples, from 0 to 1; `low` and `high` are the ends of their 95 % intervals.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import polars as pl

from raiopt import checks
from raiopt.reports.runs import Run, labels
from raiopt.reports.statistics import curve_band, wilson
from raiopt.results.metrics import BROKEN, DECIDED, RIGHT, ROBUST
from raiopt.results.record import BallInfo
from raiopt.results.records import settings_key

RADIUS = "optim.epsilon"
MAX_DRAWN_STEPS = 200
"""The largest number of drawn steps per run."""
MAX_RESAMPLED_SAMPLES = 100_000
"""With more samples, bands are Wilson intervals: bootstrap bands would differ by less than the width of a line."""
Problems = dict[str, str]
Which = Literal["clean", "adversarial"]


def epsilon_curves(runs: Sequence[Run], problems: Problems | None = None) -> pl.DataFrame:
    """Returns robust accuracy against the radius, one row per point, starting with clean accuracy at radius 0.

    Runs that differ only in the radius form one curve, with Wilson intervals; a run with several radii is a separate
    curve, with a bootstrap band over its samples. Runs without a ball are left out.

    Returns:
        Columns label, peers, norm (linf, l2, l1, l0), scope (what one ball bounds if not the perturbation of an image,
        as in "per 2-d row"), run, epsilon, robust, low, high, samples; sorted by curve, then by epsilon.

    >>> import json, pathlib, tempfile
    >>> from raiopt.reports.runs import load_runs
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for epsilon, robust in ((0.1, 0.5), (0.2, 0.25)):
    ...     record = {"schema": 2, "status": "finished", "overrides": {"optim.epsilon": epsilon}}
    ...     record["ball"] = {"norm": "linf", "epsilon": epsilon, "finite": True}
    ...     record["metrics"] = {"samples": 8, "clean_accuracy": 1.0, "robust_accuracy": robust}
    ...     (root / str(epsilon)).mkdir()
    ...     _ = (root / str(epsilon) / "run.json").write_text(json.dumps(record))
    >>> epsilon_curves(load_runs([root])).select("norm", "epsilon", "robust").rows()
    [('linf', 0.0, 1.0), ('linf', 0.1, 0.5), ('linf', 0.2, 0.25)]
    """
    curves: dict[str, list[Run]] = {}
    for run in _finished(runs, problems):
        ball, settings = run.record.ball, settings_key(run.job, without=(RADIUS,))
        if ball.norm is not None and ball.epsilon is not None:
            curves.setdefault(f"{ball.norm} {ball.scope} {settings}", []).append(run)
    named = [_without_radius(curve[0]) for curve in curves.values()]
    rows = []
    for label, curve in zip(labels(named), curves.values(), strict=True):
        points: list[tuple[Any, ...]] = []
        for run in curve:
            with leaving_out(run, problems):
                points += _points(run)
        strongest: dict[float, tuple[Any, ...]] = {}
        for point in sorted(points, key=lambda point: point[1:3]):
            strongest.setdefault(point[1], point)
        ball = curve[0].record.ball
        about = (label, _peers(curve[0], radius=False), ball.norm, ball.scope or None)
        rows += [(*about, *point) for point in strongest.values()]
    schema: dict[str, Any] = dict.fromkeys(["label", "peers", "norm", "scope", "run"], pl.String)
    schema |= dict.fromkeys(["epsilon", "robust", "low", "high"], pl.Float64)
    return pl.DataFrame(rows, schema=schema | {"samples": pl.Int64}, orient="row")


def _without_radius(run: Run) -> Run:
    options = {name: value for name, value in run.job.options.items() if name != RADIUS}
    return replace(run, job=replace(run.job, options=options))


def _points(run: Run) -> Iterator[tuple[Any, ...]]:
    """Yields run, epsilon, robust, low, high, samples for each radius of the run, and for radius 0."""
    assert run.metrics is not None
    if run.metrics.epsilons:
        yield from _curve(run, sorted(run.metrics.epsilons))
        return
    for radius, share in ((0.0, run.metrics.clean_accuracy), (run.record.ball.radius, run.metrics.robust_accuracy)):
        yield str(run.folder), radius, share, *_interval(share, run.count), run.count


def _curve(run: Run, epsilons: Sequence[float]) -> Iterator[tuple[Any, ...]]:
    """Yields the points of a run with several radii; samples with the same result at all radii are grouped."""
    broken_from = pl.when(BROKEN).then(pl.col("epsilon")).alias("from")
    fates = _collected(run, run.samples().group_by(RIGHT.alias("right"), DECIDED.alias("decided"), broken_from).len())
    right, decided, count = (fates[name].to_numpy() for name in ("right", "decided", "len"))
    robust = [right & decided & ~(fates["from"] <= e).fill_null(False).to_numpy() for e in epsilons]
    matrix, total = np.column_stack([right, *robust]), int(count.sum())
    shares = count @ matrix / max(total, 1)
    is_resampled = total <= MAX_RESAMPLED_SAMPLES
    low, high = curve_band(matrix.repeat(count, axis=0)) if is_resampled else wilson(count @ matrix, total)
    for radius, *point in zip([0.0, *epsilons], shares, low, high, strict=True):
        yield str(run.folder), radius, *map(float, point), total


def step_curves(runs: Sequence[Run], problems: Problems | None = None) -> pl.DataFrame:
    """Returns loss and share fooled at each step, at most `MAX_DRAWN_STEPS` rows per run, including the last step.

    A run with stages has one curve per stage, over the samples that the stage attacked; the label names the stage.

    Returns:
        Columns label, peers, run, step, passes (forward and backward, of a sample so far; null if not recorded),
        loss (the median over samples), loss_low and loss_high (their quartiles), fooled_so_far (share of the attacked).
    """
    schema: dict[str, Any] = dict.fromkeys(["label", "peers", "run"], pl.String) | {"step": pl.Int64}
    schema |= dict.fromkeys(["passes", "loss", "loss_low", "loss_high", "fooled_so_far"], pl.Float64)
    drawn = [pl.DataFrame(schema=schema)]
    for label, run in _labelled(runs, problems):
        with leaving_out(run, problems):
            whole = run.trace()
            staged = "stage" in whole.columns and whole["stage"].count() > 0
            for trace in whole.partition_by("stage", maintain_order=True) if staged else [whole]:
                name = f"{label}, {trace['stage'][0]}" if staged else label
                about = {"label": name, "peers": _peers(run), "run": str(run.folder)}
                drawn.append(_step_curve(trace, about))
    return pl.concat(drawn)


def _step_curve(trace: pl.DataFrame, about: dict[str, str]) -> pl.DataFrame:
    at = np.linspace(0, len(trace) - 1, min(len(trace), MAX_DRAWN_STEPS)).round().astype(int)
    constants = [pl.lit(text).alias(name) for name, text in about.items()]
    passes = pl.col("passes") if "passes" in trace.columns else pl.lit(None, pl.Float64).alias("passes")
    of_loss = {"loss": "loss_median", "loss_low": "loss_q25", "loss_high": "loss_q75"}
    losses = [pl.col(column).fill_nan(None).alias(name) for name, column in of_loss.items()]
    return trace[at].select(*constants, "step", passes, *losses, "fooled_so_far")


def job_points(runs: Sequence[Run], problems: Problems | None = None) -> pl.DataFrame:
    """Returns the result of each run, with a Wilson interval; with several radii, at the largest.

    Returns:
        Columns run, label, peers, norm, epsilon (null without a ball), robust, low, high, clean, samples, passes
        (forward and backward, per attacked sample); in the order of the runs.
    """
    rows = []
    for label, run in _labelled(runs, problems):
        found, ball = run.metrics, run.record.ball
        assert found is not None
        epsilon = max(found.epsilons) if found.epsilons else ball.radius
        passes = (found.forward_passes + found.backward_passes) / found.attacked if found.attacked else None
        about = (str(run.folder), label, _peers(run), ball.norm, epsilon)
        interval = _interval(found.robust_accuracy, run.count)
        rows.append((*about, found.robust_accuracy, *interval, found.clean_accuracy, run.count, passes))
    schema: dict[str, Any] = dict.fromkeys(["run", "label", "peers", "norm"], pl.String)
    schema |= dict.fromkeys(["epsilon", "robust", "low", "high", "clean"], pl.Float64)
    return pl.DataFrame(rows, schema=schema | {"samples": pl.Int64, "passes": pl.Float64}, orient="row")


def class_results(run: Run) -> pl.DataFrame:
    """Returns the accuracies of each class, with the Wilson interval of robust accuracy.

    Returns:
        Columns class, name (its number if names are unknown), samples, clean_accuracy, robust_accuracy, low, high.

    Raises:
        ValueError: If the run's table of samples cannot be read; the message names the file.

    >>> import pathlib, tempfile
    >>> from raiopt import load_run
    >>> folder, verified = pathlib.Path(tempfile.mkdtemp()), {"verified": [True, False, False, False]}
    >>> _ = (folder / "run.json").write_text('{"schema": 2, "status": "finished"}')
    >>> columns = {"label": [0, 0, 1, 1], "clean_prediction": [0, 0, 1, 0], "undecided": False, "stopped": "steps"}
    >>> pl.DataFrame({**columns, **verified}).write_parquet(folder / "samples.parquet")
    >>> class_results(load_run(folder)).select("name", "samples", "clean_accuracy", "robust_accuracy").rows()
    [('0', 2, 1.0, 0.5), ('1', 2, 0.5, 0.5)]
    """
    figures = {"clean_accuracy": RIGHT.mean(), "robust_accuracy": ROBUST.mean(), "count": ROBUST.sum()}
    by_class = run.samples().group_by(pl.col("label").alias("class"))
    counts = by_class.agg(samples=pl.len().cast(pl.Int64), **figures)
    frame = _collected(run, counts).sort("class")
    low, high = wilson(frame["count"], frame["samples"])
    names = pl.Series("name", class_names(run, frame["class"].to_list()), pl.String)
    bounds = [pl.Series("low", low, pl.Float64), pl.Series("high", high, pl.Float64)]
    return frame.drop("count").insert_column(1, names).with_columns(bounds)


def class_names(run: Run, classes: Sequence[int]) -> list[str]:
    """Returns the names of these classes, or their numbers if names are unknown."""
    names = run.class_names or []
    return [names[number] if 0 <= number < len(names) else str(number) for number in classes]


def confusion(run: Run, which: Which = "clean") -> pl.DataFrame:
    """Returns how often samples of one class were predicted as another; pairs with a count of 0 are left out.

    Args:
        which: "clean": predictions of the clean images. "adversarial": for verified successes, predictions of the
            perturbed images instead.

    Returns:
        Columns label, prediction (null where the model's output was not finite), count; sorted.

    Raises:
        ValueError: If the run's table of samples cannot be read; the message names the file.
    """
    checks.choice("which", which, ("clean", "adversarial"))
    clean = pl.col("clean_prediction")
    predicted = clean if which == "clean" else pl.when(BROKEN).then("adversarial_prediction").otherwise(clean)
    counts = run.samples().group_by("label", predicted.alias("prediction")).agg(pl.len().cast(pl.Int64).alias("count"))
    return _collected(run, counts).sort("label", "prediction", nulls_last=True)


def _collected(run: Run, frame: pl.LazyFrame) -> pl.DataFrame:
    """Returns a table made of the run's samples, without loading all of them into memory."""
    try:
        return frame.collect(engine="streaming")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{run.folder / 'samples.parquet'} cannot be read: {str(error).splitlines()[0]}") from None


def _labelled(runs: Sequence[Run], problems: Problems | None) -> list[tuple[str, Run]]:
    finished = _finished(runs, problems)
    return list(zip(labels(finished), finished, strict=True))


def _finished(runs: Sequence[Run], problems: Problems | None) -> list[Run]:
    for run in runs:
        if not run.metrics and problems is not None:
            problems[str(run.folder)] = ": ".join(filter(None, [run.job.status, run.job.error]))
    return [run for run in runs if run.metrics]


@contextmanager
def leaving_out(run: Run, problems: Problems | None) -> Iterator[None]:
    """Skips a run whose files cannot be read, and adds the reason to `problems`."""
    try:
        yield
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        if problems is not None:
            problems[str(run.folder)] = str(error).splitlines()[0]


def _interval(share: float | None, count: int) -> tuple[float, float]:
    return wilson(round((share or 0) * count), count)


def _peers(run: Run, *, radius: bool = True) -> str:
    record = run.record
    ball = str(record.ball) if radius else " ".join(filter(None, [_norm(record.ball), record.ball.scope]))
    return f"{record.model.name or 'model'} on {record.data.name or 'data'}, {ball}"


def _norm(ball: BallInfo) -> str:
    return f"L{(ball.norm or '')[1:]}"
