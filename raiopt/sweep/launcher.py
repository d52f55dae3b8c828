"""The loop of a sweep, the same for every engine, and the Hydra launcher around it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from raiopt.results.folder import mark_killed, read_record
from raiopt.sweep import tracking
from raiopt.sweep.compose import Composer
from raiopt.sweep.progress import Progress
from raiopt.sweep.resume import clear
from raiopt.sweep.task import Ended, Engine, Task

log = logging.getLogger("raiopt")
FINAL = ("finished", "failed", "killed")


class Source(Protocol):
    """Where the loop takes its tasks from."""

    def take(self, room: int | None) -> list[Task]:
        """Returns tasks to start now, at most `room` of them; none if there are none, or none yet."""
        ...

    def ended(self, task: Task, record: dict[str, Any]) -> None:
        """Is told of each task that ended, with its record."""
        ...


class Listed:
    """A source of tasks that are known from the start."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._left = list(tasks)

    def take(self, room: int | None) -> list[Task]:
        """Returns the next tasks of the list."""
        count = len(self._left) if room is None else room
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def ended(self, task: Task, record: dict[str, Any]) -> None:
        """Does nothing: no task depends on another."""


def run_tasks(engine: Engine, source: Source, progress: Progress) -> None:
    """Runs tasks until the source has no more; what ends badly becomes the record of its folder.

    After Ctrl-C, or another end of the loop, what ran then is ended too, and its records say so.
    """
    running: dict[str, tuple[Task, dict[str, Any]]] = {}
    why = "the sweep was ended"
    progress.may_wait = engine.slots is None
    try:
        with progress:
            _loop(engine, source, progress, running)
    except KeyboardInterrupt:
        why = "interrupted"
        raise
    finally:
        engine.close()
        for task, before in running.values():
            _settled(Ended(task, why), before)
            tracking.tell(task.folder)


def _loop(engine: Engine, source: Source, progress: Progress, running: dict[str, tuple[Task, dict[str, Any]]]) -> None:
    while True:
        tasks = source.take(None if engine.slots is None else engine.slots - len(running))
        left = {task.key: (task, clear(task)) for task in tasks}
        if tasks:
            engine.start(tasks)
        running |= left
        progress.started(tasks)
        if not running:
            return
        for ended in engine.poll(0.2):
            _, before = running.pop(ended.task.key)
            record = _settled(ended, before)
            source.ended(ended.task, record)
            progress.ended(ended.task, record)
            tracking.tell(ended.task.folder)


def _settled(ended: Ended, before: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a task that ended, after what the task could not write itself is in it.

    Args:
        before: The record that an earlier run had left there.
    """
    folder, why = Path(ended.task.folder), ended.why
    record = read_record(folder)
    if record.get("status") == "finished" or (why is None and record.get("status") in FINAL and record != before):
        return record
    why = why or f"ended without a result: see {folder / 'run.log'}"
    try:
        mark_killed(folder, ended.task.about, why)
    except OSError as error:
        log.warning("%s: %s.", folder, error.strerror or error)
    return {**ended.task.about, **record, "status": "killed", "error": {"type": "Killed", "message": why}}


class SweepLauncher(Launcher):
    """A Hydra launcher that runs a sweep on an engine; a subclass makes the engine of its options."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Is called by Hydra before the first jobs."""
        self.config, self.context = config, hydra_context

    def engine(self, tasks: int | None) -> Engine:
        """Returns the engine for so many tasks; None: not known yet.

        Raises:
            ValueError: If these machines cannot do what the options ask for.
        """
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs jobs for a sweeper of Hydra's own; how each went is in its folder."""
        composer = Composer(self.context.config_loader, self.config)
        tasks = [composer.task(list(words), initial_job_idx + place) for place, words in enumerate(job_overrides)]
        run_tasks(self.engine(len(tasks)), Listed(tasks), Progress(total=len(tasks)))
        returns = []
        for task in tasks:
            returns.append(JobReturn(overrides=task.about["command"][1:], status=JobStatus.COMPLETED))
            returns[-1].return_value = read_record(Path(task.folder))
        return returns
