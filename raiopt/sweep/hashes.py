"""Whether the weights and data of a sweep's finished jobs are still what they were."""

import json
from typing import Any

from pebble import ProcessExpired, ProcessPool

from raiopt.jobs import begin_worker, hashes
from raiopt.sweep.local_engine import cores, server
from raiopt.sweep.task import Task


def check_hashes(finished: list[tuple[Task, dict[str, Any]]]) -> None:
    """Compares the weights and data of finished jobs with those of today, each of them once, in a process of its own.

    Raises:
        FileExistsError: If they are others; the jobs that remain would not be comparable.
    """
    kinds: dict[str, list[tuple[Task, dict[str, Any]]]] = {}
    for task, record in finished:
        kind = json.dumps([task.config["model"], task.config["data"]])
        kinds.setdefault(json.dumps(task.config) if "${" in kind else kind, []).append((task, record))
    if not kinds:
        return
    context: Any = server()
    with ProcessPool(1, initializer=begin_worker, initargs=(cores(), ""), context=context) as pool:
        futures = [pool.schedule(hashes, args=(_on_cpu(jobs[0][0]),)) for jobs in kinds.values()]
        for future, jobs in zip(futures, kinds.values(), strict=True):
            try:
                now = future.result()
            except ProcessExpired as error:
                raise ChildProcessError(f"Weights and data could not be compared: {error}.") from None
            _compare(now, jobs)


def _on_cpu(task: Task) -> dict[str, Any]:
    """Returns the task for the CPU: hashes do not depend on the device, and jobs have the others."""
    return {**task.plain(), "config": {**task.config, "device": "cpu"}}


def _compare(now: dict[str, str], jobs: list[tuple[Task, dict[str, Any]]]) -> None:
    for part, value in now.items():
        other = [task for task, record in jobs if record["hashes"][part] != value]
        if other:
            before = next(record["hashes"][part] for task, record in jobs if task is other[0])
            raise FileExistsError(
                f"{other[0].folder} and {len(other) - 1} more finished jobs had other {part} (hash {before[:10]}, now "
                f"{value[:10]}). Nothing was overwritten; give another name=..., or force=true."
            )
