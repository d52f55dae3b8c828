"""What is left to do of a sweep: its list of jobs, and what their folders say."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raiopt import checks
from raiopt.results.files import LinkError, read_file, write_json
from raiopt.results.folder import SCHEMA, RunFolder, read_record
from raiopt.sweep.task import Task

RETRY = ("failed", "killed", "none")
"""Which jobs that ended without a result are run again: all, those without an error of their own, or none."""


@dataclass
class Plan:
    """The tasks of a command, by what is to be done with them.

    Attributes:
        todo: To be run.
        finished: Finished before, with the record of each.
        left: Ended without a result before, and not to be run again.
    """

    todo: list[Task] = field(default_factory=list)
    finished: list[tuple[Task, dict[str, Any]]] = field(default_factory=list)
    left: list[tuple[Task, dict[str, Any]]] = field(default_factory=list)


def plan(tasks: Sequence[Task], retry: str = "failed", force: bool = False) -> Plan:
    """Returns what is to be done with each task, by the record in its folder.

    Args:
        retry: failed, killed or none; a job without a record is always run.
        force: Run the finished ones again too.
    """
    checks.choice("retry", retry, RETRY)
    made = Plan()
    for task in tasks:
        record = read_record(Path(task.folder))
        is_of_task = record.get("schema") == SCHEMA and record.get("job_key") == task.key
        status = record.get("status") if is_of_task else None
        if status == "finished" and not force:
            made.finished.append((task, record))
        elif (status == "failed" and retry != "failed") or (status in ("killed", "running") and retry == "none"):
            made.left.append((task, record))
        else:
            made.todo.append(task)
    return made


def check_shards(tasks: Sequence[Task]) -> None:
    """Raises a ValueError for a part of the data that is not there; each job would do so later."""
    for part in dict.fromkeys(
        (task.config["data"].get("shard"), task.config["data"].get("num_shards")) for task in tasks
    ):
        if not any(isinstance(number, str) for number in part):  # references are resolved by the job
            checks.shard(*part)


def clear(task: Task) -> dict[str, Any]:
    """Moves aside what a task's folder holds of another version or question, damaged, or finished and forced.

    Returns the record that stays there.

    What came to be finished since the plan was made, by a job that a cluster still had, is seen by the job itself.
    """
    folder, record = RunFolder(task.folder), read_record(Path(task.folder))
    forced = record.get("status") == "finished" and task.config.get("force")
    if record.get("schema") != SCHEMA or forced or folder.other_question(task.key) is not None:
        folder.set_aside()
        return {}
    return record


def numbered(about: dict[str, Any], tasks: Sequence[Task]) -> list[Task]:
    """Adds the tasks to a sweep's list of jobs, and returns each once, with its number there."""
    jobs: dict[str, Any] = about["jobs"]
    for task in tasks:
        jobs.setdefault(task.key, {"number": len(jobs), "overrides": task.about["overrides"]})
    unique = {task.key: task for task in tasks}.values()
    return [replace(task, about={**task.about, "job_number": jobs[task.key]["number"]}) for task in unique]


def write_list(folder: Path, about: dict[str, Any], swept: Sequence[str], words: Sequence[str]) -> None:
    """Writes the sweep's list of jobs, with the options that a command swept over and its words."""
    about["swept"] = list(dict.fromkeys([*about["swept"], *swept]))
    about["commands"] = [*(command for command in about["commands"] if command != list(words)), list(words)]
    write_json(folder / "sweep.json", about)


def read_list(folder: Path) -> dict[str, Any]:
    """Returns the sweep's list of jobs; an empty one if there is none yet.

    Raises:
        ValueError: If the folder holds something else than a sweep, or the list cannot be read.
    """
    path = folder / "sweep.json"
    if not os.path.lexists(path):
        names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
        others = [name for name in names if name[0] != "." and name != "sweep.json.tmp"]  # as a full disk leaves it
        if others and not any(folder.glob("*/run.json")):
            raise ValueError(
                f"{folder} holds something else than a sweep ({', '.join(sorted(others)[:3])}): give another name=..."
            )
        return {"schema": SCHEMA, "swept": [], "commands": [], "jobs": {}}
    try:
        about = json.loads(read_file(path))
        if not isinstance(about, dict) or not {"swept", "commands", "jobs"} <= set(about):
            raise ValueError("keys are missing")
    except (LinkError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): move it away, and give the command again.") from None
    return about
