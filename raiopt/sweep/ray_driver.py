"""The separate process that runs Ray, because Ray prints a lot and ends a process that loses its cluster."""

import importlib
import json
import logging
import os
import queue
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import monotonic, sleep
from typing import Any

from raiopt.sweep.endings import MAX_START_ATTEMPTS, one_line, over_limit

PATIENCE = 60.0
"""Seconds for which the cluster may lack a node that can run a job, such as while nodes restart."""
GRACE = 15.0
"""Seconds that this process may take to shut down."""
STORE_BYTES = 80 * 2**20
"""Shared memory of a cluster on this machine: near Ray's minimum, because jobs exchange only short strings."""


def main(descriptor: str, options: str) -> None:
    """Runs tasks on Ray until the other end of a pipe is closed.

    First it sends (True, "") or (False, error message); then it receives lists of (key, task) and sends lists of
    (key, reason of the end), where the reason is None for a job that ended by itself.

    Args:
        descriptor: The number of the pipe's file descriptor.
        options: JSON with address, num_cpus, num_gpus (None: one if a node has any), timeout_min, runtime_env, and
            scratch, a folder that is removed at the end.
    """
    pipe, chosen = Connection(int(descriptor)), json.loads(options)
    inbox: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, inbox), daemon=True).start()
    try:
        _serve(pipe, inbox, chosen)
    except OSError as error:  # the sweep has ended
        print(error, file=sys.stderr)


def _read(pipe: Connection, inbox: "queue.SimpleQueue[list[Any] | None]") -> None:
    try:
        while True:
            inbox.put(pipe.recv())
    except (EOFError, OSError):
        inbox.put(None)
    sleep(GRACE)
    os._exit(1)


def _serve(pipe: Connection, inbox: "queue.SimpleQueue[list[Any] | None]", options: dict[str, Any]) -> None:
    try:
        cluster = Cluster(**options)
    except Exception as error:
        pipe.send((False, str(error) if isinstance(error, ValueError) else f"Ray refused: {one_line(error)}"))
        return
    pipe.send((True, ""))
    try:
        while True:
            try:
                tasks = inbox.get(block=not cluster.jobs)
            except queue.Empty:
                tasks = []
            if tasks is None:
                return
            for key, task in tasks:
                cluster.submit(Job(key, task))
            if ended := cluster.ended(0.2):
                pipe.send(ended)
    finally:
        cluster.close()
        shutil.rmtree(options["scratch"], ignore_errors=True)


@dataclass(eq=False)
class Job:
    """A task that was submitted to Ray.

    Args:
        where: Its process and node; None until it runs.
        why: The reason why it was cancelled, if it was.
    """

    key: str
    task: dict[str, Any]
    attempts: int = 0
    where: str | None = None
    began: float = 0.0
    why: str | None = None


class Cluster:
    """A Ray cluster that runs tasks with equal resource requirements.

    Args:
        options: The options of `RayLauncher`, and scratch, the folder of a cluster on this machine.
    """

    def __init__(self, **options: Any) -> None:
        ray: Any = importlib.import_module("ray")
        address, runtime_env, num_gpus = (options[name] for name in ("address", "runtime_env", "num_gpus"))
        # Without a working_dir, Ray's workers first look for modules in the folder in which Ray was started.
        here, has_folder = os.getcwd(), "working_dir" in (runtime_env or {})
        environment = runtime_env if has_folder else with_absolute_paths(runtime_env, here)
        own = {"include_dashboard": False, "object_store_memory": STORE_BYTES, "_temp_dir": options["scratch"]}
        where = {"address": address} if address else {"address": "local", **own}
        try:
            with chdir(here if has_folder else options["scratch"]):
                ray.init(runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR, **where)
        except ConnectionError as error:
            raise ValueError(no_cluster(address, one_line(error))) from error
        self.ray, self.jobs, self.timeout_min = ray, dict[Any, Job](), options["timeout_min"]
        most_gpus = max([node.get("GPU", 0) for node in self._nodes()], default=0)
        gpus = min(1, most_gpus) if num_gpus is None else num_gpus
        self.needs = {"num_cpus": options["num_cpus"], "num_gpus": gpus}
        self.lacking_since: float | None = None
        self.checked_at = monotonic()
        if refusal := lacking(self.needs, self._nodes()):
            self.close()
            raise ValueError(refusal)
        # A process keeps its first GPU, whatever Ray assigns later, so with several GPUs processes are not reused.
        calls = 1 if gpus and most_gpus > 1 else 0
        self.work = ray.remote(num_returns="streaming", max_retries=0, max_calls=calls, **self.needs)(_work)
        self.folder = None if has_folder else here

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def submit(self, job: Job) -> None:
        """Puts a task into Ray's queue."""
        job.attempts += 1
        self.jobs[self.work.remote(job.task, self.folder)] = job

    def ended(self, seconds: float) -> list[tuple[str, str | None]]:
        """Waits for jobs to end; returns keys and reasons. Cancels jobs that exceed their limit or can never run."""
        if not self.jobs:
            return []
        streams = list(self.jobs)
        ready, _ = self.ray.wait(streams, num_returns=len(streams), timeout=seconds)
        ended = [(job.key, why) for job, why in map(self._state, ready) if why != "runs"]
        if self.timeout_min is not None:
            limit = 60 * self.timeout_min
            self._cancel(over_limit(self.timeout_min), lambda job: job.where and monotonic() - job.began > limit)
        self._cancel_hopeless()
        return ended

    def _state(self, stream: Any) -> tuple[Job, str | None]:
        """Returns a job with the reason of its end, or "runs" when its stream yields where it runs, before it ends."""
        job = self.jobs[stream]
        try:
            job.where, job.began = self.ray.get(next(stream)), monotonic()
            return job, "runs"
        except StopIteration:
            why = None
        except Exception as error:
            why = job.why or self._reason(error, job.where or "its process")
            if isinstance(error, self.ray.exceptions.WorkerCrashedError) and job.where is None and not job.why:
                if job.attempts < MAX_START_ATTEMPTS:  # the process died between two jobs
                    del self.jobs[stream]
                    self.submit(job)
                    return job, "runs"
                why = f"its worker could not start: {one_line(error)}"
        del self.jobs[stream]
        return job, why

    def _reason(self, error: Exception, where: str) -> str:
        kinds, words = self.ray.exceptions, one_line(str(error).partition(". ")[0])
        if isinstance(error, kinds.OutOfMemoryError):
            return f"{where} was killed because memory was short: {words}"
        if isinstance(error, kinds.WorkerCrashedError):
            return f"{where} was killed: {words}"
        if isinstance(error, kinds.NodeDiedError | kinds.LocalRayletDiedError | kinds.ObjectLostError):
            return f"its node was lost: {words}"
        if isinstance(error, kinds.TaskCancelledError):
            return f"{where} was cancelled"
        return f"its worker failed: {one_line(getattr(error, 'cause', None) or error)}"

    def _cancel(self, why: str, is_chosen: Callable[[Job], Any]) -> None:
        for stream, job in self.jobs.items():
            if not job.why and is_chosen(job):
                job.why = why
                self.ray.cancel(stream, force=True)

    def _cancel_hopeless(self) -> None:
        """Cancels jobs that wait for a kind of node that left the cluster, if none has come back for a while."""
        if monotonic() - self.checked_at < PATIENCE / 6:
            return
        self.checked_at = monotonic()
        refusal = lacking(self.needs, self._nodes())
        self.lacking_since = (self.lacking_since or monotonic()) if refusal else None
        if self.lacking_since and monotonic() - self.lacking_since >= PATIENCE:
            self._cancel(refusal, lambda job: job.where is None)

    def close(self) -> None:
        """Cancels running jobs and disconnects; a cluster that was started on this machine is shut down."""
        for stream, job in self.jobs.items():
            if job.where:
                self.ray.cancel(stream, force=True)
        self.ray.shutdown()


