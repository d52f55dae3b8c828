"""What a tracker is told of a job, from its folder alone."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from raiopt.results.files import read_file
from raiopt.results.folder import SCHEMA, read_record
from raiopt.results.parquet import scan_parquet
from raiopt.results.records import is_volatile

STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
LONGEST = {"params": 500, "tags": 5000}
"""Characters of a value; older servers of MLflow refuse longer ones."""


@dataclass(frozen=True)
class Told:
    """What is logged of a job.

    Args:
        name: Of the run.
        status: As MLflow calls it.
        began: In milliseconds since 1970.
        ended: Likewise.
        params: What was asked.
        metrics: What was found.
        curves: Name, value and step, of what was found at each step.
        tags: What else is known.
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
        """Differs if the job ran once more."""
        return f"{self.status} {self.began}"


def told(folder: Path, options: Mapping[str, Any] | None = None) -> Told | None:
    """Returns what is logged of the job in a folder; None if it has not ended.

    Args:
        options: All its options, by their dotted names; None: those that it was given.
    """
    record = read_record(folder)
    if record.get("schema") != SCHEMA or record.get("status") not in STATUS:
        return None
    chosen = {group: choice for group, choice in record.get("choices", {}).items() if choice not in (None, "None")}
    asked = {**(record.get("overrides", {}) if options is None else options), **chosen}
    params = {_name(key): _text(value, "params") for key, value in asked.items() if not is_volatile(key)}
    began = _milliseconds(record.get("started"))
    return Told(
        name=_run_name(folder, record),
        status=STATUS[record["status"]],
        began=began,
        ended=began + round(1000 * record.get("seconds", 0)),
        params=params,
        metrics=dict(_numbers(record)),
        curves=_curves(folder / "trace.parquet") if record["status"] == "finished" else [],
        tags=_tags(folder, record),
    )


def _name(key: str) -> str:
    """Returns a name with those characters alone that MLflow takes."""
    return re.sub(r"[^\w.:/ -]", "_", key)[:250]


def _text(value: Any, kind: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST[kind] else f"{text[: LONGEST[kind] - 3]}..."


def _milliseconds(moment: str | None) -> int:
    return round(1000 * datetime.fromisoformat(moment).timestamp()) if moment else 0


def _run_name(folder: Path, record: Mapping[str, Any]) -> str:
    """Returns the swept options of a job of a sweep, else its name."""
    swept = read_json(folder.parent / "sweep.json").get("swept", [])
    given = record.get("overrides", {})
    words = [f"{name}={_text(given[name], 'params')}" for name in swept if name in given]
    return " ".join(words) or record.get("name") or folder.name


def _numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the figures of a record: those of a finished job, and the seconds."""
    found = {"seconds": record.get("seconds"), **(record.get("metrics") or {})}
    found |= {f"signs/{name}": value for name, value in (record.get("signs") or {}).items()}
    pairs = zip(found.get("epsilons") or [], found.get("robust_accuracies") or [], strict=False)
    found |= {f"robust_accuracy_at/{epsilon:g}": value for epsilon, value in pairs}
    for name, value in found.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield _name(name), float(value)


def _curves(file: Path) -> list[tuple[str, float, int]]:
    """Returns the entries of a table of steps that are numbers."""
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


def _tags(folder: Path, record: Mapping[str, Any]) -> dict[str, str]:
    git, error = record.get("git") or {}, record.get("error") or {}
    found = {
        "mlflow.note.content": record.get("note"),
        "mlflow.source.name": " ".join(record.get("command") or []),
        "mlflow.source.git.commit": git.get("commit"),
        "raiopt.folder": str(folder.absolute()),
        "raiopt.job_key": record.get("job_key"),
        "raiopt.status": record["status"],
        "raiopt.error": error.get("message"),
        "raiopt.ball": record.get("ball"),
        "raiopt.attack": record.get("attack"),
        "raiopt.device": (record.get("device") or {}).get("name"),
        "raiopt.git_changed": git.get("changed"),
        **{f"raiopt.hash.{part}": value for part, value in (record.get("hashes") or {}).items()},
        **{f"raiopt.version.{name}": value for name, value in (record.get("versions") or {}).items()},
    }
    return {name: _text(value, "tags") for name, value in found.items() if value not in (None, "")}


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a file holds; an empty one if there is none that can be read."""
    try:
        content = json.loads(read_file(path))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
