"""Warm worker processes on this machine: one job at a time each, with the model in memory between jobs."""

import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from typing import Any

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from raiopt import checks
from raiopt.jobs import begin_worker, work, written_to
from raiopt.processes import process_context, without_current_folder
from raiopt.sweep.launcher import SweepLauncher
from raiopt.sweep.task import Ended, Task

ATTEMPTS = 3
"""How many workers may die before a task began to run, until it is given up."""


class LocalEngine:
    """Runs tasks in worker processes of this machine.

    Each slot is a pool of one worker: so it is known which task a worker had that was killed, and each has its GPUs.
    Workers are forked from a server that has imported torch: a new one is there at once.

    Args:
        slots: How many workers.
        threads: Of torch, for each.
        timeout_min: Minutes that a job may take; None: any.
        gpus: For each slot the numbers of its GPUs; empty: as they are.
    """

    def __init__(
        self,
        slots: int,
        threads: int,
        timeout_min: float | None = None,
        gpus: Sequence[Sequence[str]] = (),
    ) -> None:
        self.slots: int | None = slots
        seconds = None if timeout_min is None else 60 * timeout_min
        visible = [",".join(numbers) for numbers in gpus] or [None] * slots
        self._slots = [_Slot(threads, numbers, seconds) for numbers in visible]

    def start(self, tasks: Sequence[Task]) -> None:
        """Gives each task to a slot that is free."""
        free = [slot for slot in self._slots if slot.task is None]
        for task, slot in zip(tasks, free, strict=False):
            slot.begin(task)

    def poll(self, seconds: float) -> list[Ended]:
        """Returns the tasks that ended; those whose worker died before they began are given to a new one."""
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
        self.pids = self.context.RawArray("i", 2)  # of the worker, and of that which took the task
        self.pool = self._pool()

    def _pool(self) -> ProcessPool:
        arguments = (self.threads, self.gpus, self.pids)
        return ProcessPool(1, initializer=_begin, initargs=arguments, context=self.context)  # pyright: ignore

    def begin(self, task: Task) -> None:
        self.task, self.attempts = task, 0
        self._attempt(task)

    def _attempt(self, task: Task) -> None:
        if not self.pool.active:  # its worker died while it had nothing to do
            self._renew()
        self.attempts += 1
        self.pids[1] = 0
        try:
            self.future = self.pool.schedule(_work, args=(task.plain(),), timeout=self.seconds)
        except RuntimeError as error:  # it died at this moment
            self.future = ProcessFuture()
            self.future.set_exception(BrokenProcessPool(str(error)))

    def _renew(self) -> None:
        self.pool.stop()
        self.pool.join()
        self.pool = self._pool()

    def ended(self) -> Ended | None:
        """Returns how its task ended, None if it runs on."""
        task, future = self.task, self.future
        if task is None or future is None:
            return None
        if future.done():
            error = future.exception()  # not raised: SystemExit of a job would end the sweep
        elif self.pids[1] not in (0, self.pids[0]):  # pebble waits for ever for a worker that ended with exit code 0
            error = ProcessExpired("ended", code=0)
            self._renew()
        elif not self.pool.active:
            error = BrokenProcessPool("it died before it took the task")
        else:
            return None
        if isinstance(error, BrokenProcessPool):
            self._renew()
            if self.attempts < ATTEMPTS:
                self._attempt(task)
                return None
        self.task = self.future = None
        return Ended(task, self._why(error))

    def _why(self, error: BaseException | None) -> str | None:
        match error:
            case None:
                return None
            case ProcessExpired():
                return told_exit(error.exitcode or 0)
            case TimeoutError():
                return f"over its limit of {(self.seconds or 0) / 60:g} min (hydra.launcher.timeout_min)"
            case BrokenProcessPool():
                return f"its worker could not start: {error} ({_last_words()})"
            case SystemExit():
                return f"its code called sys.exit({error.code!r})"
            case _:
                return f"its worker failed: {type(error).__name__}: {error}"


