"""Runs the jobs of a sweep as Slurm job arrays: submits them, or finds them in the queue again, until they end."""

import io
import json
import os
import shlex
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from raiopt.processes import python_command
from raiopt.results.files import make_folder, read_file, write_json
from raiopt.results.record_reader import read_record
from raiopt.sweep import slurm_queue
from raiopt.sweep.launcher import FINAL, SweepLauncher
from raiopt.sweep.slurm_options import SlurmOptions
from raiopt.sweep.task import Ended, Task

INTERVAL = 2.0
"""Seconds between two calls of squeue."""
GRACE = 15.0
"""Seconds to wait for the result of a job that left the queue, because cluster file systems are slow."""
PATIENCE = 300.0
"""Seconds for which squeue may fail, or a node may fail to release a job."""


@dataclass
class _Followed:
    task: Task
    job: str
    before: int | None  # modification time of the record before the job was submitted
    doubt: str = ""
    since: float = 0.0


class SlurmExecutor:
    """Runs tasks as Slurm job arrays, using submitit; the queue shows when a job has ended, run.json has its result.

    Jobs outlive the process that submitted them: the next executor that gets the same task finds its job in
    `jobs.json`, and waits for it instead of submitting a new one.

    Args:
        folder: The sweep's folder, on a file system shared by all nodes. Scripts and logs go to `.slurm/` in it.
        options: The resources of each job.

    Raises:
        ValueError: If submitit or Slurm is missing.
    """

    slots: int | None = None

    def __init__(self, folder: str | os.PathLike[str], options: SlurmOptions) -> None:
        _check_installed()
        self.folder, self.options = Path(folder).absolute(), options
        if "%" in str(self.folder):
            raise ValueError(f"{self.folder} must not contain '%', which Slurm and submitit read as a pattern.")
        self.files = self.folder / ".slurm"
        self.name = f"raiopt-{self.folder.name}"
        self._followed: dict[str, _Followed] = {}
        self._asked_at = -float("inf")
        self._silent_since: float | None = None

    def start(self, tasks: Sequence[Task]) -> None:
        """Submits the tasks, except those that already have a job in the queue.

        Raises:
            ValueError: If Slurm rejects them; the message quotes Slurm.
        """
        try:
            fresh = self._adopt(tasks)
            size = slurm_queue.largest_array() if fresh else 1
        except OSError as error:
            raise ValueError(f"Slurm does not answer: {error}") from None
        for first in range(0, len(fresh), size):
            self._submit(fresh[first : first + size])

    def poll(self, seconds: float) -> list[Ended]:
        """Waits for tasks to end; returns those that ended since the last call."""
        until = monotonic() + seconds
        while self._followed:
            if monotonic() >= self._asked_at + INTERVAL:
                ended, self._asked_at = self._ask_queue(), monotonic()
                if ended:
                    return ended
            if monotonic() >= until:
                break
            sleep(max(0.0, min(until, self._asked_at + INTERVAL) - monotonic()))
        return []

    def close(self) -> None:
        """Cancels the jobs in the queue."""
        if self._followed:
            slurm_queue.cancel([followed.job for followed in self._followed.values()])
            with suppress(OSError):
                self._store_jobs({key: None for key in self._followed})
        self._followed.clear()

    def _adopt(self, tasks: Sequence[Task]) -> list[Task]:
        """Starts following the existing jobs of tasks in the queue; returns the tasks without a job."""
        stored = self._stored_jobs()
        queue = slurm_queue.queue([stored[task.key]["job"] for task in tasks if task.key in stored])
        for task in tasks:
            about = stored.get(task.key, {})
            found = slurm_queue.entry(queue, about.get("job", ""))
            if found is not None and found.state not in slurm_queue.ENDS and found.name == self.name:
                self._followed[task.key] = _Followed(task, about["job"], about["before"])
        return [task for task in tasks if task.key not in self._followed]

    def _submit(self, tasks: Sequence[Task]) -> None:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        arrays = submitit.SlurmExecutor(make_folder(self.files, parents=True), python=shlex.join(python_command()))
        arrays.update_parameters(job_name=self.name, **self.options.for_submitit())
        before = [_changed(task) for task in tasks]
        try:
            with _outside_of_jobs(), redirect_stderr(io.StringIO()):  # submitit also prints the error message
                jobs = arrays.map_array(
                    run_on_node, [task.plain() for task in tasks], [self.options.max_requeues] * len(tasks)
                )
        except (FailedJobError, FailedSubmissionError) as error:
            for left in self.files.glob(f"{'[0-9a-f]' * 32}.pkl"):  # pickled tasks that never got a job number
                left.unlink()
            raise ValueError(f"Slurm refuses the jobs: {slurm_queue.message_of(str(error))}") from None
        submitted = [_Followed(*each) for each in zip(tasks, [job.job_id for job in jobs], before, strict=True)]
        self._followed |= {it.task.key: it for it in submitted}
        self._store_jobs({it.task.key: {"job": it.job, "before": it.before} for it in submitted})

    def _stored_jobs(self) -> dict[str, Any]:
        try:
            return json.loads(read_file(self.files / "jobs.json"))
        except (OSError, ValueError):
            return {}

    def _store_jobs(self, jobs: Mapping[str, Any]) -> None:
        """Updates jobs in jobs.json; None removes a job."""
        known = {key: about for key, about in {**self._stored_jobs(), **jobs}.items() if about is not None}
        write_json(self.files / "jobs.json", known)

    def _ask_queue(self) -> list[Ended]:
        """Returns the tasks that have ended, using one call of squeue."""
        followed = list(self._followed.values())
        try:
            queue = slurm_queue.queue([it.job for it in followed])
        except OSError as error:
            self._silent_since = self._silent_since or monotonic()
            if monotonic() < self._silent_since + PATIENCE:
                return []
            why = f"Slurm did not answer for {PATIENCE / 60:g} min: {error}"
            ended = [Ended(it.task, None if _has_result(it) else why) for it in followed]
        else:
            self._silent_since = None
            ended = [self._ended(it, slurm_queue.entry(queue, it.job)) for it in followed]
        over = [end for end in ended if end is not None]
        for end in over:
            self._forget(self._followed.pop(end.task.key))
        return over

    def _ended(self, followed: _Followed, found: slurm_queue.InQueue | None) -> Ended | None:
        """Returns how a task ended; None if it is still running, or if that is not known yet."""
        state, reason = (found.state, found.reason) if found else ("gone", "")
        stuck, over = state == "COMPLETING", state == "gone" or state in slurm_queue.ENDS
        if (stuck or over) and _has_result(followed):
            return Ended(followed.task)
        hopeless = state == "PENDING" and slurm_queue.is_hopeless(reason)
        doubt = f"{state} {reason}" if stuck or over or hopeless else ""
        if doubt != followed.doubt:
            followed.doubt, followed.since = doubt, monotonic()
        if not doubt or monotonic() < followed.since + (PATIENCE if stuck else GRACE):
            return None
        if hopeless:
            why = f"Slurm would never start it: {reason}"
        elif stuck:
            why = f"its node did not release it for {PATIENCE / 60:g} min"
        else:
            why = slurm_queue.why_ended(followed.job, found)
        if not over:
            slurm_queue.cancel([followed.job])
        log = self.files / f"{followed.job}_0_log.out"
        return Ended(followed.task, f"{why}; see {log}" if log.exists() else why)

    def _forget(self, followed: _Followed) -> None:
        """Removes submitit's files for a job that has ended, except its log."""
        for name in ("submitted", "0_result"):
            with suppress(OSError):
                (self.files / f"{followed.job}_{name}.pkl").unlink(missing_ok=True)


