"""A sweeper that searches: each new job depends on how the earlier ones went."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from raiopt import checks
from raiopt.results.files import read_file, replace_file, write_text
from raiopt.results.lock import locked
from raiopt.results.records import is_volatile
from raiopt.results.tables import METRICS
from raiopt.sweep import tracking
from raiopt.sweep.compose import Composer
from raiopt.sweep.hashes import check_hashes
from raiopt.sweep.launcher import SweepLauncher, run_tasks
from raiopt.sweep.progress import Progress
from raiopt.sweep.recorder import SweepRecorder
from raiopt.sweep.resume import numbered, plan, read_list, write_list
from raiopt.sweep.task import Task

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

AT_ONCE = 8
"""How many trials run together where the launcher has a queue of its own."""


class OptunaSweeper(Sweeper):
    """Looks for the values that make a metric smallest, with optuna's TPE sampler.

    What is to be found is given as `interval(0.01,1)`, `tag(log,interval(0.001,1))`, `int(interval(1,20))`,
    `range(1,9)` or a list of choices; other options are fixed. Trials are kept in the journal `study.journal` of the
    sweep's folder: the same command goes on with them, up to their total.

    Args:
        n_trials: How many in all; failed ones count.
        metric: Of run.json.
        direction: minimize or maximize.
        n_jobs: How many run together; None: as many as the launcher takes.
        seed: Of the sampler.
        params: Options as on the command line, where they may be given anew.
    """

    config: Any
    launcher: Any

    def __init__(
        self,
        n_trials: int = 50,
        metric: str = "robust_accuracy",
        direction: Any = "minimize",
        n_jobs: int | None = None,
        seed: int = 0,
        params: dict[str, str] | None = None,
    ) -> None:
        try:
            import optuna  # noqa: F401
        except ModuleNotFoundError:
            raise ValueError("hydra/sweeper=optuna needs optuna: pip install 'raiopt[optuna]'") from None
        checks.number("hydra.sweeper.n_trials", n_trials, low=1, integer=True)
        checks.choice("hydra.sweeper.metric", metric, METRICS)
        checks.choice("hydra.sweeper.direction", direction, ("minimize", "maximize"))
        if n_jobs is not None:
            checks.number("hydra.sweeper.n_jobs", n_jobs, low=1, integer=True)
        self.n_trials, self.metric, self.direction, self.n_jobs, self.seed = n_trials, metric, direction, n_jobs, seed
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Is called by Hydra before the sweep."""
        from hydra.core.plugins import Plugins

        self.config, self.context = config, hydra_context
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(launcher, SweepLauncher):
            raise ValueError("hydra/sweeper=optuna runs with hydra/launcher=local, slurm or ray.")
        self.launcher = launcher

    def sweep(self, arguments: list[str]) -> None:
        """Runs what is missing of the trials."""
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(words)
        given = {override.get_key_element(): override for override in parsed}  # the last of each counts
        space = {key: distribution(override) for key, override in given.items() if override.is_sweep_override()}
        fixed = [override.input_line or "" for override in given.values() if not override.is_sweep_override()]
        if not space:
            raise ValueError("There is nothing to search: give an option as 'optim.lr=tag(log,interval(0.001,1))'.")
        folder = Path(self.config.hydra.sweep.dir)
        composer = Composer(self.context.config_loader, self.config)
        composer.task([*fixed, *(_middle(key, kind) for key, kind in space.items())], 0)  # tells wrong options
        tracking.begin(self.config)
        with locked(folder):
            read_list(folder)  # tells a folder of something else
            engine = self.launcher.engine(self.n_jobs)
            at_once = self.n_jobs or engine.slots or AT_ONCE
            trials = Trials(self, folder, composer, space, fixed, arguments, at_once)
            finished = plan(trials.complete()).finished
            check_hashes(finished)
            for task, _ in finished:
                tracking.tell(task.folder)
            write_text(folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
            SweepRecorder.tell()
            run_tasks(engine, trials, Progress(self.n_trials - trials.over(), trials.over(), SweepRecorder.swept))
            SweepRecorder.found = trials.told()


class Trials:
    """The trials of a study as the source of a sweep's tasks; one that a killed command left is run first."""

    def __init__(
        self,
        sweeper: OptunaSweeper,
        folder: Path,
        composer: Composer,
        space: dict[str, BaseDistribution],
        fixed: list[str],
        arguments: list[str],
        at_once: int,
    ) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweeper, self.folder, self.composer, self.space, self.fixed = sweeper, folder, composer, space, fixed
        self.arguments, self.at_once = arguments, at_once
        self.about = read_list(folder)
        journal = folder / "study.journal"
        _mend(journal)
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name="raiopt",
            direction=sweeper.direction,
            load_if_exists=True,
        )
        asked = {"space": {key: repr(kind) for key, kind in space.items()}, "metric": sweeper.metric}
        asked |= {"fixed": _asking(fixed), "direction": sweeper.direction}
        before = self.study.user_attrs.get("question", asked)
        before = {**before, "fixed": _asking(before["fixed"])}
        if before != asked:
            other = next(key for key in asked if before.get(key) != asked[key])
            old, new = before.get(other), asked[other]
            if isinstance(old, dict) and isinstance(new, dict):  # the first option in which they differ
                key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
                old, new = f"{key}: {old.get(key)}", new.get(key)
            raise ValueError(f"{folder} holds a search with another {other} ({old}, not {new}): give another name=...")
        self.study.set_user_attr("question", asked)
        begun = self.study.get_trials(deepcopy=False)
        self.study.sampler = optuna.samplers.TPESampler(seed=sweeper.seed + len(begun))  # else the same draws again
        self._left = [trial for trial in begun if trial.state == TrialState.RUNNING]
        self._running: dict[str, list[int]] = {}

    def over(self) -> int:
        """Returns how many trials have come to an end, finished or failed."""
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def take(self, room: int | None) -> list[Task]:
        """Returns the tasks of new trials; what was found before, under other trials too, is told at once."""
        tasks: list[Task] = []
        free = self.at_once - len(self._running)
        free = free if room is None else min(free, room)
        while len(tasks) < free:
            pending = sum(map(len, self._running.values()))
            if not self._left and self.over() + pending >= self.sweeper.n_trials:
                break
            number, words = self._next()
            if words is None:
                continue
            task = self._listed(words)
            if task.key in self._running:
                self._running[task.key].append(number)
            elif found := plan([task]).finished:
                self._tell(number, found[0][1])
                tracking.tell(task.folder)
            else:
                self._running[task.key] = [number]
                tasks.append(task)
        return tasks

    def ended(self, task: Task, record: dict[str, Any]) -> None:
        """Tells the study how the trials of a task went."""
        for number in self._running.pop(task.key):
            self._tell(number, record)

    def told(self) -> str:
        """Returns what the search found, in a line."""
        if not self._done():
            return "no trial came to a result"
        best = self.study.best_trial
        return f"best of {self.over()} trials: {self.sweeper.metric}={best.value:g} with {' '.join(self._words(best))}"

    def complete(self) -> list[Task]:
        """Returns the tasks of the trials that came to a result before."""
        return [self.composer.task([*self.fixed, *self._words(trial)], 0) for trial in self._done()]

    def _done(self) -> list[FrozenTrial]:
        from optuna.trial import TrialState

        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]

    def _next(self) -> tuple[int, list[str] | None]:
        """Returns the number and words of a trial: one that was begun and not ended, else a new one."""
        from optuna.trial import TrialState

        if not self._left:
            trial = self.study.ask(self.space)
            return trial.number, [*self.fixed, *self._words(trial)]
        begun = self._left.pop(0)
        if set(begun.params) != set(self.space):  # killed while it was being made
            self.study.tell(begun.number, state=TrialState.FAIL)
            return begun.number, None
        return begun.number, [*self.fixed, *self._words(begun)]

    def _words(self, trial: Any) -> list[str]:
        return [f"{key}={trial.params[key]}" for key in self.space]

    def _listed(self, words: list[str]) -> Task:
        (task,) = numbered(self.about, [self.composer.task(words, 0)])
        write_list(self.folder, self.about, SweepRecorder.swept, self.arguments)
        SweepRecorder.asked |= {task.key}
        return task

    def _tell(self, number: int, record: dict[str, Any]) -> None:
        from optuna.trial import TrialState

        value = record.get("metrics", {}).get(self.sweeper.metric) if record.get("status") == "finished" else None
        if value is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, value)


