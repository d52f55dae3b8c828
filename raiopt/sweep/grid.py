"""raiopt's grid sweeper: runs every combination of the given values that is not finished yet."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins import sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from raiopt import checks
from raiopt.results.files import write_text
from raiopt.results.lock import locked
from raiopt.sweep.compose import Composer
from raiopt.sweep.hashes import check_hashes
from raiopt.sweep.launcher import Source, SweepLauncher, run_tasks
from raiopt.sweep.plan import RETRY, JobList, Plan, check_shards, clear, describe_changes, plan
from raiopt.sweep.progress import Progress
from raiopt.sweep.session import current_session
from raiopt.sweep.task import Task

MAX_JOBS = 10_000
"""Larger sweeps must be confirmed, because they are usually a mistake."""


class RaioptSweeper(sweeper.Sweeper):
    """Base class of raiopt's sweepers; a subclass is a dataclass of the sweeper's options."""

    params: dict[str, str] | None
    config: Any
    launcher: Any

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the sweep."""
        self.config, self.context = config, hydra_context
        self.folder = Path(config.hydra.sweep.dir)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def overrides(self, arguments: list[str]) -> list[Override]:
        """Returns the overrides of the option params, followed by those of the command line."""
        words = [*(f"{key}={value}" for key, value in (self.params or {}).items()), *arguments]
        return OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(words)

    def begin(self, planned: Plan) -> None:
        """Saves the sweep's config, prints the start message, and logs the jobs that will not run."""
        write_text(self.folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
        current_session().print_start(len(planned.finished))
        if planned.outdated:
            print(describe_changes(planned.changes, len(planned.outdated)), flush=True)
        current_session().track(task.folder for task, _ in [*planned.finished, *planned.left])


@dataclass(eq=False)
class GridSweeper(RaioptSweeper):
    """A job for each combination of the given values.

    Args:
        params: Options with several values, as on the command line, which may override them.
    """

    params: dict[str, str] | None = None

    def sweep(self, arguments: list[str]) -> None:
        """Runs the missing jobs of the sweep; the result of each is in its folder."""
        checks.choice("retry", self.config.retry, RETRY)
        jobs = combinations(self.overrides(arguments), self.config.yes)
        composer = Composer(self.context.config_loader, self.config)
        tasks = composer.tasks(jobs)  # invalid options are reported before any folder is created
        check_shards(tasks)
        session = current_session()
        session.begin_tracking(self.config)
        with locked(self.folder):
            listed = JobList(self.folder)
            tasks = listed.add(tasks)
            planned = plan(tasks, self.config.retry, self.config.force)
            run = self._prepared(planned.todo, len(planned.finished))
            check_hashes(planned.finished)
            listed.save(session.swept, arguments)
            session.job_keys |= {task.key for task in tasks}
            self.begin(planned)
            run()

    def _prepared(self, todo: list[Task], skipped: int) -> Callable[[], object]:
        """Returns a function that runs the tasks, after the launcher's own checks."""
        if not todo:
            return lambda: None
        if isinstance(self.launcher, SweepLauncher):
            executor = self.launcher.executor(len(todo))
            progress = Progress(len(todo), skipped, current_session().swept)
            return lambda: run_tasks(executor, Source(todo), progress)

        def launch() -> None:
            for task in todo:
                clear(task)
            self.launcher.launch([task.about["command"][1:] for task in todo], initial_job_idx=0)

        return launch


def combinations(overrides: Sequence[Override], is_confirmed: bool = False) -> list[list[str]]:
    """Returns the words of each job: the Cartesian product of the values, with the last option varying fastest.

    Args:
        is_confirmed: Whether more than 10,000 jobs are allowed.

    Raises:
        ValueError: If an option has no list of values, or there are no jobs, or too many.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                raise ValueError(f"{override.input_line} is no list of values. Search it with hydra/sweeper=optuna.")
            found = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            found = [override.input_line or ""]
        values[key] = found
    count = math.prod(map(len, values.values()))
    if not count:
        raise ValueError("The sweep has no jobs. A glob chooses among the options of a group: 'optim=glob(l*)'.")
    if count > MAX_JOBS and not is_confirmed:
        product = " x ".join(f"{len(found)} ({key})" for key, found in values.items() if len(found) > 1)
        raise ValueError(f"The sweep has {count:,} jobs: {product}. Add yes=true to confirm it.")
    return [list(job) for job in itertools.product(*values.values())]
