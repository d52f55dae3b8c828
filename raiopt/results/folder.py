"""The folder of one job, and its record `run.json`: written at the start, replaced at the end."""

import itertools
import os
import platform
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raiopt.results.checkouts import own_state
from raiopt.results.files import check_folder, make_folder, write_json
from raiopt.results.lock import locked
from raiopt.results.record import ErrorInfo, Record
from raiopt.results.record_reader import read_record

PACKAGES = ("raiopt", "torch", "torchvision", "numpy", "hydra-core", "hydra-zen", "polars", "safetensors")


class RunFolder:
    """A job's folder; `record` is what run.json holds.

    Args:
        patience: Seconds to wait for another process that works in it.
    """

    def __init__(self, path: str | os.PathLike[str], patience: float = 0) -> None:
        self.path, self.patience = Path(path), patience
        self.record = Record()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def finished_record(self, job_key: str | None) -> Record | None:
        """Returns the record of a finished run of this question and schema, if the folder holds one.

        Raises:
            FileExistsError: If the folder holds the results of another question, all of them or those of its first
                batches.
        """
        record = read_record(self.path)
        if (other := self.other_question(job_key)) is not None:
            raise FileExistsError(
                f"{self.path} holds the results of another question: {shlex.join(other.command or ['?'])}. "
                "Nothing was overwritten; give another name=... or hydra.run.dir=..., or force=true, which moves them "
                f"to {self.path.parent / 'replaced'}."
            )
        return record if record and record.status == "finished" else None

    def other_question(self, job_key: str | None) -> Record | None:
        """Returns the record of a run of another question whose results a new run would spoil; None if there is none.

        These are the results of a finished run, and the finished batches of one that did not come to its end.
        """
        record, begun = read_record(self.path), read_record(self / "chunks")
        held = [begun, record if record and record.status == "finished" else None]
        return next((one for one in held if one and one.job_key != job_key), None)

    def has_results(self, job_key: str | None) -> bool:
        """Says whether a new run would have something to move aside: a finished run, or results of another question."""
        return self.other_question(job_key) is not None or self.finished_record(job_key) is not None

    def save(self, **fields: Any) -> None:
        """Adds fields to the record and replaces run.json in one step, so that no reader sees half of it."""
        self.record = replace(self.record, **fields)
        write_record(self.path, self.record)

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
        target = replaced_path(self.path)
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
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self.record = Record(**about, started=started, versions=versions(), git=own_state())
            self.save()
            try:
                yield
            except BaseException as error:
                interrupted = isinstance(error, KeyboardInterrupt)
                message = str(error) or ("interrupted" if interrupted else type(error).__name__)
                self.save(
                    status="killed" if interrupted else "failed",
                    seconds=round(time.perf_counter() - began, 3),
                    error=ErrorInfo(type(error).__name__, message),
                )
                raise
            self.save(status="finished", seconds=round(time.perf_counter() - began, 3))


def write_record(folder: Path, record: Record) -> None:
    """Replaces run.json in a folder in one step, so that no reader sees half of it."""
    write_json(folder / "run.json", record.as_json(), indent=2)


def replaced_path(path: Path) -> Path:
    """Returns a new path in `replaced/`, next to a file or folder that is to move there."""
    place = make_folder(path.parent / "replaced")
    return next(new for number in itertools.count(1) if not (new := place / f"{path.name}-{number}").exists())


def mark_killed(path: Path, about: Mapping[str, Any], why: str) -> Record:
    """Records that a job was killed which can no longer do so itself, and why; returns the record.

    Args:
        about: The fields of the record if the job wrote none.
    """
    make_folder(path, parents=True)
    record = killed(read_record(path) or Record(**about), why)
    write_record(path, record)
    return record


def killed(record: Record, why: str) -> Record:
    """Returns the record of a job that was killed."""
    return replace(record, status="killed", error=ErrorInfo("Killed", why))


@cache
def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on; looked up once."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
