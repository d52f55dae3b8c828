"""The folder of one job, and its record `run.json`: written at the start, replaced at the end."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

SCHEMA = 1
"""The number of the layout of a run folder; rises when an older reader would misread a newer folder."""

PACKAGES = ("raiopt", "torch", "torchvision", "numpy", "hydra-core", "hydra-zen", "polars", "safetensors")


class RunFolder:
    """A job's folder; `record` is what run.json holds."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
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
        temporary = self / "run.json.tmp"
        temporary.write_text(json.dumps(self.record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, self / "run.json")

    @contextmanager
    def recording(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Writes the record as running; on leaving, as finished, or as failed with the error."""
        began = time.perf_counter()
        self.save(
            schema=SCHEMA,
            status="running",
            **about,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            git=git_state(Path.cwd()),
        )
        try:
            yield
        except BaseException as error:
            message = str(error) or {"KeyboardInterrupt": "interrupted"}.get(type(error).__name__, type(error).__name__)
            self.save(
                status="failed",
                seconds=round(time.perf_counter() - began, 3),
                error={"type": type(error).__name__, "message": message},
            )
            raise
        self.save(status="finished", seconds=round(time.perf_counter() - began, 3))


def read_record(path: Path) -> dict[str, Any]:
    """Returns the content of run.json in the folder `path`; empty if there is none that can be read."""
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def git_state(path: Path) -> dict[str, Any] | None:
    """Returns the commit that is checked out at `path` and whether files differ from it; None outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=path, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None
