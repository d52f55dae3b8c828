"""Reads the jobs of a sweep from their folders, each folder once."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raiopt.results.files import read_file
from raiopt.results.record import Metrics, Record
from raiopt.results.record_reader import load_record

VOLATILE = ("name", "outputs", "device", "threads", "note", "progress", "tracker", "force", "retry", "yes", "hydra")
"""Options, and groups of options, of where and how a job runs; they do not change its result."""


def is_volatile(option: str) -> bool:
    """Returns whether an option, such as `note` or `tracker.uri`, does not change the result of a job."""
    return re.split("[./]", option)[0] in VOLATILE


def without_volatile(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that change the result of a job."""
    return {name: value for name, value in options.items() if not is_volatile(name)}


@dataclass(frozen=True)
class JobRecord:
    """A job that has a folder in a sweep, or that its sweep.json lists.

    Args:
        name: The name of its folder.
        status: The status in its run.json; or missing, unreadable, incomplete (a shard is not finished).
        options: The options that were given, with their values.
        error: The first line of its error; None if there was none.
        record: Its run.json; all defaults if there is no readable one.
    """

    name: str
    status: str
    options: dict[str, Any]
    error: str | None = None
    record: Record = field(default_factory=Record)

    @property
    def metrics(self) -> Metrics | None:
        """The metrics of a finished job, else None."""
        return self.record.metrics if self.status == "finished" else None

    def option(self, name: str) -> Any:
        """Returns the value of an option, given or by default, or the choice of a group; None if it is not known."""
        known = (self.options, self.record.choices, self.record.options)
        return next((values[name] for values in known if name in values), None)


def read_jobs(folder: Path | str) -> list[JobRecord]:
    """Returns the jobs of a sweep in the order of their numbers; jobs not listed in sweep.json come last.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it contains no job, or sweep.json cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; give the folder of a sweep, as in outputs/NAME.")
    listed = _listed(folder)
    folders = (entry for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    found = {entry.name for entry in folders if os.path.exists(f"{entry.path}/run.json")}
    if not found | listed.keys():
        hint = "is the folder of one job, not of a sweep" if (folder / "run.json").exists() else "contains no jobs"
        raise ValueError(f"{folder} {hint}; give the folder of a sweep, as in outputs/NAME.")
    jobs = [read_job(folder / name, listed.get(name, {})) for name in sorted(found | listed.keys())]
    return sorted(jobs, key=lambda job: (job.name not in listed, _number(job, listed), job.name))


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the jobs listed in sweep.json; empty if there is no such file."""
    path = folder / "sweep.json"
    try:
        jobs = {name: dict(job) for name, job in json.loads(read_file(path))["jobs"].items()}
        if outside := [name for name in jobs if Path(name).name != name]:
            raise ValueError(f"{outside[0]!r} is not the name of a folder in it")
        return jobs
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a list of jobs: {error!r}. Move it away to see the jobs that have a folder."
        ) from None


def _number(job: JobRecord, listed: dict[str, dict[str, Any]]) -> int:
    number = listed.get(job.name, {}).get("number", job.record.job_number)
    return number if isinstance(number, int) else 0


def read_job(folder: Path, listed: Mapping[str, Any] = MappingProxyType({})) -> JobRecord:
    """Returns the job in a folder; options listed in sweep.json take precedence."""
    name, options = folder.name, listed.get("overrides")
    options = options if isinstance(options, dict) else None
    try:
        record = load_record(folder)
    except FileNotFoundError:
        return JobRecord(name, "missing", options or {}, "did not start")
    except ValueError as error:
        why = str(error).replace(str(folder / "run.json"), "its run.json")
        return JobRecord(name, "unreadable", options or {}, first_line(why))
    if listed and record.job_key not in (None, name):
        why = f"its run.json is of another question, the job {record.job_key}"
        return JobRecord(name, "unreadable", options or {}, why)
    message = "" if record.error is None else record.error.message
    return JobRecord(name, record.status, record.overrides if options is None else options, first_line(message), record)


def comparison_key(job: JobRecord) -> str:
    """Returns a string that is equal for jobs with comparable robust accuracies: same model, data and ball."""
    perturbation = {key: value for key, value in job.options.items() if key.startswith("perturbation")}
    record, epsilons = job.record, job.metrics.epsilons if job.metrics else None
    return repr([record.ball.key, record.model, record.hashes, record.perturbation, perturbation, epsilons])


def settings_key(job: JobRecord, without: Sequence[str] = ()) -> str:
    """Returns a string that is equal for jobs with the same weights, data and options.

    Args:
        without: Options that may differ.
    """
    record = job.record
    kept = {name: value for name, value in job.options.items() if name not in record.choices and name not in without}
    return json.dumps([asdict(record.hashes), record.choices, without_volatile(kept)], sort_keys=True)


def first_line(text: str) -> str | None:
    """Returns the first non-blank line of a text; None if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), None)
