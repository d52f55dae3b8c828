"""Worker processes on this machine, each running one job at a time and keeping the model in memory between jobs."""

import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from raiopt.config.jobs import begin_worker, work, written_to
from raiopt.processes import process_context, without_current_folder
from raiopt.sweep.endings import MAX_START_ATTEMPTS, exit_reason, last_line, over_limit
from raiopt.sweep.launcher import SweepLauncher, check_options
from raiopt.sweep.task import Ended, Task


class LocalExecutor:
    """Runs tasks in worker processes of this machine.

    Each slot is a pool of one worker, so that it has its own GPUs and the task of a killed worker is known. Workers are
    forked from a server process that has already imported torch, so they start immediately.

    Args:
        slots: The number of workers.
        threads: Torch's CPU threads per worker.
        timeout_min: Time limit of a job in minutes; None: no limit.
        gpus: For each slot, the numbers of its GPUs; empty: all workers see all GPUs.
    """

    def __init__(
        self, slots: int, threads: int, timeout_min: float | None = None, gpus: Sequence[Sequence[str]] = ()
    ) -> None:
        self.slots: int | None = slots
        seconds = None if timeout_min is None else 60 * timeout_min
        visible = [",".join(numbers) for numbers in gpus] or [None] * slots
        self._slots = [_Slot(threads, numbers, seconds) for numbers in visible]

    def start(self, tasks: Sequence[Task]) -> None:
        """Gives each task to a free slot."""
        free = [slot for slot in self._slots if slot.task is None]
        for task, slot in zip(tasks, free, strict=False):
            slot.begin(task)

    def poll(self, seconds: float) -> list[Ended]:
        """Returns the tasks that ended; a task whose worker died before starting it is given to a new worker."""
        busy = [slot for slot in self._slots if slot.task is not None]
        wait([slot.future for slot in busy if slot.future is not None], timeout=seconds, return_when=FIRST_COMPLETED)
        return [ended for slot in busy if (ended := slot.ended()) is not None]

    def close(self) -> None:
        """Ends all workers."""
        for slot in self._slots:
            slot.pool.stop()
        for slot in self._slots:
            slot.pool.join()


class _Slot:
    def __init__(self, threads: int, gpus: str | None, seconds: float | None) -> None:
        self.context = server()
        self.threads, self.gpus, self.seconds = threads, gpus, seconds
        self.task: Task | None = None
        self.future: ProcessFuture[Any] | None = None
        self.attempts = 0
        self.pids = self.context.RawArray("i", 2)  # the PIDs of the worker, and of the worker that took the task
        self.pool = self._pool()

    def _pool(self) -> ProcessPool:
        arguments = (self.threads, self.gpus, self.pids)
        return ProcessPool(1, initializer=_begin, initargs=arguments, context=self.context)  # pyright: ignore

    def begin(self, task: Task) -> None:
        self.task, self.attempts = task, 0
        self._attempt(task)

    def _attempt(self, task: Task) -> None:
        if not self.pool.active:  # the worker died while idle
            self._renew()
        self.attempts += 1
        self.pids[1] = 0
        try:
            self.future = self.pool.schedule(_work, args=(task.plain(),), timeout=self.seconds)
        except RuntimeError as error:  # the worker died at this moment
            self.future = ProcessFuture()
            self.future.set_exception(BrokenProcessPool(str(error)))

    def _renew(self) -> None:
        self.pool.stop()
        self.pool.join()
        self.pool = self._pool()

    def ended(self) -> Ended | None:
        """Returns how the slot's task ended; None if it is still running."""
        task, future = self.task, self.future
        if task is None or future is None:
            return None
        if future.done():
            error = future.exception()  # not re-raised: a job's SystemExit would end the sweep
        elif self.pids[1] not in (0, self.pids[0]):  # pebble waits forever if a worker exits with code 0
            error = ProcessExpired("ended", code=0)
            self._renew()
        elif not self.pool.active:
            error = BrokenProcessPool("it died before it took the task")
        else:
            return None
        if isinstance(error, BrokenProcessPool):
            self._renew()
            if self.attempts < MAX_START_ATTEMPTS:
                self._attempt(task)
                return None
        self.task = self.future = None
        return Ended(task, self._reason(error))

    def _reason(self, error: BaseException | None) -> str | None:
        match error:
            case None:
                return None
            case ProcessExpired():
                return exit_reason(error.exitcode or 0)
            case TimeoutError():
                return over_limit((self.seconds or 0) / 60)
            case BrokenProcessPool():
                size = os.fstat(_output()).st_size
                printed = os.pread(_output(), 2000, max(0, size - 2000)).decode(errors="replace")
                return f"its worker could not start: {error} ({last_line(printed)})"
            case SystemExit():
                return f"its code called sys.exit({error.code!r})"
            case _:
                return f"its worker failed: {type(error).__name__}: {error}"


