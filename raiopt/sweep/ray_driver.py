"""The process that speaks with Ray for a sweep: Ray prints as it likes, and ends a process that loses its cluster."""

import json
import logging
import os
import queue
import shutil
import socket
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import monotonic, sleep
from typing import Any

ATTEMPTS = 3
"""How many workers may die before a task began to run, until it is given up."""
PATIENCE = 60.0
"""Seconds for which no node may be there that could run a job, while others are restarted."""
GRACE = 15.0
"""Seconds that the end of this process may take, once it is wanted."""
STORE_BYTES = 80 * 2**20
"""Of shared memory that a cluster on this machine takes: near Ray's least, for jobs exchange only small texts."""


def main(descriptor: str, options: str) -> None:
    """Runs tasks on Ray until the other end of a pipe is closed.

    First it sends (True, "") or (False, why it cannot); then it receives lists of (key, task) and sends lists of (key,
    why it ended), in which None stands for a job that came to its own end.

    Args:
        descriptor: The number of the pipe's file descriptor.
        options: JSON: address, num_cpus, num_gpus (None: one if a node has any), timeout_min, runtime_env, and scratch,
            a folder that is removed at the end.
    """
    pipe, chosen = Connection(int(descriptor)), json.loads(options)
    inbox: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, inbox), daemon=True).start()
    try:
        _serve(pipe, inbox, chosen)
    except OSError as error:  # the sweep is gone
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
    """A task in the eyes of Ray.

    Args:
        where: Its process and node; None until it runs.
        why: Why it was cancelled.
    """

    key: str
    task: dict[str, Any]
    attempts: int = 0
    where: str | None = None
    began: float = 0.0
    why: str | None = None


class Cluster:
    """A Ray cluster, for tasks that all need the same; see `RayEngine` for the arguments."""

    def __init__(
        self,
        address: str | None,
        num_cpus: float,
        num_gpus: float | None,
        timeout_min: float | None,
        runtime_env: dict[str, Any] | None,
        scratch: str,
    ) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        # Without a working_dir, Ray's workers look for modules first in the folder in which it is started.
        here, has_folder = os.getcwd(), "working_dir" in (runtime_env or {})
        own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES, "_temp_dir": scratch}
        try:
            with chdir(here if has_folder else scratch):
                ray.init(
                    address=address or "local",
                    runtime_env=runtime_env if has_folder else with_absolute_paths(runtime_env, here),
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **({} if address else own),
                )
        except ConnectionError as error:
            raise ValueError(no_cluster(address, one_line(error))) from error
        self.ray, self.jobs, self.timeout_min = ray, dict[Any, Job](), timeout_min
        self.most_gpus = max([node.get("GPU", 0) for node in self._nodes()], default=0)
        self.needs = {"num_cpus": num_cpus, "num_gpus": min(1, self.most_gpus) if num_gpus is None else num_gpus}
        self.lacking_since: float | None = None
        self.looked = monotonic()
        if refusal := lacking(self.needs, self._nodes()):
            self.close()
            raise ValueError(refusal)
        # A process keeps the GPU that it began with, whatever Ray gives it later: with several it is not used again.
        calls = 1 if self.needs["num_gpus"] and self.most_gpus > 1 else 0
        run = ray.remote(num_returns="streaming", max_retries=0, max_calls=calls, **self.needs)
        self.work = run(_work)
        self.folder = None if has_folder else here

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def submit(self, job: Job) -> None:
        """Puts a task into Ray's queue."""
        job.attempts += 1
        self.jobs[self.work.remote(job.task, self.folder)] = job

    def ended(self, seconds: float) -> list[tuple[str, str | None]]:
        """Waits so long; returns key and why of what ended. Cancels what is over its limit or can never run."""
        if not self.jobs:
            return []
        streams = list(self.jobs)
        ready, _ = self.ray.wait(streams, num_returns=len(streams), timeout=seconds)
        ended = [(job.key, why) for job, why in map(self._look, ready) if why != "runs"]
        self._cancel_late()
        self._cancel_hopeless()
        return ended

    def _look(self, stream: Any) -> tuple[Job, str | None]:
        """Returns a job with why it ended, or with "runs": a stream first tells that it runs, and then its end."""
        job = self.jobs[stream]
        try:
            job.where, job.began = self.ray.get(next(stream)), monotonic()
            return job, "runs"
        except StopIteration:
            why = None
        except Exception as error:
            why = job.why or self._told(error, job.where or "its process")
            if isinstance(error, self.ray.exceptions.WorkerCrashedError) and job.where is None and not job.why:
                if job.attempts < ATTEMPTS:  # the process died between two jobs
                    del self.jobs[stream]
                    self.submit(job)
                    return job, "runs"
                why = f"its worker could not start: {one_line(error)}"
        del self.jobs[stream]
        return job, why

    def _told(self, error: Exception, where: str) -> str:
        kinds, words = self.ray.exceptions, one_line(str(error).partition(". ")[0])
        if isinstance(error, kinds.OutOfMemoryError):
            return f"{where} was killed, for memory was short: {words}"
        if isinstance(error, kinds.WorkerCrashedError):
            return f"{where} was killed: {words}"
        if isinstance(error, kinds.NodeDiedError | kinds.LocalRayletDiedError | kinds.ObjectLostError):
            return f"its node was lost: {words}"
        if isinstance(error, kinds.TaskCancelledError):
            return f"{where} was cancelled"
        return f"its worker failed: {one_line(getattr(error, 'cause', None) or error)}"

    def _cancel_late(self) -> None:
        if self.timeout_min is None:
            return
        for stream, job in self.jobs.items():
            if job.where and not job.why and monotonic() - job.began > 60 * self.timeout_min:
                job.why = f"over its limit of {self.timeout_min:g} min (hydra.launcher.timeout_min)"
                self.ray.cancel(stream, force=True)

    def _cancel_hopeless(self) -> None:
        """Cancels what waits for a kind of node that has left the cluster, if none has come back for a while."""
        if monotonic() - self.looked < PATIENCE / 6:
            return
        self.looked = monotonic()
        refusal = lacking(self.needs, self._nodes())
        self.lacking_since = (self.lacking_since or monotonic()) if refusal else None
        if refusal and self.lacking_since and monotonic() - self.lacking_since >= PATIENCE:
            for stream, job in self.jobs.items():
                if job.where is None and not job.why:
                    job.why = refusal
                    self.ray.cancel(stream, force=True)

    def close(self) -> None:
        """Ends what runs, and leaves the cluster; one on this machine ends with it."""
        for stream, job in self.jobs.items():
            if job.where:
                self.ray.cancel(stream, force=True)
        self.ray.shutdown()


