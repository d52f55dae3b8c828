"""The plan of a sweep: decides which jobs to run, from the list of jobs and their folders."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raiopt import checks
from raiopt.config.explain import typed
from raiopt.results.files import LinkError, read_file, write_json
from raiopt.results.folder import RunFolder
from raiopt.results.record import SCHEMA, Record
from raiopt.results.record_reader import read_record
from raiopt.sweep.job_key import changed_defaults
from raiopt.sweep.task import Task

RETRY = ("failed", "none")
"""Which jobs that ended without a result are run again."""
MAX_CHANGES_SHOWN = 5

Recorded = tuple[Task, Record]
"""A task and the record in its folder."""


@dataclass
class Plan:
    """The tasks of a command, sorted by what to do with them.

    Attributes:
        todo: Tasks to run.
        finished: Tasks that finished before, with their records.
        left: Tasks that ended without a result before and are not run again.
        outdated: Those of `todo` that had finished, but with a different default of some option.
        changes: The recorded and the current value of each such option.
    """

    todo: list[Task] = field(default_factory=list)
    finished: list[Recorded] = field(default_factory=list)
    left: list[Recorded] = field(default_factory=list)
    outdated: list[Task] = field(default_factory=list)
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)


def plan(tasks: Sequence[Task], retry: str = "failed", force: bool = False) -> Plan:
    """Returns the plan for these tasks, from the records in their folders.

    Args:
        retry: failed or none; a job without a record is always run.
        force: Also run finished jobs again.
    """
    checks.choice("retry", retry, RETRY)
    made = Plan()
    for task in tasks:
        record = read_record(Path(task.folder))
        status = record.status if record and record.job_key == task.key else None
        changes = {} if force else changed_defaults(record, task.about)
        if changes:
            made.changes |= changes
            made.outdated.append(task)
        if record and status == "finished" and not force and not changes:
            made.finished.append((task, record))
        elif record and status in ("failed", "killed", "running") and retry == "none":
            made.left.append((task, record))
        else:
            made.todo.append(task)
    return made


def describe_changes(changes: Mapping[str, tuple[Any, Any]], jobs: int) -> str:
    """Returns the message that finished jobs run again because defaults changed.

    >>> describe_changes({"optim.mu": (0.0, 0.9)}, 2)
    '2 finished jobs run again because a default changed: optim.mu=0.0 is now 0.9. Old results move to replaced/.'
    """
    shown = [f"{name}={typed(old)} is now {typed(new)}" for name, (old, new) in changes.items()]
    shown[MAX_CHANGES_SHOWN:] = [f"and {len(changes) - MAX_CHANGES_SHOWN} more"] * (len(changes) > MAX_CHANGES_SHOWN)
    runs = "1 finished job runs" if jobs == 1 else f"{jobs:,} finished jobs run"
    what = "a default" if len(changes) == 1 else "defaults"
    text = f"{runs} again because {what} changed: {', '.join(shown)}. Old results move to replaced/."
    return checks.printable(text)


def check_shards(tasks: Sequence[Task]) -> None:
    """Raises a ValueError for a shard that does not exist, before each job does so."""
    for part in dict.fromkeys(
        (task.config["data"].get("shard"), task.config["data"].get("num_shards")) for task in tasks
    ):
        if not any(isinstance(number, str) for number in part):  # references are resolved by the job
            checks.shard(*part)


def clear(task: Task) -> Record | None:
    """Moves a task's folder to replaced/ if a new run would overwrite its results; returns the record that stays.

    Moved are records of another version or with other settings, damaged ones, and finished ones that will run again.
    If a cluster job finished after the plan was made, the new job itself will notice.
    """
    folder, record = RunFolder(task.folder), read_record(Path(task.folder))
    is_forced = record is not None and record.status == "finished" and task.config.get("force")
    is_other = record is None or folder.other_question(task.key) is not None
    if is_forced or is_other or changed_defaults(record, task.about):
        folder.set_aside()
        return None
    return record


class JobList:
    """The list of all jobs ever requested under a sweep's name, stored as `sweep.json` in its folder.

    Raises:
        ValueError: If the folder contains something other than a sweep, or the list cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sweep.json"
        self.content: dict[str, Any] = {"schema": SCHEMA, "swept": [], "commands": [], "jobs": {}}
        if os.path.lexists(self.path):
            self.content = self._read()
        else:
            names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
            others = [
                name for name in names if name[0] != "." and name != "sweep.json.tmp"
            ]  # left behind when the disk is full
            if others and not any(folder.glob("*/run.json")):
                found = ", ".join(sorted(others)[:3])
                raise ValueError(f"{folder} contains something other than a sweep ({found}): give another name=...")

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(read_file(self.path))
            if not isinstance(content, dict) or not self.content.keys() <= {"schema", *content}:
                raise ValueError("keys are missing")
        except (LinkError, ValueError) as error:
            raise ValueError(f"{self.path} cannot be read ({error}): move it away, and repeat the command.") from None
        return content

    def add(self, tasks: Sequence[Task]) -> list[Task]:
        """Adds tasks to the list, and returns them without duplicates, with their numbers in the list."""
        jobs: dict[str, Any] = self.content["jobs"]
        numbers = [job.get("number") for job in jobs.values()]
        number = 1 + max((known for known in numbers if isinstance(known, int)), default=-1)
        for task in tasks:
            if task.key not in jobs:
                jobs[task.key] = {"number": number, "overrides": task.about["overrides"]}
                number += 1
        unique = {task.key: task for task in tasks}.values()
        return [replace(task, about={**task.about, "job_number": jobs[task.key]["number"]}) for task in unique]

    def remove(self, tasks: Sequence[Task]) -> None:
        """Removes tasks from the list and writes it; the other tasks keep their numbers."""
        for task in tasks:
            self.content["jobs"].pop(task.key, None)
        write_json(self.path, self.content)

    def save(self, swept: Sequence[str], words: Sequence[str]) -> None:
        """Writes the list, with the swept options and the words of the command."""
        self.content["swept"] = list(dict.fromkeys([*self.content["swept"], *swept]))
        commands = [command for command in self.content["commands"] if command != list(words)]
        self.content["commands"] = [*commands, list(words)]
        write_json(self.path, self.content)
