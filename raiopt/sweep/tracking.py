"""The tracker of the command that this process carries out: jobs that have ended are told to it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from raiopt.results.trackers import Mlflow
    from raiopt.sweep.tracker_process import TrackerProcess

AFTER_INTERRUPT = 3.0
"""Seconds that are left to the tracker after Ctrl-C."""

_process: "TrackerProcess | None" = None


def begin(config: DictConfig) -> None:
    """Begins to track the jobs of this command, if its config asks for it and that is not done yet.

    Raises:
        ValueError: If an option of the tracker is wrong, or it is not installed.
    """
    global _process
    if _process is None and (place := place_of(config)) is not None:
        from raiopt.sweep.tracker_process import TrackerProcess

        _process = TrackerProcess(place)


def tell(folder: Path | str) -> None:
    """Has a job logged that has ended, in this command or before; what is logged already is not logged again."""
    if _process is not None:
        _process.tell(Path(folder))


@contextmanager
def ended() -> Iterator[None]:
    """On leaving, waits until all is logged, and says what is not; it never raises anything of its own."""
    global _process
    patience = math.inf
    try:
        yield
    except KeyboardInterrupt:
        patience = AFTER_INTERRUPT
        raise
    finally:
        process, _process = _process, None
        if process is not None:
            process.end(patience)


def place_of(config: Any) -> "Mlflow | None":
    """Returns where a config wants its jobs to be logged; None if nowhere.

    Raises:
        ValueError: As `begin` does.
    """
    if OmegaConf.select(config, "tracker._target_") is None:  # that it was taken away is told by the job
        return None
    from hydra_zen import instantiate

    return instantiate(config.tracker)(outputs=config.outputs)
