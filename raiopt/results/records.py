"""What the folders of a sweep say of its jobs, each read once."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raiopt import checks
from raiopt.results.files import read_file
from raiopt.results.folder import SCHEMA

VOLATILE = ("name", "outputs", "device", "threads", "note", "progress", "tracker", "force", "retry", "yes", "hydra")
"""Options that say where and how a job runs, not what it asks; what is in such a group is one, too."""


def is_volatile(option: str) -> bool:
    """Says whether an option is no part of the question, as `note` and `tracker.uri` are."""
    return re.split("[./]", option)[0] in VOLATILE


@dataclass(frozen=True)
class JobRecord:
    """A job that a sweep's folder holds, or that its sweep.json lists.

    Args:
        name: Its folder's name.
        status: That of its run.json; else missing or unreadable.
        options: What it was given, by the option's name.
        error: The first line of what went wrong; None if nothing did.
        record: Its run.json; empty if there is none that can be understood.
    """

    name: str
    status: str
    options: dict[str, Any]
    error: str | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures of a finished job; those of any other are none."""
        return self.record.get("metrics") or {} if self.status == "finished" else {}

    def option(self, name: str) -> Any:
        """Returns the value of an option that was given, or the choice of a group; None if neither is known."""
        return self.options.get(name, self.record.get("choices", {}).get(name))


def read_jobs(folder: Path | str) -> list[JobRecord]:
    """Returns the jobs of a sweep in the order of their numbers, those that sweep.json does not list at the end.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no job, or sweep.json cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there; give the folder of a sweep, as in outputs/NAME.")
    listed = _listed(folder)
    folders = (entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    found = {entry.name for entry in folders if os.path.exists(f"{entry.path}/run.json")}
    if not found | listed.keys():
        hint = "is the folder of one job, not of a sweep" if (folder / "run.json").exists() else "holds no jobs"
        raise ValueError(f"{folder} {hint}; give the folder of a sweep, as in outputs/NAME.")
    jobs = [read_job(folder / name, listed.get(name, {})) for name in sorted(found | listed.keys())]
    return sorted(jobs, key=lambda job: (job.name not in listed, _number(job, listed), job.name))


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the jobs that sweep.json lists; none in a sweep that has no such file."""
    path = folder / "sweep.json"
    try:
        jobs = dict(json.loads(read_file(path))["jobs"])
        if outside := [name for name in jobs if Path(name).name != name]:
            raise ValueError(f"{outside[0]!r} is no name of a folder in it")
        return jobs
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no list of jobs: {error!r}. Move it away to see the jobs that have a folder."
        ) from None


def _number(job: JobRecord, listed: dict[str, dict[str, Any]]) -> int:
    return listed.get(job.name, job.record).get("number", job.record.get("job_number")) or 0


def read_job(folder: Path, listed: Mapping[str, Any] = MappingProxyType({})) -> JobRecord:
    """Returns the job in a folder; what sweep.json lists of its options goes first."""
    name, options = folder.name, listed.get("overrides")
    try:
        record = _without_controls(json.loads(read_file(folder / "run.json")))
    except FileNotFoundError:
        return JobRecord(name, "missing", options or {}, "did not start")
    except (OSError, ValueError) as error:
        return JobRecord(name, "unreadable", options or {}, f"its run.json cannot be read: {error}")
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        schema = record.get("schema") if isinstance(record, dict) else None
        why = f"its run.json has the schema {schema}, and this version of raiopt reads {SCHEMA}"
        return JobRecord(name, "unreadable", options or {}, why)
    if listed and record.get("job_key", name) != name:
        why = f"its run.json is of another question, the job {record['job_key']}"
        return JobRecord(name, "unreadable", options or {}, why)
    options = record.get("overrides", {}) if options is None else options
    message = (record.get("error") or {}).get("message") or ""
    return JobRecord(name, record.get("status", "unreadable"), options, _first_line(message), record)


def _without_controls(value: Any) -> Any:
    """Returns what JSON holds with every control character that a terminal may obey written out."""
    if isinstance(value, dict):
        return {_without_controls(key): _without_controls(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_controls(entry) for entry in value]
    return checks.printable(value) if isinstance(value, str) else value


def _first_line(text: str) -> str | None:
    return next((line.strip() for line in text.splitlines() if line.strip()), None)