def server() -> ForkServerContext:
    """Returns what forks workers from a process that has imported torch; that process is started by the first call."""
    context = process_context("forkserver")
    context.set_forkserver_preload(["raiopt.experiment", "raiopt.jobs"])
    os.environ.setdefault("POLARS_MAX_THREADS", "1")  # read when polars is imported; the tables of a job are small
    with written_to(_said()), without_current_folder():
        forkserver.ensure_running()
    return context


@functools.cache
def _said() -> int:
    """Returns an open file without a name: what workers print between jobs goes there, not to the terminal."""
    file, name = tempfile.mkstemp()
    os.unlink(name)
    return file


def _last_words() -> str:
    """Returns the last line that a worker printed between jobs."""
    size = os.fstat(_said()).st_size
    lines = os.pread(_said(), 2000, max(0, size - 2000)).decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


_pids: Any = None  # in a worker, what its slot reads


def _begin(threads: int, gpus: str | None, pids: Any) -> None:
    """Prepares a worker."""
    global _pids
    _pids = pids
    pids[0] = os.getpid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once, and told as what it is; pebble makes an exit code of it
    begin_worker(threads, gpus)


def _work(task: dict[str, Any]) -> None:
    _pids[1] = os.getpid()
    work(task)


def told_exit(code: int) -> str:
    """Returns in words how a process ended, by its exit code as multiprocessing gives it: negative for a signal."""
    if code >= 0:
        return f"its process ended by itself, with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # real-time signals have none
        return f"its process was killed by signal {-code}"
    often = ": often the system's, when memory is short" if name == "SIGKILL" else ""
    return f"its process was killed by signal {-code} ({name}{often})"


class LocalLauncher(SweepLauncher):
    """Worker processes on this machine.

    Args:
        n_jobs: How many jobs at a time; None: one a GPU if there are GPUs and device asks for them, else one a core, 8
            at most.
        threads: Of torch, a job; None: the cores divided by the jobs.
        timeout_min: Minutes that a job may take; None: any.
        gpus_per_job: GPUs that a job sees; None: one if device asks for them and there are any.
    """

    def __init__(
        self,
        n_jobs: int | None = None,
        threads: int | None = None,
        timeout_min: float | None = None,
        gpus_per_job: int | None = None,
    ) -> None:
        for name, value in {"n_jobs": n_jobs, "threads": threads}.items():
            if value is not None:
                checks.number(f"hydra.launcher.{name}", value, low=1, integer=True)
        if timeout_min is not None:
            checks.number("hydra.launcher.timeout_min", timeout_min, above=0)
        if gpus_per_job is not None:
            checks.number("hydra.launcher.gpus_per_job", gpus_per_job, low=0, integer=True)
        self.n_jobs, self.threads, self.timeout_min, self.gpus_per_job = n_jobs, threads, timeout_min, gpus_per_job

    def setup(self, **shared: Any) -> None:
        """Is called by Hydra before the first jobs; the server of the workers starts while these are composed."""
        super().setup(**shared)
        server()

    def engine(self, tasks: int | None) -> LocalEngine:
        """Returns workers for so many tasks, each with its share of cores and GPUs."""
        there = gpus() if str(self.config.device) in ("auto", "cuda") else []
        each = self.gpus_per_job if self.gpus_per_job is not None else min(1, len(there))
        wanted = self.n_jobs or (len(there) // each if each else min(cores(), 8))
        slots = max(1, wanted if tasks is None else min(wanted, tasks))
        if each * slots > len(there):
            raise ValueError(
                f"hydra.launcher.gpus_per_job={each} for {slots} jobs at a time needs {each * slots} GPUs, and "
                f"device={self.config.device} has {len(there)} here: lower it, or hydra.launcher.n_jobs."
            )
        parts = [there[each * slot : each * (slot + 1)] for slot in range(slots)] if each else []
        return LocalEngine(slots, self.threads or max(1, cores() // slots), self.timeout_min, parts)


def cores() -> int:
    """Returns how many processor cores this process may use."""
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
