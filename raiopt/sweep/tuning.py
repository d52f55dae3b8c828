"""A sweeper for hyperparameter tuning: each new job depends on the results of earlier ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from raiopt import checks
from raiopt.results.files import read_file, replace_file
from raiopt.results.folder import RunFolder, replaced_path
from raiopt.results.lock import locked
from raiopt.results.record import Record
from raiopt.results.records import is_volatile
from raiopt.results.tables import METRICS
from raiopt.sweep.compose import Composer
from raiopt.sweep.grid import RaioptSweeper
from raiopt.sweep.hashes import check_hashes
from raiopt.sweep.launcher import Source, SweepLauncher, check_options, run_tasks
from raiopt.sweep.plan import JobList, Plan, plan
from raiopt.sweep.progress import Progress
from raiopt.sweep.session import current_session
from raiopt.sweep.task import Task

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

PARALLEL_TRIALS = 8
"""The number of parallel trials if the executor has its own queue."""


@dataclass(eq=False)
class OptunaSweeper(RaioptSweeper):
    """Finds the values that minimize or maximize a metric, with optuna's TPE sampler.

    Options to tune are given as `interval(0.01,1)`, `tag(log,interval(0.001,1))`, `int(interval(1,20))`, `range(1,9)`
    or a list of choices; other options are fixed. Trials are stored in the journal `study.journal` in the sweep's
    folder: repeating the command continues the study, up to the total number of trials.

    Args:
        n_trials: Total number of trials, including failed ones.
        metric: A metric of run.json.
        direction: minimize or maximize.
        n_jobs: Number of parallel trials; null: as many as the launcher runs in parallel.
        seed: Seed of the sampler.
        params: Options as on the command line, which may override them.
    """

    n_trials: int = 50
    metric: str = "robust_accuracy"
    direction: str = "minimize"
    n_jobs: int | None = None
    seed: int = 0
    params: dict[str, str] | None = None

    def __post_init__(self) -> None:
        try:
            import optuna  # noqa: F401
        except ModuleNotFoundError:
            raise ValueError("hydra/sweeper=optuna needs optuna: pip install 'raiopt[optuna]'") from None
        check_options("hydra.sweeper", self, {"n_trials": 1, "n_jobs": 1})
        checks.choice("hydra.sweeper.metric", self.metric, METRICS)
        checks.choice("hydra.sweeper.direction", self.direction, ("minimize", "maximize"))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the sweep."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if not isinstance(self.launcher, SweepLauncher):
            raise ValueError("hydra/sweeper=optuna needs hydra/launcher=local, slurm or ray.")

    def sweep(self, arguments: list[str]) -> None:
        """Runs the missing trials."""
        given = {
            override.get_key_element(): override for override in self.overrides(arguments)
        }  # the last value of an option wins
        space = {key: distribution(override) for key, override in given.items() if override.is_sweep_override()}
        fixed = [override.input_line or "" for override in given.values() if not override.is_sweep_override()]
        if not space:
            raise ValueError("There is nothing to tune: give an option as 'optim.lr=tag(log,interval(0.001,1))'.")
        composer = Composer(self.context.config_loader, self.config)
        composer.task([*fixed, *(_example(key, kind) for key, kind in space.items())])  # raises for wrong options
        session = current_session()
        session.begin_tracking(self.config)
        with locked(self.folder):
            listed = JobList(self.folder)
            executor = self.launcher.executor(self.n_jobs)
            trials = Trials(self, listed, composer, space, fixed, arguments)
            trials.parallel = self.n_jobs or executor.slots or PARALLEL_TRIALS
            planned = plan(trials.complete_tasks())
            check_hashes(planned.finished)
            if planned.outdated:  # results obtained with other defaults must not guide the sampler
                trials.begin_anew(planned)
            self.begin(planned)
            ended = trials.ended_count()
            run_tasks(executor, trials, Progress(self.n_trials - ended, ended, session.swept))
            session.summary = trials.summary()


class Trials(Source):
    """The trials of a study as the source of a sweep's tasks; unfinished trials of a killed command run first."""

    def __init__(
        self,
        sweeper: OptunaSweeper,
        listed: JobList,
        composer: Composer,
        space: dict[str, BaseDistribution],
        fixed: list[str],
        arguments: list[str],
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweeper, self.listed, self.composer, self.space, self.fixed = sweeper, listed, composer, space, fixed
        self.arguments, self.parallel = arguments, PARALLEL_TRIALS
        self.journal = sweeper.folder / "study.journal"
        self._running: dict[str, list[int]] = {}
        self._open()

    def _open(self) -> None:
        """Opens the study, creating it if necessary."""
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        _mend(self.journal)
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.journal))),
            study_name="raiopt",
            direction=self.sweeper.direction,  # pyright: ignore[reportArgumentType]
            load_if_exists=True,
        )
        self._check_question()
        begun = self.study.get_trials(deepcopy=False)
        seed = self.sweeper.seed + len(begun)  # an unchanged seed would repeat the draws
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        self._begun = [trial for trial in begun if trial.state.name == "RUNNING"]

    def begin_anew(self, planned: Plan) -> None:
        """Starts a new study of the same options, without the outdated jobs, which are removed from the list.

        These jobs and the journal move to replaced/.

        Args:
            planned: The plan of the finished trials.

        Raises:
            FileExistsError: If one of the jobs is still running.
        """
        finished, outdated = {task.key for task, _ in planned.finished}, {task.key for task in planned.outdated}
        unfinished = [task for task in self._tasks() if task.key not in finished | outdated]
        for task in unfinished:
            RunFolder(task.folder).set_aside()
        os.replace(self.journal, replaced_path(self.journal))
        for task in planned.outdated:  # last, because they trigger the new study, also after an interruption
            RunFolder(task.folder).set_aside()
        self.listed.remove([*unfinished, *planned.outdated])
        self._open()

    def _check_question(self) -> None:
        """Stores what the study tunes; raises a ValueError if the study already tunes something else."""
        fixed = sorted(word for word in self.fixed if not is_volatile(word.partition("=")[0]))
        question = {"metric": self.sweeper.metric, "fixed": fixed, "direction": self.sweeper.direction}
        question |= {f"space of {key}": repr(kind) for key, kind in self.space.items()}
        before = self.study.user_attrs.get("question", question)
        for name in {**before, **question}:
            old, new = before.get(name), question.get(name)
            if old != new:
                raise ValueError(
                    f"{self.sweeper.folder} contains a study with another {name} ({old}, not {new}): give another "
                    "name=..."
                )
        self.study.set_user_attr("question", question)

    def ended_count(self) -> int:
        """Returns the number of trials that ended, finished or failed."""
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def take(self, count: int | None) -> list[Task]:
        """Returns the tasks of new trials; trials whose result is already known are completed immediately."""
        tasks: list[Task] = []
        free = self.parallel - len(self._running)
        free = free if count is None else min(free, count)
        while len(tasks) < free:
            pending = sum(map(len, self._running.values()))
            if not self._begun and self.ended_count() + pending >= self.sweeper.n_trials:
                break
            number, words = self._next()
            if words is None:
                continue
            task = self._listed(words)
            if task.key in self._running:
                self._running[task.key].append(number)
            elif found := plan([task]).finished:
                self._end(number, found[0][1])
                current_session().track([task.folder])
            else:
                self._running[task.key] = [number]
                tasks.append(task)
        return tasks

    def ended(self, task: Task, record: Record) -> None:
        """Reports the result of a task to the study."""
        for number in self._running.pop(task.key):
            self._end(number, record)

    def summary(self) -> str:
        """Returns the best trial in one line."""
        if not self._complete():
            return "no trial finished"
        best = self.study.best_trial
        words = " ".join(self._words(best))
        return f"best of {self.ended_count()} trials: {self.sweeper.metric}={best.value:g} with {words}"

    def complete_tasks(self) -> list[Task]:
        """Returns the tasks of the trials that finished before."""
        return self._tasks("COMPLETE")

    def _tasks(self, *states: str) -> list[Task]:
        """Returns the tasks of the trials in these states, or of all."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if not states or trial.state.name in states]
        whole = [trial for trial in trials if set(trial.params) == set(self.space)]
        return [self.composer.task([*self.fixed, *self._words(trial)]) for trial in whole]

    def _complete(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]

    def _next(self) -> tuple[int, list[str] | None]:
        """Returns number and words of an unfinished or else a new trial; None if the trial failed."""
        trial = self._begun.pop(0) if self._begun else self.study.ask(self.space)
        if set(trial.params) != set(self.space):  # its command was killed while it was created
            self._end(trial.number, None)
            return trial.number, None
        return trial.number, [*self.fixed, *self._words(trial)]

    def _words(self, trial: Any) -> list[str]:
        return [f"{key}={trial.params[key]}" for key in self.space]

    def _listed(self, words: list[str]) -> Task:
        (task,) = self.listed.add([self.composer.task(words)])
        self.listed.save(current_session().swept, self.arguments)
        current_session().job_keys.add(task.key)
        return task

    def _end(self, number: int, record: Record | None) -> None:
        from optuna.trial import TrialState

        value = getattr(record and record.final_metrics, self.sweeper.metric, None)
        self.study.tell(number, value, state=TrialState.FAIL if value is None else None)


def distribution(override: Override) -> BaseDistribution:
    """Returns optuna's distribution for the values of an option."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = override.value()
    log = "log" in sweep.tags
    if isinstance(sweep, IntervalSweep):
        kind = IntDistribution if isinstance(sweep.start, int) and isinstance(sweep.end, int) else FloatDistribution
        assert sweep.start is not None
        assert sweep.end is not None
        if not sweep.start < sweep.end or (log and sweep.start <= 0):
            raise ValueError(
                f"{override.input_line}: an interval must increase{', from above 0 with tag(log)' if log else ''}."
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


def _example(key: str, kind: Any) -> str:
    """Returns a word with one value of a distribution, to check that the option accepts such values."""
    return f"{key}={kind.choices[0] if hasattr(kind, 'choices') else kind.low}"


def _mend(journal: Path) -> None:
    """Removes what a process leaves behind if killed while writing the journal: an incomplete line, and its lock."""
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if os.path.lexists(journal) and not (content := read_file(journal)).endswith(b"\n"):
        replace_file(journal, lambda path: path.write_bytes(content[: content.rfind(b"\n") + 1]))
