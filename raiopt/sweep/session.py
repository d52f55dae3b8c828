"""The state of one invocation of the command, shared with the plugins and callbacks that Hydra calls."""

import math
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

if TYPE_CHECKING:
    from raiopt.results.trackers import Mlflow
    from raiopt.sweep.tracker_process import TrackerProcess

TRACKING_SECONDS_AFTER_INTERRUPT = 3.0
_current: ContextVar["CommandSession"] = ContextVar("raiopt.session")


class CommandSession:
    """The sweep, jobs and tracker of one command, used as a context manager.

    On exit, it waits until the tracker has logged all jobs, and reports those that could not be logged.

    Attributes:
        folder: The sweep's folder; None if the command runs no sweep.
        swept: The options that were given several values.
        job_keys: The keys of the sweep's jobs, if raiopt's sweeper runs it.
        summary: The result of a tuning run, in one line.
        failures: For each job that ran in this process, its error; None if it finished.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.swept: tuple[str, ...] = ()
        self.job_keys: set[str] = set()
        self.summary: str | None = None
        self.failures: list[Exception | None] = []
        self._tracker: TrackerProcess | None = None

    def __enter__(self) -> "CommandSession":
        self._token = _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _current.reset(self._token)
        if self._tracker is not None:
            is_interrupt = kind is not None and issubclass(kind, KeyboardInterrupt)
            self._tracker.end(TRACKING_SECONDS_AFTER_INTERRUPT if is_interrupt else math.inf)

    def begin_tracking(self, config: DictConfig) -> None:
        """Starts the tracker if the config asks for one and it is not running yet.

        Raises:
            ValueError: If an option of the tracker is invalid, or the tracker is not installed.
        """
        if self._tracker is None and (place := place_of(config)) is not None:
            from raiopt.sweep.tracker_process import TrackerProcess

            self._tracker = TrackerProcess(place)

    def track(self, folders: Iterable[Path | str]) -> None:
        """Logs jobs that have ended, now or in an earlier command; those already logged are skipped."""
        if self._tracker is not None:
            for folder in folders:
                self._tracker.log(Path(folder))

    def print_start(self, finished: int = 0) -> None:
        """Prints the swept options, the folder, and how many of the sweep's jobs were finished before."""
        over = f" over {', '.join(self.swept)}" if self.swept else ""
        before = (
            f"; {finished:,} of {len(self.job_keys):,} jobs were finished before" if finished and self.job_keys else ""
        )
        print(f"sweep{over}, in {self.folder}{before}", flush=True)


def current_session() -> CommandSession:
    """Returns the session of the current command."""
    return _current.get()


class SweepCallback(Callback):
    """A Hydra callback that stores the properties of a sweep in the session before its first job."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Stores the sweep's folder and its swept options."""
        session = current_session()
        params = OmegaConf.select(config, "hydra.sweeper.params", default=None) or {}
        words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
        parsed = OverridesParser.create().parse_overrides(words)
        session.swept = tuple(word.key_or_group for word in parsed if word.is_sweep_override())
        with suppress(
            OmegaConfBaseException
        ):  # Hydra would only warn about an invalid name here; the sweeper raises it again
            session.folder = Path(config.hydra.sweep.dir)


def place_of(config: Any) -> "Mlflow | None":
    """Returns the tracker in which the config's jobs are to be logged; None if there is none.

    Raises:
        ValueError: If an option of the tracker is invalid, or the tracker is not installed.
    """
    if OmegaConf.select(config, "tracker._target_") is None:  # the job itself reports a removed tracker
        return None
    from hydra_zen import instantiate

    return instantiate(config.tracker)(outputs=config.outputs)