def server() -> ForkServerContext:
    """Returns the context that forks workers from a server process with torch imported; the first call starts it."""
    context = process_context("forkserver")
    # The first optimizer created in a process imports torch._dynamo, which takes longer than torch itself.
    context.set_forkserver_preload(["raiopt.experiment", "raiopt.config.jobs", "torch._dynamo"])
    os.environ.setdefault("POLARS_MAX_THREADS", "1")  # read on import of polars; a job's tables are small
    with written_to(_output()), without_current_folder():
        forkserver.ensure_running()
    return context


@functools.cache
def _output() -> int:
    """Returns an open temporary file that receives the output of workers between jobs, instead of the terminal."""
    file, name = tempfile.mkstemp()
    os.unlink(name)
    return file


_pids: Any = None  # in a worker: the PIDs that its slot reads


def _begin(threads: int, gpus: str | None, pids: Any) -> None:
    """Prepares a worker."""
    global _pids
    _pids = pids
    pids[0] = os.getpid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pebble would turn it into an exit code
    begin_worker(threads, gpus)


def _work(task: dict[str, Any]) -> None:
    _pids[1] = os.getpid()
    work(task)


@dataclass(eq=False)
class LocalLauncher(SweepLauncher):
    """Worker processes on this machine.

    Args:
        n_jobs: Number of parallel jobs; null: one per GPU if device asks for GPUs and there are any, else one per core,
            at most 8.
        threads: Torch's CPU threads per job; null: the number of cores divided by the number of parallel jobs.
        timeout_min: Time limit of a job in minutes; null: no limit.
        gpus_per_job: GPUs that each job sees; null: one if device asks for GPUs and there are any.
    """

    n_jobs: int | None = None
    threads: int | None = None
    timeout_min: float | None = None
    gpus_per_job: int | None = None

    def __post_init__(self) -> None:
        check_options("hydra.launcher", self, {"n_jobs": 1, "threads": 1, "gpus_per_job": 0}, ["timeout_min"])

    def setup(self, **shared: Any) -> None:
        """Called by Hydra before the first jobs; starts the server of the workers while jobs are being composed."""
        super().setup(**shared)
        server()

    def executor(self, tasks: int | None) -> LocalExecutor:
        """Returns workers for this number of tasks, each with its share of cores and GPUs."""
        found = gpus() if str(self.config.device) in ("auto", "cuda") else []
        each = self.gpus_per_job if self.gpus_per_job is not None else min(1, len(found))
        wanted = self.n_jobs or (len(found) // each if each else min(cores(), 8))
        slots = max(1, wanted if tasks is None else min(wanted, tasks))
        if each * slots > len(found):
            raise ValueError(
                f"hydra.launcher.gpus_per_job={each} for {slots} jobs at a time needs {each * slots} GPUs, and "
                f"device={self.config.device} has {len(found)} here: lower it, or hydra.launcher.n_jobs."
            )
        parts = [found[each * slot : each * (slot + 1)] for slot in range(slots)] if each else []
        return LocalExecutor(slots, self.threads or max(1, cores() // slots), self.timeout_min, parts)


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Returns the numbers of the GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [number.strip() for number in visible.split(",") if number.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    found = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    return found.stdout.split() if found.returncode == 0 else []
