"""Remembers where a sweep lies, and which options were swept, for the table at its end."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepRecorder(Callback):
    """A Hydra callback; `folder` is that of the sweep which this process started last, None if it started none."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Notes the sweep's folder before its first job."""
        SweepRecorder.folder = Path(config.hydra.sweep.dir)
