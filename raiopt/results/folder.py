"""The folder of one job, and its record `run.json`: written at the start, replaced at the end."""

import itertools
import json
import os
import platform
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raiopt.results.checkouts import own_state
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

    def finished_record(self, job_key: str | None) -> dict[str, Any] | None:
        """Returns the record of a finished run of this question and schema, if the folder holds one.

        Raises:
            FileExistsError: If the folder holds the results of another question, all of them or those of its first
                batches.
        """
        record = read_record(self.path)
        if (other := self.other_question(job_key)) is not None:
            raise FileExistsError(
                f"{self.path} holds the results of another question: {shlex.join(other.get('command') or ['?'])}. "
                "Nothing was overwritten; give another name=... or hydra.run.dir=..., or force=true, which moves them "
                f"to {self.path.parent / 'replaced'}."
            )
        return record if _is_ours(record) and record["status"] == "finished" else None

    def other_question(self, job_key: str | None) -> dict[str, Any] | None:
        """Returns the record of a run of another question whose results a new run would spoil; None if there is none.

        These are the results of a finished run, and the finished batches of one that did not come to its end.
        """
        record, begun = read_record(self.path), read_record(self / "chunks")
        held = [begun, *([record] if record.get("status") == "finished" else [])]
        return next((one for one in held if _is_ours(one) and one.get("job_key") != job_key), None)

    def has_results(self, job_key: str | None) -> bool:
        """Says whether a new run would have something to move aside: a finished run, or results of another question."""
        return self.other_question(job_key) is not None or self.finished_record(job_key) is not None

    def save(self, **fields: Any) -> None:
        """Adds fields to the record and replaces run.json in one step, so that no reader sees half of it."""
        self.record.update(fields)
        write_json(self / "run.json", self.record, indent=2)

    def set_aside(self) -> Path | None:
        """Moves everything that is in the folder to `replaced/` beside it, if there is a record; returns where to.

        What a run left behind is not lost when its question is asked again by force, or by a newer version.

        Raises:
            FileExistsError: If another process works in it.
            ValueError: If it is the working directory, or holds that.
        """
        if not (self / "run.json").exists():
            return None
        if Path.cwd().is_relative_to(self.path.resolve()):
            raise ValueError(f"{self.path} cannot move to replaced/, for it holds the working directory.")
        with locked(self.path):  # says so if another process works in it
            pass
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
                git=own_state(),
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


def _is_ours(record: Mapping[str, Any]) -> bool:
    return record.get("schema") == SCHEMA


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
