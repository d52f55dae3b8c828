"""The folder of one job, and its record `run.json`: written at the start, replaced at the end."""

import itertools
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raiopt.results.files import check_folder, make_folder, read_file, write_json
from raiopt.results.lock import locked

SCHEMA = 1
"""The number of the layout of a run folder; rises when an older reader would misread a newer folder."""

PACKAGES = ("raiopt", "torch", "torchvision", "numpy", "hydra-core", "hydra-zen", "polars", "safetensors")


class RunFolder:
    """A job's folder; `record` is what run.json holds.

    Args:
        patience: Seconds to wait for another process that works in it.
    """

    def __init__(self, path: str | os.PathLike[str], patience: float = 0) -> None:
        self.path, self.patience = Path(path), patience
        self.record: dict[str, Any] = {}

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def finished_record(self) -> dict[str, Any] | None:
        """Returns the record of a finished run of this schema, if the folder holds one."""
        record = read_record(self.path)
        return record if record.get("status") == "finished" and record.get("schema") == SCHEMA else None

    def save(self, **fields: Any) -> None:
        """Adds fields to the record and replaces run.json in one step, so that no reader sees half of it."""
        self.record.update(fields)
        write_json(self / "run.json", self.record, indent=2)

    def set_aside(self) -> Path | None:
        """Moves everything that is in the folder to `replaced/` beside it, if there is a record; returns where to.

        What a run left behind is not lost when its question is asked again by force, or by a newer version.
        """
        if not (self / "run.json").exists():
            return None
        place = self.path.parent / "replaced"
        taken = (place / f"{self.path.name}-{number}" for number in itertools.count(1))
        target = next(path for path in taken if not path.exists())
        make_folder(place)
        os.replace(self.path, target)
        return target

    @contextmanager
    def recording(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Locks the folder and writes the record as running; on leaving, as finished, or as failed with the error.

        Raises:
            FileExistsError: If another process works in the folder.
        """
        with locked(check_folder(self.path), self.patience):
            began = time.perf_counter()
            self.save(
                schema=SCHEMA,
                status="running",
                **about,
                started=datetime.now(UTC).isoformat(timespec="seconds"),
                versions=versions(),
                git=git_state(Path.cwd()),
            )
            try:
                yield
            except BaseException as error:
                interrupted = isinstance(error, KeyboardInterrupt)
                message = str(error) or ("interrupted" if interrupted else type(error).__name__)
                self.save(
                    status="killed" if interrupted else "failed",
                    seconds=round(time.perf_counter() - began, 3),
                    error={"type": type(error).__name__, "message": message},
                )
                raise
            self.save(status="finished", seconds=round(time.perf_counter() - began, 3))


def mark_killed(path: Path, about: Mapping[str, Any], why: str) -> None:
    """Writes into the record of a job that can no longer do so itself that it was killed, and why.

    Args:
        about: What the record shall say where the job did not come to writing one.
    """
    folder = RunFolder(path)
    make_folder(path, parents=True)
    folder.record = {"schema": SCHEMA, **about, **read_record(path)}
    folder.save(status="killed", error={"type": "Killed", "message": why})


def read_record(path: Path) -> dict[str, Any]:
    """Returns the content of run.json in the folder `path`; empty if there is none that can be read."""
    try:
        record = json.loads(read_file(path / "run.json"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


@cache
def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on; looked up once."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


@cache
def git_state(path: Path) -> dict[str, Any] | None:
    """Returns the commit that is checked out at `path` and whether files differ from it; None outside a checkout.

    Asked once: a process has its code from then, whatever is changed afterwards.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=path, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None
