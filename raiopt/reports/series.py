"""What figures and pages draw of runs, as tidy tables. Nothing here needs torch.

Each function over several runs leaves out those that did not finish or whose files cannot be read, and says in
`problems`, if it is given, which and why, by the run's folder. In the tables, `run` is that folder, `label` a short
name of the options that differ, `peers` what runs must share to be compared: model, data, ball. Accuracies are shares
of all samples, from 0 to 1; `low` and `high` bound their 95 % intervals.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import polars as pl

from raiopt import checks
from raiopt.reports.runs import Run, labels
from raiopt.reports.statistics import curve_band, question, wilson
from raiopt.results.metrics import BROKEN, DECIDED, RIGHT, ROBUST

RADIUS = "optim.epsilon"
STEPS = 200
"""So many steps of a run are drawn at most."""
RESAMPLED = 100_000
"""Bands of more samples are Wilson intervals, of which resampling would differ by less than a line is wide."""
Problems = dict[str, str]
Which = Literal["clean", "adversarial"]
_BALL = re.compile(r"L(?P<p>\S+) (?:up to )?(?P<epsilon>[\d.e+-]+)(?P<scope>.*)")


def epsilon_curves(runs: Sequence[Run], problems: Problems | None = None) -> pl.DataFrame:
    """Returns robust accuracy against the radius, a row a point, from radius 0, which is clean accuracy.

    Runs that are equal but for the radius are one curve, with Wilson intervals; a run of several radii is a curve of
    its own, whose band comes from resampling its samples. Runs without a ball are left out.

    Returns:
        Columns label, peers, norm (linf, l2, l1, l0), scope (what a ball holds if not an image's perturbation, "per
        2-d row"), run, epsilon, robust, low, high, samples; sorted by curve, then by epsilon.

    >>> import json, pathlib, tempfile
    >>> from raiopt.reports.runs import load_runs
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for epsilon, robust in ((0.1, 0.5), (0.2, 0.25)):
    ...     told = {"schema": 1, "status": "finished", "ball": f"Linf {epsilon}"}
    ...     told["overrides"] = {"optim.epsilon": epsilon}
    ...     told["metrics"] = {"samples": 8, "clean_accuracy": 1.0, "robust_accuracy": robust}
    ...     (root / str(epsilon)).mkdir()
    ...     _ = (root / str(epsilon) / "run.json").write_text(json.dumps(told))
    >>> epsilon_curves(load_runs([root])).select("norm", "epsilon", "robust").rows()
    [('linf', 0.0, 1.0), ('linf', 0.1, 0.5), ('linf', 0.2, 0.25)]
    """
    curves: dict[str, list[Run]] = {}
    for run in _finished(runs, problems):
        ball, asked = _ball(run), question(run, without=(RADIUS,))
        if ball["norm"] is not None and (ball["epsilon"] is not None or "epsilons" in run.metrics):
            curves.setdefault(f"{ball['norm']} {ball['scope']} {asked}", []).append(run)
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
        ball = _ball(curve[0])
        about = (label, _peers(curve[0], radius=False), ball["norm"], ball["scope"])
        rows += [(*about, *point) for point in strongest.values()]
    schema: dict[str, Any] = dict.fromkeys(["label", "peers", "norm", "scope", "run"], pl.String)
    schema |= dict.fromkeys(["epsilon", "robust", "low", "high"], pl.Float64)
    return pl.DataFrame(rows, schema=schema | {"samples": pl.Int64}, orient="row")


def _without_radius(run: Run) -> Run:
    options = {name: value for name, value in run.job.options.items() if name != RADIUS}
    return replace(run, job=replace(run.job, options=options))


def _points(run: Run) -> Iterator[tuple[Any, ...]]:
    """Yields run, epsilon, robust, low, high, samples of each radius that the run tells of, and of radius 0."""
    figures, epsilon = run.metrics, _ball(run)["epsilon"]
    if "epsilons" in figures:
        yield from _curve(run, sorted(figures["epsilons"]))
        return
    count = _samples(run)
    for radius, share in ((0.0, figures["clean_accuracy"]), (epsilon, figures["robust_accuracy"])):
        yield str(run.folder), radius, share, *_interval(share, count), count


def _curve(run: Run, epsilons: Sequence[float]) -> Iterator[tuple[Any, ...]]:
    """Yields the points of a run of several radii; samples with the same fate at all of them are counted together."""
    broken_from = pl.when(BROKEN).then(pl.col("epsilon")).alias("from")
    fates = _collected(run, run.samples().group_by(RIGHT.alias("right"), DECIDED.alias("decided"), broken_from).len())
    right, decided, count = (fates[name].to_numpy() for name in ("right", "decided", "len"))
    robust = [right & decided & ~(fates["from"] <= e).fill_null(False).to_numpy() for e in epsilons]
    matrix, total = np.column_stack([right, *robust]), int(count.sum())
    shares = count @ matrix / max(total, 1)
    few = total <= RESAMPLED
    low, high = curve_band(matrix.repeat(count, axis=0)) if few else wilson(count @ matrix, total)
    for radius, *point in zip([0.0, *epsilons], shares, low, high, strict=True):
        yield str(run.folder), radius, *map(float, point), total


def step_curves(runs: Sequence[Run], problems: Problems | None = None) -> pl.DataFrame:
    """Returns how the attacked samples fared step by step, at most `STEPS` rows a run, the last step among them.

    A run in stages has a curve for each, of the samples that it tried; the label names the stage.

    Returns:
        Columns label, peers, run, step, passes (forward and backward, of a sample up to there; null in older runs),
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
    at = np.linspace(0, len(trace) - 1, min(len(trace), STEPS)).round().astype(int)
    told = [pl.lit(text).alias(name) for name, text in about.items()]
    passes = pl.col("passes") if "passes" in trace.columns else pl.lit(None, pl.Float64).alias("passes")
    of_loss = {"loss": "loss_median", "loss_low": "loss_q25", "loss_high": "loss_q75"}
    losses = [pl.col(column).fill_nan(None).alias(name) for name, column in of_loss.items()]
    return trace[at].select(*told, "step", passes, *losses, "fooled_so_far")


def job_points(runs: Sequence[Run], problems: Problems | None = None) -> pl.DataFrame:
    """Returns what each run came to, with a Wilson interval; of several radii, at the largest.

    Returns:
        Columns run, label, peers, norm, epsilon (null without a ball), robust, low, high, clean, samples, passes
        (forward and backward, per attacked sample); in the order of the runs.
    """
    rows = []
    for label, run in _labelled(runs, problems):
        figures, count, ball = run.metrics, _samples(run), _ball(run)
        epsilon = max(figures["epsilons"]) if "epsilons" in figures else ball["epsilon"]
        robust, attacked = figures["robust_accuracy"], figures.get("attacked")
        passes = (figures["forward_passes"] + figures["backward_passes"]) / attacked if attacked else None
        about = (str(run.folder), label, _peers(run), ball["norm"], epsilon)
        rows.append((*about, robust, *_interval(robust, count), figures["clean_accuracy"], count, passes))
    schema: dict[str, Any] = dict.fromkeys(["run", "label", "peers", "norm"], pl.String)
    schema |= dict.fromkeys(["epsilon", "robust", "low", "high", "clean"], pl.Float64)
    return pl.DataFrame(rows, schema=schema | {"samples": pl.Int64, "passes": pl.Float64}, orient="row")


def class_results(run: Run) -> pl.DataFrame:
    """Returns the accuracies of each class, with the Wilson interval of robust accuracy.

    Returns:
        Columns class, name (its number where names are not known), samples, clean_accuracy, robust_accuracy, low, high.

    Raises:
        ValueError: If the run's table of samples cannot be read; the message names the file.

    >>> import pathlib, tempfile
    >>> from raiopt import load_run
    >>> folder, verified = pathlib.Path(tempfile.mkdtemp()), {"verified": [True, False, False, False]}
    >>> _ = (folder / "run.json").write_text('{"schema": 1, "status": "finished"}')
    >>> told = {"label": [0, 0, 1, 1], "clean_prediction": [0, 0, 1, 0], "undecided": False, "stopped": "steps"}
    >>> pl.DataFrame({**told, **verified}).write_parquet(folder / "samples.parquet")
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
    """Returns the names of these classes, their numbers where the run knows no names."""
    names = run.class_names or []
    return [names[number] if 0 <= number < len(names) else str(number) for number in classes]


def confusion(run: Run, which: Which = "clean") -> pl.DataFrame:
    """Returns how often samples of one class were predicted as another; pairs that do not occur are left out.

    Args:
        which: The prediction that counts: that of the clean image; or that of the perturbed one, where it was verified
            as broken.

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
    """Returns a table that was made of the run's samples, without having had all of them in memory."""
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
    """Goes on behind a run whose files cannot be read, and notes why."""
    try:
        yield
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        if problems is not None:
            problems[str(run.folder)] = str(error).splitlines()[0]


def _samples(run: Run) -> int:
    return run.metrics.get("samples") or (run.record.get("data") or {}).get("samples") or 0


def _interval(share: float | None, count: int) -> tuple[float, float]:
    return wilson(round((share or 0) * count), count)


def _ball(run: Run) -> dict[str, Any]:
    """Returns norm, epsilon and scope of the run's ball; where an older run.json lacks them, from what it calls it."""
    record = run.record
    if "norm" in record:
        return {"norm": record["norm"], "epsilon": record.get("epsilon"), "scope": record.get("scope") or None}
    told = _BALL.fullmatch(record.get("ball") or "")
    if told is None:
        return {"norm": None, "epsilon": None, "scope": None}
    scope = told["scope"].strip() or None
    return {"norm": f"l{told['p']}", "epsilon": float(told["epsilon"]), "scope": scope}


def _peers(run: Run, *, radius: bool = True) -> str:
    ball, told = _ball(run), run.record
    words = " ".join(filter(None, ["L" + (ball["norm"] or "")[1:], ball["scope"]]))
    names = [(told.get(part) or {}).get("name", part) for part in ("model", "data")]
    return f"{names[0]} on {names[1]}, {told.get('ball') if radius else words}"
