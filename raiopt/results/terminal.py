"""What a person sees on the terminal: progress, the summary of a job, the table of a sweep."""

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

from raiopt.results.tables import options_of

ROWS = 40
"""So many rows of a sweep's table are printed."""
TOLD = 10
"""So many jobs that did not finish are told by name."""
Advance = Callable[[float], None]
SHORT = {
    "clean_accuracy": "clean",
    "robust_accuracy": "robust",
    "target_reached": "target",
    "median_l2": "median L2",
    "median_linf": "median Linf",
    "forward_passes": "passes",
    "attack_seconds": "seconds",
}


@contextmanager
def progress(samples: int) -> Iterator[Advance]:
    """Shows a bar while the context lasts, and nothing where the output is no terminal; to be told of samples done."""
    console = Console(stderr=True)
    columns = (TextColumn("attack"), BarColumn(), MofNCompleteColumn(), TextColumn("samples"))
    columns += (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("attack", total=samples)
        yield lambda done: bar.update(task, completed=done)


def print_summary(record: dict[str, Any], folder: Path) -> None:
    """Prints the figures of a finished job and where its folder lies."""
    figures = record["metrics"]
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in [*summary_rows(figures, record.get("norm")), *stage_rows(record.get("stages") or [])]:
        table.add_row(name, value)
    console = Console()
    console.print(escape(headline(record)), style="bold", highlight=False, soft_wrap=True)
    console.print(table)
    if record["coupled"] or record["whole"]:
        console.print(escape(coupling(record)), style="yellow", soft_wrap=True, highlight=False)
    console.print(f"normalisation of the model: {escape(record['model']['preset'])}", soft_wrap=True, highlight=False)
    if record.get("skipped"):
        console.print("finished before with the same weights and data: nothing was run again", highlight=False)
    elif "continued" in record:
        told = record["continued"]
        console.print(
            f"continued: {told['samples']:,} samples were finished before, {told['passes']:,} passes saved",
            highlight=False,
        )
    console.print(f"results in {escape(str(folder))}", soft_wrap=True, highlight=False)


def coupling(record: dict[str, Any]) -> str:
    """Returns what the samples of a batch have in common, for a job in which that matters."""
    if not record["coupled"]:
        return "Samples stay in their batch until it is done: the optimizer or the perturbation may couple them."
    size = record["batch_size"]
    shared = "perturbation" if record["perturbation"]["shared"] else "ball"
    clamped = " Perturbed images are clamped to [0, 1]." * record["clamped"]
    return (
        f"One {shared} for each batch of {size}, and no sample leaves it: with another batch_size it is another "
        f"question.{clamped}"
    )


def doubts(record: dict[str, Any]) -> list[str]:
    """Returns what a reader of a job's figures must know before believing them."""
    figures, told = record["metrics"], []
    if figures["claimed"] != figures["verified"]:
        told.append(
            f"Claimed as broken: {figures['claimed']}, verified: {figures['verified']}. Only verified ones count."
        )
    never, at_start = figures["never_a_gradient"], figures["zero_gradients_at_start"]
    remedy = "Take another criterion (criterion=margin), or another start, as in init=uniform_linf."
    if never:
        told.append(
            f"The gradient was zero at every step for {never} of {figures['attacked']} samples: nothing moved them. "
            f"{remedy}"
        )
    elif at_start:
        told.append(
            f"The gradient was zero at the start for {at_start} of {figures['attacked']} samples: the network may mask "
            f"its gradients, and robust accuracy be too high. {remedy}"
        )
    return told


def headline(record: dict[str, Any]) -> str:
    """Returns the question of a job in one line."""
    model, data = record["model"]["name"], record["data"]
    return f"{model} on {data['samples']} images of {data['name']}, {record['attack']}, {record['ball']}"


def summary_rows(figures: dict[str, Any], norm: str | None = None) -> list[tuple[str, str]]:
    """Returns name and text of each figure of a job's summary.

    Args:
        norm: That of the ball, which comes before the other norms.
    """
    rows = [("clean accuracy", percent(figures["clean_accuracy"]))]
    if "epsilons" in figures:
        for epsilon, robust in zip(figures["epsilons"], figures["robust_accuracies"], strict=True):
            rows.append((f"robust accuracy at {epsilon:g}", percent(robust)))
    else:
        rows.append(("robust accuracy", percent(figures["robust_accuracy"])))
    if "target_reached" in figures:
        rows.append(("target reached", percent(figures["target_reached"])))
    undecided = figures["undecided"]
    rows.append(("undecided", f"{undecided}, counted neither as robust nor as broken" if undecided else "0"))
    if figures["zero_gradients_at_start"]:
        rows.append(("no gradient at the start", f"{figures['zero_gradients_at_start']:,} of {figures['attacked']:,}"))
    for p in sorted(("l0", "l1", "l2", "linf"), key=lambda p: p != norm):
        median, largest = figures[f"median_{p}"], figures[f"largest_{p}"]
        rows.append(
            (f"{p.replace('l', 'L', 1)} of what broke", _norms(median, largest, ",.0f" if p == "l0" else ",.4g"))
        )
    if figures["verified_8bit"] is not None:
        rows.append(("broken as 8-bit images", f"{figures['verified_8bit']:,} of {figures['verified']:,}"))
    forward, backward, each = figures["forward_passes"], figures["backward_passes"], max(1, figures["attacked"])
    rows.append(("passes", f"{forward:,} forward, {backward:,} backward"))
    rows.append(("passes a sample", f"{forward / each:.1f} forward, {backward / each:.1f} backward"))
    rows.append(("attack", f"{figures['attack_seconds']:.1f} s"))
    return rows


def stage_rows(stages: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Returns name and text of each stage for a summary.

    >>> counts = {"attacked": 9, "broken": 4, "robust_accuracy": 0.5, "forward_passes": 90, "backward_passes": 81}
    >>> stage_rows([{"name": "ce", **counts}])
    [('stage ce', 'broke 4 of 9, leaves 50.0 % robust, 171 passes')]
    """
    rows = []
    for stage in stages:
        robust, passes = percent(stage["robust_accuracy"]), stage["forward_passes"] + stage["backward_passes"]
        did = f"broke {stage['broken']:,} of {stage['attacked']:,}, leaves {robust} robust, {passes:,} passes"
        rows.append((f"stage {stage['name']}", did if stage["attacked"] else "tried no sample"))
    return rows


def _norms(median: float | None, largest: float | None, form: str) -> str:
    return "nothing broke" if median is None else f"median {median:{form}}, largest {largest:{form}}"


def percent(share: float | None) -> str:
    """Returns a share in percent with one decimal, a dash for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def job_line(record: dict[str, Any]) -> str:
    """Returns what a finished job came to, in one line."""
    figures, before = record["metrics"], "finished before: " if record.get("skipped") else ""
    return f"{before}robust {percent(figures['robust_accuracy'])}, {record['ball']}, {figures['attack_seconds']:.1f} s"


def print_sweep(frame: pl.DataFrame, folder: Path) -> None:
    """Prints the table of a sweep, the best of equal jobs marked, and where it lies."""
    console, unlimited = Console(), Console(width=1000)
    extra = ["attack_seconds", "clean_accuracy", "median_linf", "median_l2", "forward_passes"]
    shown = _most_telling(frame)
    table = _table(shown, extra)
    while extra and console.is_terminal and unlimited.measure(table).maximum > console.width:
        extra.pop()
        table = _table(shown, extra)
    wide = Console(width=max(console.width, unlimited.measure(table).maximum))  # no cell is ever cut
    wide.print(
        f"{len(frame):,} job{'s'[: len(frame) != 1]} in {escape(str(folder))}",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )
    wide.print(table)
    if len(shown) < len(frame):
        console.print(
            f"{len(frame) - len(shown):,} more rows are in sweep.csv; shown are the best, some that did not finish, "
            "and the smallest robust accuracies",
            soft_wrap=True,
            highlight=False,
        )
    if frame["best"].any():
        console.print("* smallest robust accuracy of equal balls", highlight=False)
    bad = frame.filter(pl.col("status") != "finished")
    for row in bad.head(TOLD).iter_rows(named=True):
        why = row["error"] or "see its run.log"
        console.print(f"! {row['job']} {row['status']}: {escape(why)}", style="red", soft_wrap=True, highlight=False)
    if len(bad) > TOLD:
        console.print(f"! and {len(bad) - TOLD:,} more that did not finish", style="red", highlight=False)
    console.print(
        f"results in {escape(str(folder))}: sweep.csv, sweep.parquet, a folder a job", soft_wrap=True, highlight=False
    )


def _most_telling(frame: pl.DataFrame) -> pl.DataFrame:
    """Returns at most `ROWS` rows, in order: the best, some that did not finish, the smallest robust accuracies."""
    ranked = (
        frame.with_row_index("_row")
        .with_columns(_bad=pl.col("status") != "finished")
        .with_columns(_told=pl.col("_bad") & (pl.col("_bad").cum_sum() <= TOLD))
        .sort(~pl.col("best"), ~pl.col("_told"), "robust_accuracy", nulls_last=True, maintain_order=True)
    )
    return ranked.head(ROWS).sort("_row").drop("_row", "_bad", "_told")


def _table(frame: pl.DataFrame, extra: list[str]) -> Table:
    """Returns the table with the options, the ball, robust accuracy, and those of the other columns in `extra`."""
    options = options_of(frame)
    shown = [*options, "ball"]
    shown += [name for name in frame.columns if name == "robust_accuracy" or name in extra]
    shown += [name for name in ("target_reached", "undecided") if _says_something(frame[name])]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in shown:
        header = _short(name, options) if name in options else SHORT.get(name, name)
        table.add_column(escape(header), justify="left" if name in {*options, "ball"} else "right", no_wrap=True)
    for row in frame.iter_rows(named=True):
        cells = [escape(_cell(name, row[name])) for name in shown]
        table.add_row(
            "*" if row["best"] else "" if row["status"] == "finished" else "!",
            *cells,
            style="bold" if row["best"] else None,
        )
    return table


def _short(option: str, options: list[str]) -> str:
    """Returns the last part of an option's name if no other option has the same."""
    last = option.rpartition(".")[2]
    return last if ["ball", *(other.rpartition(".")[2] for other in options)].count(last) == 1 else option


def _says_something(column: pl.Series) -> bool:
    return bool(column.cast(pl.Float64).fill_null(0).sum())


def _cell(name: str, value: Any) -> str:
    if name.endswith("_accuracy") or name == "target_reached":
        return percent(value)
    if value is None:
        return "-" if name in SHORT or name == "ball" else "null"
    if isinstance(value, float):
        return f"{value:.1f}" if name == "attack_seconds" else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and name in SHORT else str(value)
