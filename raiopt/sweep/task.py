"""One job of a sweep as plain data, and the executor that runs such jobs for a launcher."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job that any process on any machine can run; it consists of texts, numbers, lists and dictionaries.

    Args:
        key: Its job key, the name of its folder.
        folder: Its folder, an absolute path that all machines share.
        config: The job's config without Hydra's part; references are not resolved.
        hydra: The content of .hydra/hydra.yaml.
        about: What run.json says in addition to its results: its number, command, overrides, choices, ...
    """

    key: str
    folder: str
    config: dict[str, Any]
    hydra: dict[str, Any]
    about: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Returns the task as a dictionary that JSON can represent."""
        return asdict(self)


@dataclass(frozen=True)
class Ended:
    """A task that has ended.

    Args:
        why: None if the job ended by itself, as its run.json says; else what ended it, in plain words.
    """

    task: Task
    why: str | None = None


class Executor(Protocol):
    """Runs tasks in other processes, on this machine or others; its methods are called from one thread.

    A task is run by calling `raiopt.config.jobs.work` with `Task.plain()` in another process. That function does not
    raise for a job that fails: its run.json says so.

    Attributes:
        slots: The number of tasks it runs at the same time; None: any number, because it has a queue.
    """

    slots: int | None

    def start(self, tasks: Sequence[Task]) -> None:
        """Starts these tasks, never more than `slots` in all.

        Raises:
            ValueError: If the machines refuse such tasks; the message quotes them.
        """
        ...

    def poll(self, seconds: float) -> list[Ended]:
        """Waits for tasks that end; returns those that ended since the last call."""
        ...

    def close(self) -> None:
        """Ends what still runs, and leaves no process behind; called once, also after errors and Ctrl-C."""
        ...