class SlurmLauncher(SweepLauncher):
    """Jobs of a Slurm cluster; its options are in `SlurmOptions`, because `setup` is also the name of a method."""

    def __init__(self, **options: Any) -> None:
        self.options = SlurmOptions(**options)

    def executor(self, tasks: int | None) -> SlurmExecutor:
        """Returns the executor, for any number of tasks."""
        return SlurmExecutor(self.config.hydra.sweep.dir, self.options)


def run_on_node(task: dict[str, Any], max_requeues: int) -> None:
    """Runs a task as a Slurm job, which is requeued shortly before its time limit.

    submitit ignores SIGTERM, and decides on requeueing by guessing why a job received a signal. Here, SIGTERM ends the
    job, as scancel and preemption expect, and SIGUSR2, which Slurm sends before the time limit, requeues it.
    """
    owner = os.getpid()

    def requeue(*_: object) -> None:
        if os.getpid() == owner and int(os.environ.get("SLURM_RESTART_COUNT", 0)) < max_requeues:
            print("The time limit is near: this job goes back into the queue.", flush=True)
            with suppress(OSError):  # on failure the job continues to its limit
                slurm_queue.ask("scontrol", "requeue", os.environ["SLURM_JOB_ID"])

    for number in (signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, requeue)
    if "SLURM_CPUS_ON_NODE" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", os.environ["SLURM_CPUS_ON_NODE"])
    from raiopt.config.jobs import work

    work(task)


def _check_installed() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise ValueError("hydra/launcher=slurm needs submitit: pip install 'raiopt[slurm]'") from None
    for name in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
        if shutil.which(name) is None:
            raise ValueError(f"hydra/launcher=slurm: this machine has no {name}; run it where Slurm is installed.")


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hides the environment variables of the Slurm job around this process, so that new jobs do not inherit them."""
    inside = "SLURM_JOB_ID" in os.environ
    names = [name for name in os.environ if inside and name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _changed(task: Task) -> int | None:
    """Returns the modification time of a task's record in nanoseconds; None if there is none."""
    folder = Path(task.folder)
    with suppress(OSError):
        os.chmod(folder, folder.stat().st_mode)  # makes a network file system update its cache
    try:
        return (folder / "run.json").stat().st_mtime_ns
    except OSError:
        return None


def _has_result(followed: _Followed) -> bool:
    """Returns whether the job recorded how it ended; the record of an earlier job does not count."""
    changed = _changed(followed.task)
    record = read_record(Path(followed.task.folder))
    return changed not in (None, followed.before) and record is not None and record.status in FINAL