def _work(task: dict[str, Any], folder: str | None) -> Iterator[str]:
    """Runs a task in a Ray worker, in the folder where the sweep was started; yields where it runs before it starts."""
    if folder is not None:
        os.chdir(folder)
    os.environ.setdefault("POLARS_MAX_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    yield f"its process {os.getpid()} on {socket.gethostname()}"
    from raiopt.config.jobs import work

    work(task)


def with_absolute_paths(runtime_env: dict[str, Any] | None, folder: str) -> dict[str, Any] | None:
    """Returns a runtime_env with paths relative to `folder` made absolute.

    >>> with_absolute_paths({"pip": "needs.txt", "py_modules": ["own", "s3://bucket/own.zip"]}, "/home/me")
    {'pip': '/home/me/needs.txt', 'py_modules': ['/home/me/own', 's3://bucket/own.zip']}
    """

    def absolute(name: str, value: Any) -> Any:
        if name == "py_modules" and isinstance(value, list):
            return [entry if "://" in str(entry) else os.path.join(folder, entry) for entry in value]
        is_file = name in ("pip", "uv") or (name == "conda" and str(value).endswith((".yml", ".yaml")))
        return os.path.join(folder, value) if is_file and isinstance(value, str) else value

    return None if runtime_env is None else {name: absolute(name, value) for name, value in runtime_env.items()}


def lacking(needs: dict[str, float], nodes: Sequence[dict[str, float]]) -> str:
    """Returns a message naming the resource that no node has enough of; empty if some node can run the job.

    >>> nodes = [{"CPU": 8.0}, {"CPU": 4.0, "GPU": 2.0}]
    >>> lacking({"num_cpus": 4, "num_gpus": 2}, nodes)
    ''
    >>> lacking({"num_cpus": 4, "num_gpus": 3}, nodes)
    'hydra.launcher.num_gpus=3 is more than any node of the Ray cluster has (2): lower it.'
    """
    if any(node.get("CPU", 0) >= needs["num_cpus"] and node.get("GPU", 0) >= needs["num_gpus"] for node in nodes):
        return ""
    for option, name in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
        most, need = max((node.get(name, 0) for node in nodes), default=0), f"hydra.launcher.{option}={needs[option]:g}"
        if needs[option] > most:
            return f"{need} is more than any node of the Ray cluster has ({most:g}): lower it."
    both = " with ".join(f"hydra.launcher.{option}={value:g}" for option, value in needs.items())
    return f"{both} is more than any single node of the Ray cluster has: lower one of them."


def no_cluster(address: str | None, why: str) -> str:
    """Returns the error message for a cluster that does not answer."""
    return (
        f"hydra.launcher.address={address!r}: no Ray cluster answers ({why}). Start one with `ray start --head`, or "
        "leave the address out for one on this machine only."
    )
