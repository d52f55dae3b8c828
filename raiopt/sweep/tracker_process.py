"""A separate process that logs the jobs of a command, so that a tracker cannot stop, slow down or fail a job."""

import math
import os
import re
import shlex
import sys
from concurrent.futures import Future, TimeoutError, wait
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from pebble import ProcessExpired, ProcessPool

from raiopt.config.jobs import begin_worker
from raiopt.processes import process_context
from raiopt.results.files import open_to_append

if TYPE_CHECKING:
    from raiopt.results.trackers import Mlflow, Session

SERVER_SECONDS = 30.0
"""Seconds for logging a job to a server; MLflow itself gives up sooner if the server does not answer."""
LOCAL_SECONDS = 120.0
"""Seconds for operations on this machine only, which may be busy."""
MAX_FAILURES_IN_A_ROW = 2
"""Consecutive failures after which, at the end of the command, no further jobs are logged."""


class TrackerProcess:
    """A process that logs folders one by one, in one session of the tracker.

    Args:
        place: The MLflow location where they are logged.
    """

    def __init__(self, place: "Mlflow") -> None:
        self.place = place
        self.limit = (LOCAL_SECONDS if place.file else SERVER_SECONDS) * (20 if place.artifacts == "all" else 1)
        context: Any = process_context("spawn")
        self._pool = ProcessPool(1, initializer=_begin, context=context)
        self._jobs: dict[Path, Future[str | None]] = {}
        self._failures_in_a_row = 0
        self._begun = self._scheduled(LOCAL_SECONDS, "prepare")

    def log(self, folder: Path) -> None:
        """Puts a job's folder into the queue."""
        self._jobs[folder] = self._scheduled(self.limit, "log", str(folder.absolute()))

    def _scheduled(self, limit: float, *call: str) -> Future[str | None]:
        try:
            future = self._pool.schedule(_call, args=(self.place, *call), timeout=limit)
        except Exception as error:  # the system cannot start more processes
            future = Future()
            future.set_exception(error)
        future.add_done_callback(self._count)
        return future

    def _count(self, future: "Future[str | None]") -> None:
        self._failures_in_a_row = 0 if _reason(future) is None else self._failures_in_a_row + 1

    def _is_over(self, futures: list["Future[str | None]"], end: float) -> bool:
        """Waits briefly; returns whether the queue is empty."""
        return not wait(futures, 0.1).not_done or self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW or monotonic() > end

    def end(self, patience: float = math.inf) -> bool:
        """Waits for the queue, and prints what was and was not logged; returns whether everything was logged.

        Args:
            patience: The largest number of seconds to wait, in addition to the limits per job.
        """
        futures, end = [self._begun, *self._jobs.values()], monotonic() + patience
        try:
            while not self._is_over(futures, end):
                pass
            if self._jobs and not self._lost():
                futures.append(self._scheduled(self.limit, "end"))
                while not self._is_over(futures, end):
                    pass
        except KeyboardInterrupt:  # a second Ctrl-C
            pass
        self._pool.stop()
        self._pool.join()
        is_logged = not self._lost() and _reason(futures[-1]) is None
        with suppress(OSError):
            if is_logged and self._jobs:
                print(f"logged in {self.place.public_uri}, experiment {self.place.experiment}", flush=True)
            elif self._jobs:
                self._report(next(filter(None, map(_reason, futures)), "there was no time for it"))
        return is_logged

    def _lost(self) -> list[Path]:
        return [folder for folder, future in self._jobs.items() if _reason(future) is not None]

    def _report(self, why: str) -> None:
        """Reports jobs that were not logged, on the terminal and in the jobs' own logs."""
        lost = self._lost()
        count = f"{len(lost)} of {len(self._jobs)} jobs are" if len(self._jobs) > 1 else "the job is"
        which = f"{count} not logged" if lost else "the sweep as a whole is not logged"
        folders = {path.parent if (path.parent / "sweep.json").exists() else path for path in lost or self._jobs}
        words = [f"tracker.experiment={self.place.experiment}"]
        if "@" not in self.place.uri:  # otherwise it comes from the environment
            words.append(f"tracker.uri={self.place.uri}")
        remedy = shlex.join(["raiopt", "track", *sorted(os.path.relpath(folder) for folder in folders), *words])
        line = f"tracker=mlflow: {which}: {why}. Results are complete without it. To log them later: {remedy}"
        print(f"raiopt: {line}", file=sys.stderr, flush=True)
        for folder in lost:
            with suppress(OSError), open_to_append(folder / "run.log") as log:
                log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S,000} WARNING raiopt: {line}\n".encode())


def _reason(future: Future[str | None]) -> str | None:
    """Returns why something was not logged; empty if there was no time for it, None if it was logged."""
    if not future.done():
        return ""
    try:
        return future.result()
    except TimeoutError:
        return "it took too long"
    except ProcessExpired as error:
        return f"its process ended with exit code {error.exitcode}"
    except Exception as error:
        return f"its process failed: {type(error).__name__}: {error}"


def _begin() -> None:
    """Prepares the process, and discards MLflow's output, such as every step of creating a database."""
    begin_worker(1, None)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


@cache
def _session(place: "Mlflow") -> "Session":
    from raiopt.results.trackers import Session

    return Session(place)


def _call(place: "Mlflow", name: str, *folders: str) -> str | None:
    """Calls a method of the session, or prepares MLflow; returns the error as a string, readable without MLflow."""
    from raiopt.results.trackers import prepare

    try:
        prepare() if name == "prepare" else getattr(_session(place), name)(*map(Path, folders))
    except Exception as error:
        return error_line(error, place)
    return None


def error_line(error: BaseException, place: "Mlflow") -> str:
    """Returns an error of MLflow in one line, without the user and password of the server's address."""
    text = " ".join(str(error).replace(place.uri, place.public_uri).split())
    if re.search("HTTPConnectionPool|HTTPSConnectionPool", text):
        return f"{place.public_uri} does not answer"
    text = text.partition(" [SQL:")[0].partition(" (Background on this error")[0]
    return text[:300].removesuffix(".") or type(error).__name__
