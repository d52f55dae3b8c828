"""A process that logs the jobs of a command, so that no tracker can stop, slow down or fail a job."""

import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, TimeoutError, wait
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pebble import ProcessExpired, ProcessPool
from yaml import YAMLError

from raiopt.jobs import begin_worker
from raiopt.processes import process_context
from raiopt.results.files import open_to_append, read_file

if TYPE_CHECKING:
    from raiopt.results.trackers import Mlflow, Session

LIMIT = 30.0
"""Seconds that may be spent on a job; MLflow itself gives up sooner where a server does not answer."""

LOCAL = 120.0
"""Seconds that what happens on this machine alone may take: it may be busy."""

IN_A_ROW = 2
"""After so many failures in a row, at the end of the command, no other jobs are tried."""


class TrackerProcess:
    """A process that logs folders, one after another, with a session of its own.

    Args:
        place: Where they are logged.
    """

    def __init__(self, place: "Mlflow") -> None:
        self.place = place
        self.limit = (LOCAL if place.file else LIMIT) * (20 if place.artifacts == "all" else 1)
        context: Any = process_context("spawn")
        self._pool = ProcessPool(1, initializer=_begin, context=context)
        self._jobs: dict[Path, Future[str | None]] = {}
        self._in_a_row = 0
        self._begun = self._asked(_prepare, LOCAL)

    def tell(self, folder: Path) -> None:
        """Puts a job's folder into the queue."""
        self._jobs[folder] = self._asked(_log, self.limit, str(folder.absolute()))

    def _asked(self, function: Callable[..., str | None], limit: float, *args: str) -> Future[str | None]:
        try:
            future = self._pool.schedule(function, args=(self.place, *args), timeout=limit)
        except Exception as error:  # the system gives no more processes
            future = Future()
            future.set_exception(error)
        future.add_done_callback(self._count)
        return future

    def _count(self, future: "Future[str | None]") -> None:
        self._in_a_row = 0 if _why(future) is None else self._in_a_row + 1

    def _is_over(self, told: list["Future[str | None]"], end: float) -> bool:
        """Waits a little; returns whether there is nothing left to wait for."""
        return not wait(told, 0.1).not_done or self._in_a_row >= IN_A_ROW or monotonic() > end

    def end(self, patience: float = math.inf) -> bool:
        """Waits for what is in the queue; returns whether all is logged, after it said so, or what is not.

        Args:
            patience: Seconds to wait at most, beside the limits of each job.
        """
        told, end = [self._begun, *self._jobs.values()], monotonic() + patience
        try:
            while not self._is_over(told, end):
                pass
            if self._jobs and not self._lost():
                told.append(self._asked(_end, self.limit))
                while not self._is_over(told, end):
                    pass
        except KeyboardInterrupt:  # no more patience
            pass
        self._pool.stop()
        self._pool.join()
        is_logged = not self._lost() and _why(told[-1]) is None
        with suppress(OSError):
            if is_logged and self._jobs:
                print(f"logged in {self.place.shown}, experiment {self.place.experiment}", flush=True)
            elif self._jobs:
                self._report(next((text for future in told if (text := _why(future))), "it did not come to it"))
        return is_logged

    def _lost(self) -> list[Path]:
        return [folder for folder, future in self._jobs.items() if _why(future) is not None]

    def _report(self, why: str) -> None:
        """Says what is not logged, on the terminal and in the logs of the jobs."""
        lost = self._lost()
        count = f"{len(lost)} of {len(self._jobs)} jobs are" if len(self._jobs) > 1 else "the job is"
        which = f"{count} not logged" if lost else "the sweep as a whole is not logged"
        folders = {path.parent if (path.parent / "sweep.json").exists() else path for path in lost or self._jobs}
        words = [f"tracker.experiment={self.place.experiment}"]
        if "@" not in self.place.uri:  # else it comes from the environment
            words.append(f"tracker.uri={self.place.uri}")
        remedy = shlex.join(["raiopt", "track", *sorted(os.path.relpath(folder) for folder in folders), *words])
        line = f"tracker=mlflow: {which}: {why}. Results are complete without it. To log them later: {remedy}"
        print(f"raiopt: {line}", file=sys.stderr, flush=True)
        for folder in lost:
            with suppress(OSError), open_to_append(folder / "run.log") as log:
                log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S,000} WARNING raiopt: {line}\n".encode())


def _why(future: Future[str | None]) -> str | None:
    """Returns why something was not logged; empty if the tracker did not come to it, None if it was."""
    if not future.done():
        return ""
    try:
        return future.result()
    except TimeoutError:
        return "it takes too long"
    except ProcessExpired as error:
        return f"its process ended with exit code {error.exitcode}"
    except Exception as error:
        return f"its process failed: {type(error).__name__}: {error}"


def _begin() -> None:
    """Prepares the process: what MLflow prints, as each step of a new database, is of no interest."""
    begin_worker(1, None)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


@cache
def _session(place: "Mlflow") -> "Session":
    from raiopt.results.trackers import Session

    return Session(place)


def _prepare(place: "Mlflow") -> str | None:
    from raiopt.results.trackers import prepare

    return _said(place, prepare)


def _log(place: "Mlflow", folder: str) -> str | None:
    return _said(place, lambda: _session(place).log(Path(folder), asked(Path(folder))))


def _end(place: "Mlflow") -> str | None:
    return _said(place, lambda: _session(place).end())


def _said(place: "Mlflow", act: Callable[[], object]) -> str | None:
    """Does something and returns what went wrong, as a text: the errors of MLflow need not be known elsewhere."""
    try:
        act()
    except Exception as error:
        return told_error(error, place)
    return None


def told_error(error: BaseException, place: "Mlflow") -> str:
    """Returns in one line what MLflow says went wrong, without user and password of its address."""
    text = " ".join(str(error).replace(place.uri, place.shown).split())
    if re.search("HTTPConnectionPool|HTTPSConnectionPool", text):
        return f"{place.shown} does not answer"
    text = text.partition(" [SQL:")[0].partition(" (Background on this error")[0]
    return text[:300].removesuffix(".") or type(error).__name__


def asked(folder: Path) -> dict[str, Any] | None:
    """Returns all options of a job by their dotted names, from the config in its folder; None if there is none.

    References to other options are followed; anything else that a config may refer to is no business of a tracker.
    """
    try:
        config = OmegaConf.to_container(
            OmegaConf.create(read_file(folder / ".hydra" / "config.yaml").decode()), resolve=False
        )
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException):
        return None
    options = dict(_flat(config))
    return {name: options.get(value[2:-1], value) if _refers(value) else value for name, value in options.items()}


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif not str(key).startswith("_"):
            yield f"{prefix}{key}", value


def _refers(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("${") and value.endswith("}")
