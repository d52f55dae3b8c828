"""`raiopt list`: what the options of a group are, and the runs that are in a folder."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raiopt.listing import list_options
from raiopt.reports.runs import DEPTH, load_run
from raiopt.results.records import JobRecord, read_jobs
from raiopt.results.shards import merged_shards
from raiopt.results.terminal import TOLD, percent
from raiopt.verbs import Parser

COLUMNS = ("folder", "when", "model", "data", "attack", "ball", "robust", "status")
LEFT_OUT = ("data", "when", "attack", "model", "ball")
"""Columns without which the table does where there is no room, in this order."""


def main(words: list[str]) -> int:
    """Prints what the groups offer that are named, or all of them; after the word `runs`, the runs in a folder."""
    if words[:1] == ["runs"]:
        parser = Parser("list runs", "Lists the runs and sweeps below a folder, the newest first.")
        parser.add_argument("folder", nargs="?", default="outputs", type=Path, help="default: outputs")
        return list_runs(parser.parse_args(words[1:]).folder)
    parser = Parser("list", "Says what the groups offer, or with `raiopt list runs`, which runs there are.")
    parser.add_argument("group", nargs="*", help="such as optim, model or data; default: all of them")
    groups = parser.parse_args(words).group
    from raiopt.sweep.plugins import register_plugins

    register_plugins()
    return list_options(groups)


@dataclass(frozen=True)
class Entry:
    """A run, or a sweep as one: its folder, when it began (ISO, UTC), the cells of its row, and what went wrong."""

    folder: Path
    started: str
    cells: dict[str, str]
    wrong: str | None = None


def list_runs(folder: Path) -> int:
    """Prints a table of the runs and sweeps below a folder, the newest first.

    Raises:
        FileNotFoundError: If there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: `raiopt` makes it with the first run, or name another folder.")
    entries = [_entry(path, folder) for path in _places(folder, DEPTH)]
    if not entries:
        raise FileNotFoundError(f"{folder} holds no runs; name the folder that outputs=... led to.")
    _print(sorted(entries, key=lambda entry: (entry.started, str(entry.folder)), reverse=True), folder)
    return 0


def _places(folder: Path, depth: int) -> Iterator[Path]:
    """Yields the folders of sweeps, and those of the runs that belong to none."""
    if any((folder / name).exists() for name in ("run.json", "sweep.json")):
        yield folder
    elif depth:
        for entry in os.scandir(folder):
            if (
                entry.is_dir(follow_symlinks=False)
                and entry.name not in ("replaced", "figures")
                and not entry.name.startswith(".")
            ):
                yield from _places(Path(entry.path), depth - 1)


def _entry(path: Path, root: Path) -> Entry:
    place = path.relative_to(root) if path != root else path
    if (path / "run.json").exists():
        jobs, status = [load_run(path).job], ""
    else:
        try:
            jobs = merged_shards(path, read_jobs(path))
        except ValueError as error:
            return Entry(place, "", {"status": "unreadable"}, str(error))
        finished = sum(job.status == "finished" for job in jobs)
        status = f"{len(jobs):,} job{'s'[: len(jobs) != 1]}" + f", {finished:,} finished" * (finished < len(jobs))
    bad = [job for job in jobs if job.status not in ("finished", "running")]
    wrong = f"{len(bad)} of {len(jobs)} jobs; the first {bad[0].status}: " if bad and status else ""
    return Entry(
        place,
        max(str(job.record.get("started", "")) for job in jobs),
        _cells(jobs) | {"status": status or jobs[0].status},
        f"{wrong or bad[0].status + ': '}{bad[0].error or 'see its run.log'}" if bad else None,
    )


def _cells(jobs: Sequence[JobRecord]) -> dict[str, str]:
    """Returns what the jobs of a sweep have in common, or how many of each there are; the smallest robust accuracy."""
    robust = [job.metrics["robust_accuracy"] for job in jobs if "robust_accuracy" in job.metrics]
    return {
        "model": _common([(job.record.get("model") or {}).get("name") for job in jobs], "models"),
        "data": _common([(job.record.get("data") or {}).get("name") for job in jobs], "data sets"),
        "attack": _common([job.record.get("attack") for job in jobs], "attacks"),
        "ball": _common([job.record.get("ball") for job in jobs], "balls"),
        "robust": percent(min(robust, default=None)),
    }


def _common(values: Sequence[Any], several: str) -> str:
    known = {json.dumps(value): value for value in values if value is not None}
    return f"{len(known)} {several}" if len(known) > 1 else str(next(iter(known.values()), "-"))


def _print(entries: Sequence[Entry], folder: Path) -> None:
    from rich.console import Console
    from rich.markup import escape

    console, unlimited = Console(), Console(width=1000)
    table, left_out = _table(entries, COLUMNS), list(LEFT_OUT)
    while console.is_terminal and left_out and unlimited.measure(table).maximum > console.width:
        left_out.pop(0)
        table = _table(entries, [name for name in COLUMNS if name in left_out or name not in LEFT_OUT])
    wide = console if console.is_terminal else Console(width=max(console.width, unlimited.measure(table).maximum))
    wide.print(table)
    bad = [entry for entry in entries if entry.wrong]
    for entry in bad[:TOLD]:
        console.print(f"! {escape(f'{entry.folder}: {entry.wrong}')}", style="red", soft_wrap=True, highlight=False)
    if len(bad) > TOLD:
        console.print(f"! and {len(bad) - TOLD:,} more", style="red", highlight=False)
    console.print(
        f"{len(entries):,} in {escape(str(folder))}; one of them: raiopt show FOLDER",
        soft_wrap=True,
        highlight=False,
    )


def _table(entries: Sequence[Entry], shown: Sequence[str]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in shown:
        table.add_column(
            name, justify="right" if name == "robust" else "left", no_wrap=name != "folder", overflow="fold"
        )
    for entry in entries:
        cells = {"folder": str(entry.folder), "when": _when(entry.started)} | entry.cells
        table.add_row(*[escape(cells.get(name, "-")) for name in shown], style="red" if entry.wrong else None)
    return table


def _when(started: str) -> str:
    """Returns a time of UTC as this machine's clock says it, to the minute."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return "-"
