"""`raiopt list`: lists the options of a group, or the runs in a folder."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raiopt import checks
from raiopt.config.listing import list_options
from raiopt.reports.runs import DEPTH, load_run
from raiopt.results.records import JobRecord, read_jobs
from raiopt.results.shards import merged_shards
from raiopt.results.terminal import print_table, print_wrong, say
from raiopt.results.words import percent, plural
from raiopt.verbs import Parser

COLUMNS = ("folder", "when", "model", "data", "attack", "ball", "robust", "status")
LEFT_OUT = ("data", "when", "attack", "model", "ball")
"""Columns to drop, in this order, if a table does not fit the terminal."""


def main(words: list[str]) -> int:
    """Prints the options of some or all groups; with `runs` as first word, the runs in a folder."""
    if words[:1] == ["runs"]:
        parser = Parser("list runs", "Lists the runs and sweeps below a folder, the newest first.")
        parser.add_argument("folder", nargs="?", default="outputs", type=Path, help="default: outputs")
        return list_runs(parser.parse_args(words[1:]).folder)
    parser = Parser("list", "Lists the options of groups, or with `raiopt list runs` the runs in a folder.")
    parser.add_argument("group", nargs="*", help="such as optim, model or data; default: all of them")
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="a folder of your own options")
    given = parser.parse_args(words)
    return list_options(given.group, ["--config-dir", given.config_dir] if given.config_dir else [])


@dataclass(frozen=True)
class Entry:
    """A row of the table, for a run or a sweep: its folder, start (ISO, UTC), cells, and an error, if any."""

    folder: Path
    started: str
    cells: dict[str, str]
    wrong: str | None = None


def list_runs(folder: Path) -> int:
    """Prints a table of the runs and sweeps below a folder, the newest first.

    Raises:
        FileNotFoundError: If the folder does not exist, or has no run in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist: the first run creates it, or give another folder.")
    entries = [_entry(path, folder) for path in _places(folder, DEPTH)]
    if not entries:
        raise FileNotFoundError(f"{folder} contains no runs; give the folder of outputs=...")
    _print(sorted(entries, key=lambda entry: (entry.started, str(entry.folder)), reverse=True), folder)
    return 0


def _places(folder: Path, depth: int) -> Iterator[Path]:
    """Yields the folders of sweeps, and of the runs outside sweeps."""
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
        status = plural(len(jobs), "job") + f", {finished:,} finished" * (finished < len(jobs))
    bad = [job for job in jobs if job.status not in ("finished", "running")]
    wrong = f"{len(bad)} of {plural(len(jobs), 'job')}; the first {bad[0].status}: " if bad and status else ""
    return Entry(
        place,
        max(job.record.started for job in jobs),
        _cells(jobs) | {"status": status or jobs[0].status},
        f"{wrong or bad[0].status + ': '}{bad[0].error or 'see its run.log'}" if bad else None,
    )


def _cells(jobs: Sequence[JobRecord]) -> dict[str, str]:
    """Returns the cells of a sweep: values common to all jobs, else their number; and the smallest robust accuracy."""
    metrics, records = (
        [job.metrics for job in jobs if job.metrics],
        [job.record for job in jobs if job.record.is_described],
    )
    return {
        "model": _common([record.model.name for record in records], "models"),
        "data": _common([record.data.name for record in records], "data sets"),
        "attack": _common([record.attack_words for record in records], "attacks"),
        "ball": _common([ball for record in records if (ball := record.ball_words)], "balls"),
        "robust": percent(min((m.robust_accuracy for m in metrics if m.robust_accuracy is not None), default=None)),
    }


def _common(values: Sequence[str], several: str) -> str:
    known = dict.fromkeys(values)
    return f"{len(known)} {several}" if len(known) > 1 else next(iter(known), "-")


def _print(entries: Sequence[Entry], folder: Path) -> None:
    shown = [[name for name in COLUMNS if name not in LEFT_OUT[:count]] for count in range(len(LEFT_OUT) + 1)]
    print_table([_table(entries, names) for names in shown], folds=True)
    print_wrong([f"{entry.folder}: {entry.wrong}" for entry in entries if entry.wrong], "more")
    say(f"{plural(len(entries), 'run or sweep', 'runs and sweeps')} in {folder}; for details: raiopt show FOLDER")


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
        table.add_row(
            *[escape(checks.printable(cells.get(name, "-"))) for name in shown], style="red" if entry.wrong else None
        )
    return table


def _when(started: str) -> str:
    """Converts a UTC time to local time, to the minute."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return "-"
