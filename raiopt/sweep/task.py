"""One job of a sweep as plain data, and what a launcher needs of the machines that work on such jobs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job that any process on any machine can run: nothing in it but text, numbers, lists and dictionaries.

    Args:
        key: Its job key, the name of its folder.
        folder: Its folder, an absolute path that all machines share.
        config: The job's config without the part of Hydra; references are not resolved.
        hydra: What .hydra/hydra.yaml shall hold.
        about: What run.json says of it beside its results: its number, command, overrides, choices, ...
    """

    key: str
    folder: str
    config: dict[str, Any]
    hydra: dict[str, Any]
    about: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """Returns the task as a dictionary that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class Ended:
    """A task that runs no more.

    Args:
        why: None if the job came to its own end, which its run.json tells; else what ended it, in plain words.
    """

    task: Task
    why: str | None = None


class Engine(Protocol):
    """Machines that run tasks, in the eyes of a launcher, which calls these methods from one thread.

    A task is run by calling `raiopt.jobs.work` with `Task.plain()` in another process. That function raises nothing for
    a job that fails: its run.json tells how it went.

    Attributes:
        slots: How many tasks it takes at the same time; None: any number, for it has a queue of its own.
    """

    slots: int | None

    def start(self, tasks: Sequence[Task]) -> None:
        """Begins to run these tasks, never more than `slots` in all.

        Raises:
            ValueError: If the machines refuse such tasks at all, in their own words.
        """
        ...

    def poll(self, seconds: float) -> list[Ended]:
        """Waits at most so long for tasks that end; returns those which ended since the last call."""
        ...

    def close(self) -> None:
        """Ends what still runs, and leaves no process behind; called once, after errors and Ctrl-C too."""
        ...
