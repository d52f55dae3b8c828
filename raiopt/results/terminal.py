"""Terminal output: progress, the summary of a job, the table of a sweep."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from raiopt import checks
from raiopt.results.record import Metrics, Norm, Record, StageRecord
from raiopt.results.tables import options_of
from raiopt.results.words import percent, plural

MAX_ROWS = 40
"""The largest number of printed rows of a sweep's table."""
MAX_UNFINISHED = 10
"""The largest number of jobs without a result that are printed by name."""
Advance = Callable[[float], None]
HEADERS = {
    "clean_accuracy": "clean",
    "robust_accuracy": "robust",
    "target_reached": "target",
    "median_l2": "median L2",
    "median_linf": "median Linf",
    "forward_passes": "passes",
    "attack_seconds": "seconds",
}


def say(text: str, style: str | None = None) -> None:
    """Prints a line without wrapping it; markup brackets and control characters in it have no effect."""
    Console().print(escape(checks.printable(text)), style=style, highlight=False, soft_wrap=True)


@contextmanager
def progress(samples: int) -> Iterator[Advance]:
    """Shows a progress bar within the context; yields a function to call with the number of finished samples."""
    console = Console(stderr=True)
    columns = (TextColumn("attack"), BarColumn(), MofNCompleteColumn(), TextColumn("samples"))
    columns += (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("attack", total=samples)
        yield lambda done: bar.update(task, completed=done)


def grid_of(rows: Sequence[tuple[str, str]]) -> Table:
    """Returns a table of two columns with names and texts."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, text in rows:
        table.add_row(name, escape(checks.printable(text)))
    return table


def print_summary(record: Record, folder: Path) -> None:
    """Prints the results of a finished job and the path of its folder."""
    assert record.metrics is not None
    say(record.title, "bold")
    Console().print(grid_of([*summary_rows(record.metrics, record.ball.norm), *stage_rows(record.stages)]))
    if record.coupled or record.fixed_batches:
        say(coupling(record), "yellow")
    say(f"normalisation of the model: {record.model.preset}")
    if record.skipped:
        say("finished before with the same weights and data: nothing was run again")
    elif record.continued is not None:
        samples, passes = record.continued.samples, record.continued.passes
        say(f"continued: {plural(samples, 'sample')} finished before, {plural(passes, 'pass', 'passes')} saved")
    say(f"results in {folder}")


def coupling(record: Record) -> str:
    """Returns a note on what the samples of a batch share, if that affects the result."""
    if not record.coupled:
        return "Samples stay in their batch until it is done: the optimizer or the perturbation may couple them."
    shared = "perturbation" if record.perturbation.shared else "ball"
    clamped = " Perturbed images are clamped to [0, 1]." * record.clamped
    return (
        f"One {shared} for each batch of {record.batch_size}, and no sample leaves it early: another batch_size gives "
        f"another result.{clamped}"
    )


def doubts(found: Metrics) -> list[str]:
    """Returns warnings about a job's metrics, such as unverified successes and zero gradients."""
    lines = []
    if found.claimed != found.verified:
        lines.append(
            f"The search claims {plural(found.claimed or 0, 'success', 'successes')}, {found.verified} of them were "
            "verified. Only verified ones count."
        )
    never, at_start = found.never_a_gradient, found.zero_gradients_at_start
    remedy = "Use another criterion (criterion=margin), or another start, as in init=uniform_linf."
    if never:
        lines.append(
            f"The gradient was zero at every step for {never} of {found.attacked} samples: they never moved. {remedy}"
        )
    elif at_start:
        lines.append(
            f"The gradient was zero at the start for {at_start} of {found.attacked} samples: the network may mask its "
            f"gradients, and robust accuracy may be too high. {remedy}"
        )
    return lines


def summary_rows(found: Metrics, norm: Norm | None = None) -> list[tuple[str, str]]:
    """Returns name and text of each metric in a job's summary.

    Args:
        norm: The norm of the ball, which is listed before the other norms.
    """
    rows = [("clean accuracy", percent(found.clean_accuracy))]
    rows += [(f"robust accuracy at {epsilon:g}", percent(robust)) for epsilon, robust in found.radii] or [
        ("robust accuracy", percent(found.robust_accuracy))
    ]
    if found.target_reached is not None:
        rows.append(("target reached", percent(found.target_reached)))
    undecided = found.undecided
    rows.append(("undecided", f"{undecided:,}, counted neither as robust nor as successful" if undecided else "0"))
    if found.zero_gradients_at_start:
        rows.append(("no gradient at the start", f"{found.zero_gradients_at_start:,} of {found.attacked or 0:,}"))
    for p in sorted(("l0", "l1", "l2", "linf"), key=lambda p: p != norm):
        median, largest = getattr(found, f"median_{p}"), getattr(found, f"largest_{p}")
        form = ",.0f" if p == "l0" else ",.4g"
        text = "none" if median is None or largest is None else f"median {median:{form}}, largest {largest:{form}}"
        rows.append((f"{p.replace('l', 'L', 1)} norm of successful perturbations", text))
    if found.verified_8bit is not None:
        rows.append(("successful as 8-bit images", f"{found.verified_8bit:,} of {found.verified or 0:,}"))
    forward, backward, each = found.forward_passes, found.backward_passes, max(1, found.attacked or 0)
    rows.append(("passes", f"{forward:,} forward, {backward:,} backward"))
    rows.append(("passes per sample", f"{forward / each:.1f} forward, {backward / each:.1f} backward"))
    rows.append(("attack", f"{found.attack_seconds:.1f} s"))
    return rows


def stage_rows(stages: Sequence[StageRecord]) -> list[tuple[str, str]]:
    """Returns name and text of each stage for a summary.

    >>> stage_rows([StageRecord("ce", [], 10, False, 9, 4, 90, 81, robust_accuracy=0.5)])
    [('stage ce', '4 of 9 attacked successfully, 50.0 % remain robust, 171 passes')]
    """
    rows = []
    for stage in stages:
        robust, passes = percent(stage.robust_accuracy), stage.forward_passes + stage.backward_passes
        counts = f"{stage.broken:,} of {stage.attacked or 0:,} attacked successfully"
        found = f"{counts}, {robust} remain robust, {passes:,} passes"
        rows.append((f"stage {stage.name}", found if stage.attacked else "no sample was left to attack"))
    return rows


def job_line(record: Record) -> str:
    """Returns the result of a finished job in one line."""
    assert record.metrics is not None
    before = "finished before: " if record.skipped else ""
    robust, seconds = percent(record.metrics.robust_accuracy), record.metrics.attack_seconds
    return f"{before}robust {robust}, {record.ball}, {seconds:.1f} s"


def print_sweep(frame: pl.DataFrame, folder: Path) -> None:
    """Prints the table of a sweep, with the best of comparable jobs marked, and its path."""
    extra = ["attack_seconds", "clean_accuracy", "median_linf", "median_l2", "forward_passes"]
    rows = _rows_to_print(frame)
    say(f"{plural(len(frame), 'job')} in {folder}", "bold")
    print_table([_table(rows, extra[:count]) for count in range(len(extra), -1, -1)])
    if len(rows) < len(frame):
        say(
            f"{plural(len(frame) - len(rows), 'more row')} in sweep.csv; shown are the best jobs, some without a "
            "result, and the smallest robust accuracies"
        )
    if frame["best"].any():
        say("* smallest robust accuracy in an equal ball")
    bad = frame.filter(pl.col("status") != "finished")
    jobs = [f"{row['job']} {row['status']}: {row['error'] or 'see its run.log'}" for row in bad.iter_rows(named=True)]
    print_wrong(jobs, "more without a result")
    say(f"results in {folder}: sweep.csv, sweep.parquet, a folder for each job")


def print_table(tables: Sequence[Table], *, folds: bool = False) -> None:
    """Prints the first table that fits the terminal, else the last one; cells are never truncated.

    Args:
        folds: Whether cells of the last table may be wrapped; otherwise it may be wider than the terminal.
    """
    console, unlimited = Console(), Console(width=1000)
    widths = [unlimited.measure(table).maximum for table in tables]
    fitting = [number for number, width in enumerate(widths) if not console.is_terminal or width <= console.width]
    chosen = fitting[0] if fitting else len(tables) - 1
    wide = Console(width=max(console.width, widths[chosen]))
    (console if folds and console.is_terminal else wide).print(tables[chosen])


def print_wrong(lines: Sequence[str], more: str) -> None:
    """Prints errors in red; if there are many, only the first ones and the number of the others."""
    for line in lines[:MAX_UNFINISHED]:
        say(f"! {line}", "red")
    if len(lines) > MAX_UNFINISHED:
        say(f"! and {len(lines) - MAX_UNFINISHED:,} {more}", "red")


def _rows_to_print(frame: pl.DataFrame) -> pl.DataFrame:
    """Selects at most `MAX_ROWS` rows, keeping their order: the best, some without a result, the least robust."""
    ranked = (
        frame.with_row_index("_row")
        .with_columns(_bad=pl.col("status") != "finished")
        .with_columns(_named=pl.col("_bad") & (pl.col("_bad").cum_sum() <= MAX_UNFINISHED))
        .sort(~pl.col("best"), ~pl.col("_named"), "robust_accuracy", nulls_last=True, maintain_order=True)
    )
    return ranked.head(MAX_ROWS).sort("_row").drop("_row", "_bad", "_named")


def _table(frame: pl.DataFrame, extra: list[str]) -> Table:
    """Returns the table with options, ball, robust accuracy, and the additional columns in `extra`."""
    options = options_of(frame)
    shown = [*options, "ball"]
    shown += [name for name in frame.columns if name == "robust_accuracy" or name in extra]
    shown += [name for name in ("target_reached", "undecided") if _has_values(frame[name])]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in shown:
        header = _short(name, options) if name in options else HEADERS.get(name, name)
        table.add_column(escape(header), justify="left" if name in {*options, "ball"} else "right", no_wrap=True)
    for row in frame.iter_rows(named=True):
        table.add_row(
            "*" if row["best"] else "" if row["status"] == "finished" else "!",
            *[escape(checks.printable(_cell(name, row[name]))) for name in shown],
            style="bold" if row["best"] else None,
        )
    return table


def _short(option: str, options: list[str]) -> str:
    """Returns the last part of an option's name if no other option has the same."""
    last = option.rpartition(".")[2]
    return last if ["ball", *(other.rpartition(".")[2] for other in options)].count(last) == 1 else option


def _has_values(column: pl.Series) -> bool:
    return bool(column.cast(pl.Float64).fill_null(0).sum())


def _cell(name: str, value: Any) -> str:
    if name.endswith("_accuracy") or name == "target_reached":
        return percent(value)
    if value is None:
        return "-" if name in HEADERS or name == "ball" else "null"
    if isinstance(value, float):
        return f"{value:.1f}" if name == "attack_seconds" else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and name in HEADERS else str(value)
