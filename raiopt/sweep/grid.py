"""The sweeper of raiopt: every combination of the values given, without those that are finished."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from raiopt import checks
from raiopt.results.files import write_text
from raiopt.results.lock import locked
from raiopt.sweep import tracking
from raiopt.sweep.compose import Composer
from raiopt.sweep.hashes import check_hashes
from raiopt.sweep.launcher import Listed, SweepLauncher, run_tasks
from raiopt.sweep.progress import Progress
from raiopt.sweep.recorder import SweepRecorder
from raiopt.sweep.resume import RETRY, check_shards, clear, numbered, plan, read_list, write_list
from raiopt.sweep.task import Task

LIMIT = 10_000
"""So many jobs are a sweep; more are asked about, for they are mostly a slip."""


class GridSweeper(Sweeper):
    """A job for each combination of the values given.

    Args:
        params: Options with several values, as on the command line, where they may be given anew.
    """

    config: Any
    launcher: Any

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Is called by Hydra before the sweep."""
        self.config, self.context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs what is missing of the sweep; how each job went is in its folder."""
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(words)
        checks.choice("retry", self.config.retry, RETRY)
        jobs = combinations(parsed, self.config.yes)
        folder = Path(self.config.hydra.sweep.dir)
        composer = Composer(self.context.config_loader, self.config)
        tasks = list(composer.tasks(jobs))  # a wrong option is told before there is any folder
        check_shards(tasks)
        tracking.begin(self.config)
        with locked(folder):
            about = read_list(folder)
            tasks = numbered(about, tasks)
            planned = plan(tasks, self.config.retry, self.config.force)
            run = self._prepared(planned.todo, len(planned.finished))
            check_hashes(planned.finished)
            write_list(folder, about, SweepRecorder.swept, arguments)
            write_text(folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
            SweepRecorder.asked = frozenset(task.key for task in tasks)
            SweepRecorder.tell(len(planned.finished))
            for task, _ in [*planned.finished, *planned.left]:
                tracking.tell(task.folder)
            run()

    def _prepared(self, todo: list[Task], skipped: int) -> Callable[[], object]:
        """Returns what runs the tasks, after the launcher has seen that it can."""
        if not todo:
            return lambda: None
        if isinstance(self.launcher, SweepLauncher):
            engine = self.launcher.engine(len(todo))
            progress = Progress(len(todo), skipped, SweepRecorder.swept)
            return lambda: run_tasks(engine, Listed(todo), progress)

        def launch() -> None:
            for task in todo:
                clear(task)
            self.launcher.launch([task.about["command"][1:] for task in todo], initial_job_idx=0)

        return launch


def combinations(overrides: Sequence[Override], sure: bool = False) -> list[list[str]]:
    """Returns the words of each job: a product, the last option fastest.

    Args:
        sure: More than 10,000 jobs are meant.

    Raises:
        ValueError: If an option has no list of values, or there are no jobs, or too many.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                raise ValueError(f"{override.input_line} is no list of values. Search in it with hydra/sweeper=optuna.")
            found = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            found = [override.input_line or ""]
        values[key] = found
    count = math.prod(map(len, values.values()))
    if not count:
        raise ValueError("The sweep has no jobs. A glob chooses among the options of a group: 'optim=glob(l*)'.")
    if count > LIMIT and not sure:
        told = " x ".join(f"{len(found)} ({key})" for key, found in values.items() if len(found) > 1)
        raise ValueError(f"The sweep has {count:,} jobs: {told}. Add yes=true if that is meant.")
    return [list(job) for job in itertools.product(*values.values())]
