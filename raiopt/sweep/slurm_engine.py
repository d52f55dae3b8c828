"""Jobs of a sweep as job arrays of Slurm: put into its queue, or found there again, and followed to their end."""

import io
import json
import os
import shlex
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from raiopt import checks
from raiopt.processes import python_command
from raiopt.results.files import make_folder, read_file, write_json
from raiopt.results.folder import read_record
from raiopt.sweep import slurm_queue as slurm
from raiopt.sweep.launcher import FINAL, SweepLauncher
from raiopt.sweep.task import Ended, Task

INTERVAL = 2.0
"""Seconds between two looks at the queue."""
GRACE = 15.0
"""Seconds in which the result of a job that left the queue may yet be seen, for file systems of clusters are slow."""
PATIENCE = 300.0
"""Seconds for which squeue may fail, or a node may not let go of a job."""
WARNING = 30
"""Seconds before its limit at which a job is told that time is up; Slurm may say so a minute earlier."""

RESERVED = ("array", "output", "error", "open-mode", "job-name", "requeue", "no-requeue", "signal")


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """What is asked of Slurm for each job; None leaves it to the cluster.

    Args:
        partition: Where to run; the cluster's own default if None, as with account, qos and constraint.
        account: Who pays.
        qos: A quality of service.
        constraint: Features that the node must have.
        gpus_per_node: GPUs of a job, which runs on one node.
        cpus_per_task: Cores of a job.
        mem_gb: Its memory, in GB.
        timeout_min: Its limit, in minutes.
        array_parallelism: How many jobs of an array run at the same time; None: as many as there is room for.
        max_requeues: How often a job that comes to its limit goes back into the queue, and on behind its last chunk. A
            job that Slurm itself takes from its node (preemption, failure of the node) always does.
        setup: Lines of bash that run before each job.
        additional_parameters: Further options of sbatch; True for those that take no value.

    Raises:
        ValueError: If a value is out of range, or an option of sbatch is set that raiopt needs for itself.

    >>> SlurmOptions(partition="gpu", gpus_per_node=1, timeout_min=90, additional_parameters={"exclude": "node7"})
    SlurmOptions(partition='gpu', account=None, qos=None, constraint=None, gpus_per_node=1, cpus_per_task=None,
    mem_gb=None, timeout_min=90, array_parallelism=None, max_requeues=3, setup=(),
    additional_parameters={'exclude': 'node7'})
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    timeout_min: int | None = 60
    array_parallelism: int | None = None
    max_requeues: int = 3
    setup: Sequence[str] = ()
    additional_parameters: Mapping[str, str | int | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lowest = {"gpus_per_node": 0, "cpus_per_task": 1, "timeout_min": 1, "array_parallelism": 1, "max_requeues": 0}
        for name, low in lowest.items():
            if (value := getattr(self, name)) is not None:
                checks.number(f"hydra.launcher.{name}", value, low=low, integer=True)
        if self.mem_gb is not None:
            checks.number("hydra.launcher.mem_gb", self.mem_gb, above=0)
        for name in self.additional_parameters:
            if name.replace("_", "-") in RESERVED:
                raise ValueError(f"hydra.launcher.additional_parameters must not set {name}, which raiopt sets itself.")

    def for_submitit(self) -> dict[str, Any]:
        """Returns the options as submitit names them."""
        names = ("partition", "account", "qos", "constraint", "gpus_per_node", "cpus_per_task")
        # srun of Slurm 22.05 and newer gives a job one core, unless it is told their number once more.
        again = [] if self.cpus_per_task is None else [f"--cpus-per-task={self.cpus_per_task}"]
        return {
            **{name: value for name in names if (value := getattr(self, name)) is not None},
            **({} if self.mem_gb is None else {"mem": f"{max(1, round(1024 * self.mem_gb))}MB"}),
            "time": self.timeout_min,
            "signal_delay_s": WARNING if self.timeout_min is None else min(WARNING, 15 * self.timeout_min),
            "array_parallelism": self.array_parallelism or 1_000_000,  # submitit writes the number of jobs, if smaller
            "setup": list(self.setup),
            "srun_args": again,
            "stderr_to_stdout": True,
            "wckey": None,
            "additional_parameters": {"requeue": True, **self.additional_parameters},
        }


@dataclass
class _Followed:
    task: Task
    job: str
    before: int | None  # when its record was last changed before the job was put into the queue
    doubt: str = ""
    since: float = 0.0


class SlurmEngine:
    """Runs tasks as job arrays of Slurm, through submitit. The queue says when a job is over, its run.json how it went.

    Jobs outlive the process that put them into the queue: the next one that is given the same task finds its job in
    `jobs.json`, and follows it instead of submitting another.

    Args:
        folder: Of the sweep, on a file system that all nodes share. Scripts and logs go to `.slurm/` in it.
        asked: What each job asks for.

    Raises:
        ValueError: If submitit or Slurm is missing.
    """

    slots: int | None = None

    def __init__(self, folder: str | os.PathLike[str], asked: SlurmOptions) -> None:
        _check_there()
        self.folder, self.asked = Path(folder).absolute(), asked
        if "%" in str(self.folder):
            raise ValueError(f"{self.folder} must not hold a '%', which Slurm and submitit read as a pattern.")
        self.files = self.folder / ".slurm"
        self.name = f"raiopt-{self.folder.name}"
        self._followed: dict[str, _Followed] = {}
        self._looked = -float("inf")
        self._silent_since: float | None = None

    def start(self, tasks: Sequence[Task]) -> None:
        """Puts the tasks into the queue, but for those that have a job there.

        Raises:
            ValueError: If Slurm refuses them, in its own words.
        """
        try:
            fresh = self._adopt(tasks)
            size = slurm.largest_array() if fresh else 1
        except OSError as error:
            raise ValueError(f"Slurm does not answer: {error}") from None
        for first in range(0, len(fresh), size):
            self._submit(fresh[first : first + size])

    def poll(self, seconds: float) -> list[Ended]:
        """Waits at most so long for tasks that end; returns those which ended since the last call."""
        until = monotonic() + seconds
        while self._followed:
            if monotonic() >= self._looked + INTERVAL:
                ended = self._look()
                self._looked = monotonic()
                if ended:
                    return ended
            if monotonic() >= until:
                break
            sleep(max(0.0, min(until, self._looked + INTERVAL) - monotonic()))
        return []

    def close(self) -> None:
        """Cancels what is in the queue."""
        if self._followed:
            slurm.cancel([followed.job for followed in self._followed.values()])
            with suppress(OSError):
                self._note({key: None for key in self._followed})
        self._followed.clear()

    def _adopt(self, tasks: Sequence[Task]) -> list[Task]:
        """Follows the jobs that tasks have in the queue; returns the tasks that have none."""
        noted = self._noted()
        jobs = {task.key: noted[task.key] for task in tasks if task.key in noted}
        queue = slurm.queue([about["job"] for about in jobs.values()])
        fresh = []
        for task in tasks:
            about = jobs.get(task.key)
            found = slurm.entry(queue, about["job"]) if about is not None else None
            if about is None or found is None or found.state in slurm.ENDS or found.name != self.name:
                fresh.append(task)
            else:
                self._followed[task.key] = _Followed(task, about["job"], about["before"])
        return fresh

    def _submit(self, tasks: Sequence[Task]) -> None:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = SlurmExecutor(make_folder(self.files, parents=True), python=shlex.join(python_command()))
        executor.update_parameters(job_name=self.name, **self.asked.for_submitit())
        before = [_changed(task) for task in tasks]
        try:
            with _outside_of_jobs(), redirect_stderr(io.StringIO()):  # it prints what the error holds
                jobs = executor.map_array(
                    run_on_node, [task.plain() for task in tasks], [self.asked.max_requeues] * len(tasks)
                )
        except (FailedJobError, FailedSubmissionError) as error:
            for left in self.files.glob(f"{'[0-9a-f]' * 32}.pkl"):  # tasks that never got the number of a job
                left.unlink()
            raise ValueError(f"Slurm refuses the jobs: {slurm.said(str(error))}") from None
        submitted = [_Followed(*each) for each in zip(tasks, [job.job_id for job in jobs], before, strict=True)]
        self._followed |= {it.task.key: it for it in submitted}
        self._note({it.task.key: {"job": it.job, "before": it.before} for it in submitted})

    def _noted(self) -> dict[str, Any]:
        try:
            return json.loads(read_file(self.files / "jobs.json"))
        except (OSError, ValueError):
            return {}

    def _note(self, jobs: Mapping[str, Any]) -> None:
        """Writes jobs into jobs.json; None takes one out."""
        known = {key: about for key, about in {**self._noted(), **jobs}.items() if about is not None}
        write_json(self.files / "jobs.json", known)

    def _look(self) -> list[Ended]:
        """Returns which tasks are over, by one call of squeue."""
        followed = list(self._followed.values())
        try:
            queue = slurm.queue([it.job for it in followed])
        except OSError as error:
            self._silent_since = self._silent_since or monotonic()
            if monotonic() < self._silent_since + PATIENCE:
                return []
            why = f"lost sight of it, for Slurm gave no answer for {PATIENCE / 60:g} min: {error}"
            ended = [Ended(it.task, None if _has_result(it) else why) for it in followed]
        else:
            self._silent_since = None
            ended = [self._ended(it, slurm.entry(queue, it.job)) for it in followed]
        over = [end for end in ended if end is not None]
        for end in over:
            self._forget(self._followed.pop(end.task.key))
        return over

    def _ended(self, followed: _Followed, found: slurm.InQueue | None) -> Ended | None:
        """Returns how a task ended; None if it goes on, or if it is too early to say."""
        state, reason = (found.state, found.reason) if found else ("gone", "")
        stuck, over = state == "COMPLETING", state == "gone" or state in slurm.ENDS
        if (stuck or over) and _has_result(followed):
            return Ended(followed.task)
        hopeless = state == "PENDING" and slurm.is_hopeless(reason)
        doubt = f"{state} {reason}" if stuck or over or hopeless else ""
        if doubt != followed.doubt:
            followed.doubt, followed.since = doubt, monotonic()
        if not doubt or monotonic() < followed.since + (PATIENCE if stuck else GRACE):
            return None
        if hopeless:
            why = f"Slurm would never start it: {reason}"
        elif stuck:
            why = f"its node did not let go of it for {PATIENCE / 60:g} min"
        else:
            why = slurm.why_ended(followed.job, found)
        if not over:
            slurm.cancel([followed.job])
        log = self.files / f"{followed.job}_0_log.out"
        return Ended(followed.task, f"{why}; see {log}" if log.exists() else why)

    def _forget(self, followed: _Followed) -> None:
        """Removes what submitit stores of a job that is over; its log stays."""
        for name in ("submitted", "0_result"):
            with suppress(OSError):
                (self.files / f"{followed.job}_{name}.pkl").unlink(missing_ok=True)


class SlurmLauncher(SweepLauncher):
    """Jobs of a Slurm cluster.

    Args:
        options: Those of SlurmOptions.
    """

    def __init__(self, **options: Any) -> None:
        self.asked = SlurmOptions(**options)

    def engine(self, tasks: int | None) -> SlurmEngine:
        """Returns the cluster, for any number of tasks."""
        return SlurmEngine(self.config.hydra.sweep.dir, self.asked)


def run_on_node(task: dict[str, Any], max_requeues: int) -> None:
    """Carries out a task as a job of Slurm; when its time is up, it asks for another turn.

    submitit ignores SIGTERM, and would put a job back after a guess at why it was signalled. Here SIGTERM ends the job,
    as scancel and preemption want it, and SIGUSR2, which Slurm sends before the limit, puts it back.
    """
    owner = os.getpid()

    def put_back(*_: object) -> None:
        if os.getpid() == owner and int(os.environ.get("SLURM_RESTART_COUNT", 0)) < max_requeues:
            print("The time limit is near: this job goes back into the queue.", flush=True)
            with suppress(OSError):  # then it goes on to its limit
                slurm.ask("scontrol", "requeue", os.environ["SLURM_JOB_ID"])

    for number in (signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, put_back)
    if "SLURM_CPUS_ON_NODE" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", os.environ["SLURM_CPUS_ON_NODE"])
    from raiopt.jobs import work

    work(task)


def _check_there() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise ValueError("hydra/launcher=slurm needs submitit: pip install 'raiopt[slurm]'") from None
    for program in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
        if shutil.which(program) is None:
            raise ValueError(f"hydra/launcher=slurm: there is no {program} on this machine; run it where Slurm is.")


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hides from new jobs what Slurm tells the job in which this process may run: it would change what they ask for."""
    inside = "SLURM_JOB_ID" in os.environ
    names = [name for name in os.environ if inside and name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _changed(task: Task) -> int | None:
    """Returns when the record of a task was last changed, in nanoseconds; None if there is none."""
    folder = Path(task.folder)
    with suppress(OSError):
        os.chmod(folder, folder.stat().st_mode)  # makes a network file system look again
    try:
        return (folder / "run.json").stat().st_mtime_ns
    except OSError:
        return None


def _has_result(followed: _Followed) -> bool:
    """Whether the job wrote into its record how it went; what an earlier job wrote there does not count."""
    changed = _changed(followed.task)
    return changed not in (None, followed.before) and read_record(Path(followed.task.folder)).get("status") in FINAL
