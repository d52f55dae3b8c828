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
    """A job's folder; `record` is the content of run.json.

    Args:
        patience: Seconds to wait if another process is using the folder.
    """

    def __init__(self, path: str | os.PathLike[str], patience: float = 0) -> None:
        self.path, self.patience = Path(path), patience
        self.record = Record()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def finished_record(self, job_key: str | None) -> Record | None:
        """Returns the record of a finished run with this job key and schema, if the folder contains one.

        Raises:
            FileExistsError: If the folder contains complete or partial results of another job.
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
        """Returns the record of another job's run whose results a new run would overwrite; None if there is none.

        Such results are those of a finished run, or the finished batches of an incomplete one.
        """
        record, begun = read_record(self.path), read_record(self / "chunks")
        held = [begun, record if record and record.status == "finished" else None]
        return next((one for one in held if one and one.job_key != job_key), None)

    def has_results(self, job_key: str | None) -> bool:
        """Returns whether a new run would have to move results aside: a finished run, or results of another job."""
        return self.other_question(job_key) is not None or self.finished_record(job_key) is not None

    def save(self, **fields: Any) -> None:
        """Adds fields to the record and replaces run.json atomically."""
        self.record = replace(self.record, **fields)
        write_record(self.path, self.record)

    def set_aside(self) -> Path | None:
        """Moves the folder's content to `replaced/` next to it, if there is a record; returns the new path.

        So no results are lost when a job runs again with force=true, or with a newer version.

        Raises:
            FileExistsError: If another process is using the folder.
            ValueError: If the folder is or contains the working directory.
        """
        if not (self / "run.json").exists():
            return None
        if Path.cwd().is_relative_to(self.path.resolve()):
            raise ValueError(f"{self.path} cannot move to replaced/, for it holds the working directory.")
        with locked(self.path):  # raises if another process is using it
            pass
        target = replaced_path(self.path)
        os.replace(self.path, target)
        return target

    @contextmanager
    def recording(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Locks the folder and records the job as running; on exit, as finished, or as failed with the error.

        Raises:
            FileExistsError: If another process is using the folder.
        """
        with locked(check_folder(self.path), self.patience):
            began = time.perf_counter()
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self.record = Record(**about, started=started, versions=versions(), git=own_state())
            self.save()
            try:
                yield
            except BaseException as error:
                interrupted = isinstance(error, KeyboardInterrupt | GeneratorExit)  # the latter: on its way out
                message = str(error) or ("interrupted" if interrupted else type(error).__name__)
                self.save(
                    status="killed" if interrupted else "failed",
                    seconds=round(time.perf_counter() - began, 3),
                    error=ErrorInfo(type(error).__name__, message),
                )
                raise
            self.save(status="finished", seconds=round(time.perf_counter() - began, 3))


def write_record(folder: Path, record: Record) -> None:
    """Replaces run.json in a folder atomically."""
    write_json(folder / "run.json", record.as_json(), indent=2)


def replaced_path(path: Path) -> Path:
    """Returns an unused path in `replaced/` next to a file or folder, to move it there."""
    place = make_folder(path.parent / "replaced")
    return next(new for number in itertools.count(1) if not (new := place / f"{path.name}-{number}").exists())


def mark_killed(path: Path, about: Mapping[str, Any], why: str) -> Record:
    """Records that a job was killed, and why, on behalf of the dead job; returns the record.

    Args:
        about: The fields of the record if the job did not write one.
    """
    make_folder(path, parents=True)
    record = killed(read_record(path) or Record(**about), why)
    write_record(path, record)
    return record


def killed(record: Record, why: str) -> Record:
    """Returns the record with the status and error of a killed job."""
    return replace(record, status="killed", error=ErrorInfo("Killed", why))


@cache
def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect results; looked up only once."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