def _asking(words: Sequence[str]) -> list[str]:
    """Returns the words without those that say where and how a job runs: they may be others when a search goes on."""
    return sorted(word for word in words if not is_volatile(word.partition("=")[0]))


def distribution(override: Override) -> BaseDistribution:
    """Returns optuna's form of the values of an option."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = override.value()
    log = "log" in sweep.tags
    if isinstance(sweep, IntervalSweep):
        kind = IntDistribution if isinstance(sweep.start, int) and isinstance(sweep.end, int) else FloatDistribution
        assert sweep.start is not None
        assert sweep.end is not None
        if not sweep.start < sweep.end or (log and sweep.start <= 0):
            raise ValueError(
                f"{override.input_line}: an interval must go up{', from above 0 with tag(log)' if log else ''}."
            )
        return kind(sweep.start, sweep.end, log=log)  # pyright: ignore[reportArgumentType]
    if isinstance(sweep, RangeSweep):
        values = list(sweep.range())
        if values and all(isinstance(value, int) for value in values):
            return IntDistribution(int(values[0]), int(values[-1]), step=int(sweep.step))
    words = list(override.sweep_string_iterator())
    if not words:
        raise ValueError(f"{override.input_line} has no values.")
    return CategoricalDistribution(words)


def _middle(key: str, kind: Any) -> str:
    """Returns a word with one value of a distribution, to see whether the option takes such values."""
    return f"{key}={kind.choices[0] if hasattr(kind, 'choices') else kind.low}"


def _mend(journal: Path) -> None:
    """Takes away what a process left that was killed while it wrote the journal: half a line, and its lock."""
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if os.path.lexists(journal) and not (content := read_file(journal)).endswith(b"\n"):
        replace_file(journal, lambda path: path.write_bytes(content[: content.rfind(b"\n") + 1]))