def _work(task: dict[str, Any], folder: str | None) -> Iterator[str]:
    """Carries out a task in a process of Ray, in the folder that the sweep was started in; first says where it runs."""
    if folder is not None:
        os.chdir(folder)
    os.environ.setdefault("POLARS_MAX_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    yield f"its process {os.getpid()} on {socket.gethostname()}"
    from raiopt.jobs import work

    work(task)


def with_absolute_paths(runtime_env: dict[str, Any] | None, folder: str) -> dict[str, Any] | None:
    """Returns a runtime_env that means the same wherever Ray is started as it does in a folder.

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
    """Returns what no node has enough of for a job; empty if one has.

    >>> nodes = [{"CPU": 8.0}, {"CPU": 4.0, "GPU": 2.0}]
    >>> lacking({"num_cpus": 4, "num_gpus": 2}, nodes)
    ''
    >>> lacking({"num_cpus": 4, "num_gpus": 3}, nodes)
    'hydra.launcher.num_gpus=3 is more than any node of the Ray cluster has (2): lower it.'
    """
    if any(node.get("CPU", 0) >= needs["num_cpus"] and node.get("GPU", 0) >= needs["num_gpus"] for node in nodes):
        return ""
    for option, name in (("num_gpus", "GPU"), ("num_cpus", "CPU")):
        most = max((node.get(name, 0) for node in nodes), default=0)
        if needs[option] > most:
            return (
                f"hydra.launcher.{option}={needs[option]:g} is more than any node of the Ray cluster has ({most:g}): "
                "lower it."
            )
    both = " with ".join(f"hydra.launcher.{option}={value:g}" for option, value in needs.items())
    return f"{both} is more than any single node of the Ray cluster has: lower one of them."


def no_cluster(address: str | None, why: str) -> str:
    """Returns what to say where no cluster answers."""
    return (
        f"hydra.launcher.address={address!r}: no Ray cluster answers ({why}). Start one with `ray start --head`, or "
        "leave the address out for one on this machine alone."
    )


def one_line(error: BaseException | str) -> str:
    """Returns an error as one short line.

    >>> one_line(ValueError("a\\n  b"))
    'ValueError: a b'
    """
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return textwrap.shorten(text, 240, placeholder=" ...")
