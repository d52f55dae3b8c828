"""Runs the jobs of a sweep as tasks of a Ray cluster, either a running one or one started on this machine."""

import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from raiopt.config.jobs import plain
from raiopt.processes import python_command
from raiopt.sweep.endings import last_line, one_line
from raiopt.sweep.launcher import SweepLauncher, check_options
from raiopt.sweep.ray_driver import GRACE, no_cluster
from raiopt.sweep.task import Ended, Task

ANSWER_SECONDS = 30.0
"""Seconds to wait for an answer of a running cluster."""
START_SECONDS = 120.0
"""Seconds to wait for the start of a cluster on this machine, or for the upload of files of a runtime_env."""
PROGRAM = "import sys; from raiopt.sweep.ray_driver import main; main(*sys.argv[1:])"


class RayExecutor:
    """Runs tasks on Ray, which reuses worker processes, with the model in memory, for later jobs.

    Ray runs in a separate process, because Ray ends a process that loses its cluster, while the sweep must continue and
    write its table. That process ends with the sweep, and so does a cluster that was started on this machine.

    Args:
        options: The options of `RayLauncher` by name.

    Raises:
        ValueError: If Ray is not installed.
    """

    slots: int | None = None

    def __init__(self, options: Mapping[str, Any]) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ValueError("hydra/launcher=ray needs Ray: pip install 'raiopt[ray]'")
        self._options = options
        self._running: dict[str, Task] = {}
        self._driver: subprocess.Popen[bytes] | None = None

    def start(self, tasks: Sequence[Task]) -> None:
        """Submits the tasks to Ray's queue; connects to the cluster on the first call.

        Raises:
            ValueError: If no cluster answers, or a job needs more resources than any node has.
        """
        if self._driver is None:
            self._connect()
        self._running |= {task.key: task for task in tasks}
        with suppress(OSError):  # the driver has ended; poll reports it
            self._pipe.send([(task.key, task.plain()) for task in tasks])

    def poll(self, seconds: float) -> list[Ended]:
        """Returns the tasks that ended; if the cluster is lost, all tasks."""
        if self._driver is None:
            return []
        try:
            ended = self._pipe.recv() if self._pipe.poll(seconds) else []
        except (EOFError, OSError):
            why = f"the Ray cluster was lost: {self._last_line()}"
            ended = [(key, why) for key in self._running]
            self.close()
        return [Ended(self._running.pop(key), why) for key, why in ended]

    def close(self) -> None:
        """Cancels the tasks and disconnects; a cluster that was started on this machine is shut down."""
        if self._driver is None:
            return
        driver, self._driver = self._driver, None
        self._pipe.close()
        if not self._ready:  # it may retry for minutes; killing it also ends what it started
            driver.kill()
        try:
            driver.wait(GRACE + 5)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _connect(self) -> None:
        address = self._options["address"]
        if address not in (None, "auto"):
            self._check_listening(address)
        self._scratch = Path(tempfile.mkdtemp(prefix="raiopt-ray-"))
        self._pipe, theirs = multiprocessing.Pipe()
        self._driver, self._ready = self._begin(theirs.fileno()), False
        theirs.close()
        limit = ANSWER_SECONDS if address is not None and self._options["runtime_env"] is None else START_SECONDS
        try:
            self._ready, refusal = self._pipe.recv() if self._pipe.poll(limit) else (False, "")
        except EOFError:
            refusal = f"Ray could not start: {self._last_line()}"
        if not self._ready:
            if "AuthToken" in (self._scratch / "log").read_text(errors="replace"):
                refusal = (
                    f"hydra.launcher.address={address!r} requires Ray's token: set RAY_AUTH_MODE=token, see Ray's docs."
                )
            self.close()
            raise ValueError(refusal or no_cluster(address, f"in {limit:g} s"))

    def _begin(self, descriptor: int) -> subprocess.Popen[bytes]:
        """Starts the driver in a new session, so that Ctrl-C reaches only this process, which then ends the driver."""
        options = json.dumps({**self._options, "scratch": str(self._scratch)})
        with open(self._scratch / "log", "wb") as log:
            return subprocess.Popen(
                python_command("-c", PROGRAM, str(descriptor), options),
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
                start_new_session=True,
            )

    def _check_listening(self, address: str) -> None:
        """Raises a ValueError immediately if nothing listens at the address, because Ray would retry for minutes."""
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise ValueError(no_cluster(address, one_line(getattr(error, "strerror", None) or str(error)))) from error

    def _last_line(self) -> str:
        try:
            return last_line((self._scratch / "log").read_text(errors="replace"))
        except OSError:
            return "its log cannot be read"


@dataclass(eq=False, kw_only=True)
class RayLauncher(SweepLauncher):
    """Tasks of a Ray cluster.

    Args:
        address: "auto" or "host:port" of a running cluster that includes this machine; null: start a cluster on this
            machine, and shut it down after the sweep.
        num_cpus: Cores per job; torch uses as many threads.
        num_gpus: GPUs per job, possibly a fraction; null: one if device asks for GPUs and any node has one.
        timeout_min: Time limit of a job in minutes, from when it starts running; null: no limit.
        runtime_env: Ray's runtime environment of the workers. Without `working_dir`, they work in the folder in which
            the sweep was started, which all nodes must share.
    """

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float | None = None
    timeout_min: float | None = None
    runtime_env: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_options("hydra.launcher", self, {"num_gpus": 0}, ["num_cpus", "timeout_min"])
        if self.address is not None and not re.fullmatch(r"auto|[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+", self.address):
            raise ValueError(
                f"hydra.launcher.address={self.address!r} must be auto, host:port, or null for a cluster on this "
                "machine. For ray:// run raiopt on a node of the cluster."
            )

    def executor(self, tasks: int | None) -> RayExecutor:
        """Returns the executor, which connects to the cluster with the first jobs."""
        options = {entry.name: plain(getattr(self, entry.name)) for entry in fields(self)}
        if self.num_gpus is None and str(self.config.device) not in ("auto", "cuda"):
            options["num_gpus"] = 0
        return RayExecutor(options)
