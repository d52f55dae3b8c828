"""The main loop of a sweep, shared by all executors, and the base class of the Hydra launchers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins import launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from raiopt import checks
from raiopt.results.folder import killed, mark_killed
from raiopt.results.record import Record
from raiopt.results.record_reader import read_record
from raiopt.sweep.compose import Composer
from raiopt.sweep.plan import clear
from raiopt.sweep.progress import Progress
from raiopt.sweep.session import current_session
from raiopt.sweep.task import Ended, Executor, Task

log = logging.getLogger("raiopt")
FINAL = ("finished", "failed", "killed")


class Source:
    """The source of the loop's tasks: a fixed list here; a subclass may create tasks from results of earlier ones."""

    def __init__(self, tasks: Sequence[Task] = ()) -> None:
        self._left = list(tasks)

    def take(self, count: int | None) -> list[Task]:
        """Returns at most `count` tasks to start now; an empty list if none is available, or not yet."""
        count = len(self._left) if count is None else count
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def ended(self, task: Task, record: Record) -> None:
        """Called with each task that ended and its record."""


def run_tasks(executor: Executor, source: Source, progress: Progress) -> None:
    """Runs tasks until the source is exhausted; records why a job ended if it could not do so itself.

    If the loop is left early, such as by Ctrl-C, running tasks are stopped and recorded as killed.
    """
    running: dict[str, tuple[Task, Record | None]] = {}
    why = "the sweep was ended"
    progress.may_wait = executor.slots is None
    try:
        with progress:
            _loop(executor, source, progress, running)
    except KeyboardInterrupt:
        why = "interrupted"
        raise
    finally:
        executor.close()
        for task, before in running.values():
            _settled(Ended(task, why), before)
            current_session().track([task.folder])


def _loop(
    executor: Executor, source: Source, progress: Progress, running: dict[str, tuple[Task, Record | None]]
) -> None:
    while True:
        tasks = source.take(None if executor.slots is None else executor.slots - len(running))
        left = {task.key: (task, clear(task)) for task in tasks}
        if tasks:
            executor.start(tasks)
        running |= left
        progress.started(tasks)
        if not running:
            return
        for ended in executor.poll(0.2):
            _, before = running.pop(ended.task.key)
            record = _settled(ended, before)
            source.ended(ended.task, record)
            progress.ended(ended.task, record)
            current_session().track([ended.task.folder])


def _settled(ended: Ended, before: Record | None) -> Record:
    """Returns the record of a task that ended, and writes it if the task could not do so itself.

    Args:
        before: The record left by an earlier run.
    """
    folder, why = Path(ended.task.folder), ended.why
    record = read_record(folder)
    if record and (record.status == "finished" or (why is None and record.status in FINAL and record != before)):
        return record
    why = why or f"ended without a result: see {folder / 'run.log'}"
    try:
        return mark_killed(folder, ended.task.about, why)
    except OSError as error:
        log.warning("%s: %s.", folder, error.strerror or error)
        return killed(record or Record(**ended.task.about), why)


class SweepLauncher(launcher.Launcher):
    """A Hydra launcher that runs a sweep on an executor; a subclass is a dataclass of the executor's options."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the first jobs."""
        self.config, self.context = config, hydra_context

    def executor(self, tasks: int | None) -> Executor:
        """Returns the executor for this number of tasks; None: not known yet.

        Raises:
            ValueError: If the options ask for more than the machines have.
        """
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs jobs for one of Hydra's own sweepers; each result is in the job's folder."""
        tasks = Composer(self.context.config_loader, self.config).tasks(job_overrides, initial_job_idx)
        run_tasks(self.executor(len(tasks)), Source(tasks), Progress(total=len(tasks)))
        returns = [JobReturn(overrides=task.about["command"][1:], status=JobStatus.COMPLETED) for task in tasks]
        for task, returned in zip(tasks, returns, strict=True):
            returned.return_value = read_record(Path(task.folder))
        return returns


def check_options(prefix: str, options: Any, low: Mapping[str, int], positive: Sequence[str] = ()) -> None:
    """Checks the numeric options of a launcher or sweeper that are not None.

    Args:
        prefix: The prefix of the options on the command line, such as hydra.launcher.
        options: A dataclass; fields of type int must be integers.
        low: The smallest value of each option.
        positive: Options that must be above 0.

    Raises:
        ValueError: If one is out of range.
        TypeError: If one is not a number.
    """
    types = {entry.name: str(entry.type) for entry in fields(options)}
    for name in [*low, *positive]:
        limits: dict[str, Any] = (
            {"above": 0} if name in positive else {"low": low[name], "integer": "float" not in types[name]}
        )
        if (value := getattr(options, name)) is not None:
            checks.number(f"{prefix}.{name}", value, **limits)
