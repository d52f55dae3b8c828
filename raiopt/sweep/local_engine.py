"""Warm worker processes on this machine: one job at a time each, with the model in memory between jobs."""

import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from raiopt import checks
from raiopt.jobs import begin_worker, work
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
        self, slots: int, threads: int, timeout_min: float | None = None, gpus: Sequence[Sequence[str]] = ()
    ) -> None:
        self.slots: int | None = slots
        limits = {"OMP_NUM_THREADS": str(threads), "POLARS_MAX_THREADS": str(threads)}
        os.environ.update({name: value for name, value in limits.items() if name not in os.environ})
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["raiopt.experiment", "raiopt.jobs"])
        seconds = None if timeout_min is None else 60 * timeout_min
        visible = [",".join(numbers) for numbers in gpus] or [None] * slots
        self._slots = [_Slot(functools.partial(self._pool, threads, numbers), seconds) for numbers in visible]

    def _pool(self, threads: int, gpus: str | None) -> ProcessPool:
        return ProcessPool(1, initializer=begin_worker, initargs=(threads, gpus), context=self._context)  # pyright: ignore

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
    def __init__(self, make: Callable[[], ProcessPool], seconds: float | None) -> None:
        self.make, self.seconds = make, seconds
        self.pool = make()
        self.task: Task | None = None
        self.future: ProcessFuture[Any] | None = None
        self.attempts = 0

    def begin(self, task: Task) -> None:
        self.task, self.attempts = task, 0
        self._attempt(task)

    def _attempt(self, task: Task) -> None:
        if not self.pool.active:  # its worker died while it had nothing to do
            self._renew()
        self.attempts += 1
        self.future = self.pool.schedule(work, args=(task.plain(),), timeout=self.seconds)

    def _renew(self) -> None:
        self.pool.stop()
        self.pool.join()
        self.pool = self.make()

    def ended(self) -> Ended | None:
        """Returns how its task ended, None if it runs on."""
        if self.task is None or self.future is None or not self.future.done():
            return None
        task, why = self.task, None
        try:
            self.future.result()
        except ProcessExpired as error:
            why = told_exit(error.exitcode or 0)
        except TimeoutError:
            why = f"over its limit of {(self.seconds or 0) / 60:g} min (hydra.launcher.timeout_min)"
        except BrokenProcessPool as error:
            self._renew()
            if self.attempts < ATTEMPTS:
                self._attempt(task)
                return None
            why = f"its worker could not start: {error}"
        except Exception as error:
            why = f"its worker failed: {type(error).__name__}: {error}"
        self.task = self.future = None
        return Ended(task, why)


def told_exit(code: int) -> str:
    """Returns in words how a process ended, by its exit code as multiprocessing gives it: negative for a signal."""
    if code >= 0:
        return f"its process ended by itself, with exit code {code}"
    name = signal.Signals(-code).name
    often = ": often the system's, when memory is short" if name == "SIGKILL" else ""
    return f"its process was killed by signal {-code} ({name}{often})"


class LocalLauncher(SweepLauncher):
    """hydra/launcher=local: worker processes on this machine.

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
