"""Checks that the weights and data of a sweep's finished jobs have not changed."""

import json
from typing import Any

from pebble import ProcessExpired, ProcessPool

from raiopt.config.jobs import begin_worker, hashes
from raiopt.sweep.local import cores, server
from raiopt.sweep.plan import Recorded


def check_hashes(finished: list[Recorded]) -> None:
    """Compares the weights and data of finished jobs with the current ones, in a separate process.

    Raises:
        FileExistsError: If they differ, because the remaining jobs would not be comparable.
    """
    kinds: dict[str, list[Recorded]] = {}
    for task, record in finished:
        kind = json.dumps([task.config["model"], task.config["data"]])
        kinds.setdefault(json.dumps(task.config) if "${" in kind else kind, []).append((task, record))
    if not kinds:
        return
    context: Any = server()
    with ProcessPool(1, initializer=begin_worker, initargs=(cores(), ""), context=context) as pool:
        # Hashes do not depend on the device, and the jobs need the GPUs.
        tasks = [{**task.plain(), "config": {**task.config, "device": "cpu"}} for (task, _), *_ in kinds.values()]
        futures = [pool.schedule(hashes, args=(task,)) for task in tasks]
        for future, jobs in zip(futures, kinds.values(), strict=True):
            try:
                _compare(future.result(), jobs)
            except ProcessExpired as error:
                raise ChildProcessError(f"Weights and data could not be compared: {error}.") from None


def _compare(today: dict[str, str], jobs: list[Recorded]) -> None:
    for part, value in today.items():
        other = [(task.folder, str(then)) for task, record in jobs if (then := getattr(record.hashes, part)) != value]
        if other:
            folder, before = other[0]
            raise FileExistsError(
                f"{folder} and {len(other) - 1} more finished jobs had other {part} (hash {before[:10]}, now "
                f"{value[:10]}). Nothing was overwritten; give another name=..., or force=true."
            )
