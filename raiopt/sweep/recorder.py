"""Remembers where a sweep lies and what it sweeps over, for its lines and its table on the terminal."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class SweepRecorder(Callback):
    """A Hydra callback that notes facts of the sweep which this process started last.

    Attributes:
        folder: Its folder; None if there was no sweep.
        swept: The options that were given several values.
        asked: The keys of its jobs, if the sweeper told them.
        found: What a search found, in a line.
    """

    folder: Path | None = None
    swept: tuple[str, ...] = ()
    asked: frozenset[str] = frozenset()
    found: str | None = None

    @classmethod
    def begin(cls) -> None:
        """Forgets the sweep before."""
        cls.folder, cls.swept, cls.asked, cls.found = None, (), frozenset(), None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Notes the facts before the first job."""
        params = OmegaConf.select(config, "hydra.sweeper.params", default=None) or {}
        words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
        parsed = OverridesParser.create().parse_overrides(words)
        SweepRecorder.swept = tuple(word.key_or_group for word in parsed if word.is_sweep_override())
        with suppress(OmegaConfBaseException):  # Hydra would only warn of a wrong name; the sweeper raises it again
            SweepRecorder.folder = Path(config.hydra.sweep.dir)

    @classmethod
    def tell(cls, finished: int = 0) -> None:
        """Says what begins now, and how many of its jobs were finished before."""
        over = f" over {', '.join(cls.swept)}" if cls.swept else ""
        before = f"; {finished:,} of {len(cls.asked):,} jobs were finished before" if finished else ""
        print(f"sweep{over}, in {cls.folder}{before}", flush=True)
