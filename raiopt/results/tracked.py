"""The data of a job that a tracker logs, read from the job's folder."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from raiopt.results.files import read_file
from raiopt.results.parquet import scan_parquet
from raiopt.results.record import Record
from raiopt.results.record_reader import read_record
from raiopt.results.records import without_volatile

STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
MAX_LENGTH = {"params": 500, "tags": 5000}
"""The largest number of characters of a value; older MLflow servers reject longer ones."""


@dataclass(frozen=True)
class TrackedJob:
    """The data of a job that is logged.

    Args:
        name: The name of the run.
        status: MLflow's word for the job's status.
        began: The start in milliseconds since 1970.
        ended: The end in milliseconds since 1970.
        params: The options.
        metrics: The results.
        curves: Name, value and step of each per-step result.
        tags: Everything else.
    """

    name: str
    status: str
    began: int
    ended: int
    params: dict[str, str]
    metrics: dict[str, float]
    curves: list[tuple[str, float, int]]
    tags: dict[str, str]

    @property
    def version(self) -> str:
        """A string that changes when the job runs again."""
        return f"{self.status} {self.began}"


def tracked(folder: Path) -> TrackedJob | None:
    """Returns the data to log for the job in a folder; None if the job has not ended."""
    record = read_record(folder)
    if record is None or record.status not in STATUS:
        return None
    chosen = {group: choice for group, choice in record.choices.items() if choice not in (None, "None")}
    given = without_volatile({**(record.options or record.overrides), **chosen})
    began = _milliseconds(record.started)
    return TrackedJob(
        name=_run_name(folder, record),
        status=STATUS[record.status],
        began=began,
        ended=began + round(1000 * (record.seconds or 0)),
        params={_name(key): _text(value, "params") for key, value in given.items()},
        metrics=dict(_numbers(record)),
        curves=_curves(folder / "trace.parquet") if record.status == "finished" else [],
        tags=_tags(folder, record),
    )


def _name(key: str) -> str:
    """Returns a name without characters that MLflow rejects."""
    return re.sub(r"[^\w.:/ -]", "_", key)[:250]


def _text(value: Any, kind: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_LENGTH[kind] else f"{text[: MAX_LENGTH[kind] - 3]}..."


def _milliseconds(moment: str) -> int:
    """Converts an ISO 8601 time to milliseconds since 1970; 0 if it is invalid."""
    try:
        return round(1000 * datetime.fromisoformat(moment).timestamp())
    except ValueError:
        return 0


def _run_name(folder: Path, record: Record) -> str:
    """Returns the run's name: the swept options for a job of a sweep, else the job's name."""
    swept = read_json(folder.parent / "sweep.json").get("swept", [])
    words = [f"{name}={_text(record.overrides[name], 'params')}" for name in swept if name in record.overrides]
    return " ".join(words) or record.name or folder.name


def _numbers(record: Record) -> Iterator[tuple[str, float]]:
    """Yields the metrics and check counts of a finished job, and the seconds of any job."""
    found: dict[str, Any] = {"seconds": record.seconds}
    if record.metrics is not None:
        found |= asdict(record.metrics)
        found |= {f"robust_accuracy_at/{epsilon:g}": value for epsilon, value in record.metrics.radii}
    if record.checks is not None:
        found |= {f"checks/{name}": value for name, value in asdict(record.checks).items()}
    for name, value in found.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield _name(name), float(value)


def _curves(file: Path) -> list[tuple[str, float, int]]:
    """Returns the numeric entries of a table of steps."""
    if not file.exists():
        return []
    table = scan_parquet(file).collect()
    stages = table["stage"] if "stage" in table.columns else [None] * len(table)
    prefixes = ["step" if stage is None else f"step/{stage}" for stage in stages]
    return [
        (f"{prefix}/{name}", float(value), step)
        for name in table.columns
        if name not in ("stage", "step")
        for prefix, step, value in zip(prefixes, table["step"], table[name], strict=True)
        if value is not None
    ]


def _tags(folder: Path, record: Record) -> dict[str, str]:
    found = {
        "mlflow.note.content": record.note,
        "mlflow.source.name": " ".join(record.command),
        "mlflow.source.git.commit": record.git and record.git.commit,
        "raiopt.folder": str(folder.absolute()),
        "raiopt.job_key": record.job_key,
        "raiopt.status": record.status,
        "raiopt.error": record.error and record.error.message,
        "raiopt.ball": str(record.ball) if record.is_described else None,
        "raiopt.attack": record.attack_words if record.is_described else None,
        "raiopt.device": record.device.name,
        "raiopt.git_changed": record.git and record.git.changed,
        **{f"raiopt.hash.{part}": value for part, value in asdict(record.hashes).items()},
        **{f"raiopt.version.{name}": value for name, value in record.versions.items()},
    }
    return {name: _text(value, "tags") for name, value in found.items() if value not in (None, "")}


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; an empty one if it cannot be read."""
    try:
        content = json.loads(read_file(path))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
