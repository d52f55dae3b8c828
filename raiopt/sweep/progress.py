"""The progress of a sweep: a live display on a terminal, otherwise one line for each job that ended."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raiopt.config.explain import typed
from raiopt.results.record import Record
from raiopt.results.records import first_line
from raiopt.results.terminal import job_line
from raiopt.results.words import percent
from raiopt.sweep.task import Task

MAX_JOBS_SHOWN = 8
"""The largest number of running jobs that are listed."""


class Progress:
    """A progress display, used as a context manager; without a terminal it prints one line for each job that ended.

    Args:
        total: Number of jobs that will run; None: not known.
        skipped: Number of jobs that were finished before.
        swept: The options that distinguish the jobs; empty: all given options.
    """

    def __init__(self, total: int | None, skipped: int = 0, swept: Sequence[str] = ()) -> None:
        self.total, self.skipped, self.swept = total, skipped, set(swept)
        self.done, self.failed = 0, 0
        self.may_wait = False  # started jobs may still be in a queue
        self.best: dict[str, tuple[float, str]] = {}
        self._running: dict[str, tuple[Task, float]] = {}
        self._began = time.monotonic()
        self._console = Console(stderr=True)
        live = self._console.is_terminal
        self._live = Live(self, console=self._console, refresh_per_second=4, transient=True) if live else None

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, tasks: Sequence[Task]) -> None:
        """Marks tasks as running."""
        self._running.update({task.key: (task, time.monotonic()) for task in tasks})

    def ended(self, task: Task, record: Record) -> None:
        """Counts a task as ended; prints its result if it failed, or if there is no live display."""
        self._running.pop(task.key, None)
        finished, metrics = record.status == "finished", record.final_metrics
        self.done += finished
        self.failed += not finished
        if metrics is not None:
            robust, ball = metrics.robust_accuracy, str(record.ball)
            if robust is not None:
                self.best[ball] = min(self.best.get(ball, (2.0, "")), (robust, self.words(task)))
        line = f"{task.about['job_number']:4} {self.words(task)}: {_result(task, record)}"
        if self._live is None:
            _print(line)
        elif not finished:
            self._console.print(escape(line), style="red", soft_wrap=True, highlight=False)

    def words(self, task: Task) -> str:
        """Returns the options that distinguish the task from the others of its sweep."""
        own = {key: value for key, value in task.about["overrides"].items() if key in self.swept or not self.swept}
        return " ".join(f"{key}={_short(value)}" for key, value in own.items())

    def __rich__(self) -> Group:
        over = self.done + self.failed
        counts = Table.grid(padding=(0, 2))
        total = "" if self.total is None else f" of {self.total}"
        failed = Text(f"{self.failed} failed", style="red" if self.failed else "dim")
        state = "running or waiting" if self.may_wait else "running"
        cells = [Text(f"{over}{total} jobs"), Text(f"{len(self._running)} {state}"), failed]
        cells += [Text(f"{self.skipped} finished before", style="dim")] * bool(self.skipped)
        bar = ProgressBar(total=self.total, completed=over, width=16)
        counts.add_row(bar, *cells)
        rows = [counts, _row(self._left(over))]
        now = time.monotonic()
        for task, since in list(self._running.values())[:MAX_JOBS_SHOWN]:
            rows.append(_row(f"  {_clock(now - since):>8}  {self.words(task)}"))
        if len(self._running) > MAX_JOBS_SHOWN:
            rows.append(_row(f"  and {len(self._running) - MAX_JOBS_SHOWN} more", "dim"))
        for ball, (robust, words) in list(self.best.items())[:3]:
            rows.append(_row(f"best: robust {percent(robust)}, {ball}  {words}", "bold"))
        return Group(*rows)

    def _left(self, over: int) -> str:
        passed = time.monotonic() - self._began
        if self.total is None or not over:
            return f"{_clock(passed)} so far"
        return f"{_clock(passed)} so far, about {_clock(passed / over * (self.total - over))} left"


def _print(line: str) -> None:
    try:
        print(line, flush=True)
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended; the sweep continues
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _short(value: Any) -> str:
    """Returns a value in command-line syntax, with fractions rounded to six digits."""
    text = typed(value)
    return f"{value:.6g}" if isinstance(value, float) and len(text) > 8 else text


def _row(text: str, style: str = "") -> Any:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _result(task: Task, record: Record) -> str:
    if record.final_metrics is not None:
        return job_line(record)
    why = first_line(record.error.message if record.error else "no result") or ""
    return f"{record.status}: {why} ({os.path.relpath(Path(task.folder))})"
