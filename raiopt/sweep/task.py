"""A job of a sweep as plain data, and the interface of executors that run such jobs for a launcher."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job that any process on any machine can run, made of strings, numbers, lists and dictionaries.

    Args:
        key: The job key, which is the name of its folder.
        folder: The job's folder, an absolute path shared by all machines.
        config: The job's config without Hydra's part; references are not resolved.
        hydra: The content of .hydra/hydra.yaml.
        about: The fields of run.json except the results: number, command, overrides, choices, ...
    """

    key: str
    folder: str
    config: dict[str, Any]
    hydra: dict[str, Any]
    about: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Returns the task as a JSON-serializable dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Ended:
    """A task that has ended.

    Args:
        why: None if the job ended by itself, with the result in its run.json; else what ended it, in plain words.
    """

    task: Task
    why: str | None = None


class Executor(Protocol):
    """Runs tasks in other processes, on this machine or others; its methods are called from one thread.

    A task is run by calling `raiopt.config.jobs.work` with `Task.plain()` in another process. That function does not
    raise if the job fails, but records the failure in run.json.

    Attributes:
        slots: The number of tasks that run in parallel; None: unlimited, because the executor has its own queue.
    """

    slots: int | None

    def start(self, tasks: Sequence[Task]) -> None:
        """Starts these tasks; at most `slots` tasks run at any time.

        Raises:
            ValueError: If the machines reject such tasks; the message quotes the reason.
        """
        ...

    def poll(self, seconds: float) -> list[Ended]:
        """Waits for tasks to end; returns those that ended since the last call."""
        ...

    def close(self) -> None:
        """Stops all running tasks and leaves no process behind; called once, also after errors and Ctrl-C."""
        ...
