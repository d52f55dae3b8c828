"""Jobs of a sweep as tasks of a Ray cluster, one on this machine or one that runs already."""

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
from pathlib import Path
from typing import Any

from raiopt import checks
from raiopt.jobs import plain
from raiopt.processes import python_command
from raiopt.sweep.launcher import SweepLauncher
from raiopt.sweep.ray_driver import GRACE, no_cluster, one_line
from raiopt.sweep.task import Ended, Task

TO_ANSWER = 30.0
"""Seconds in which a cluster has to answer."""
TO_START = 120.0
"""Seconds in which a cluster on this machine has to be there, or what a runtime_env names be uploaded."""
PROGRAM = "import sys; from raiopt.sweep.ray_driver import main; main(*sys.argv[1:])"


class RayEngine:
    """Runs tasks on Ray, which keeps worker processes for the next job, with the model in memory.

    Ray itself is used in a process of its own: it ends a process that loses its cluster, and the sweep shall go on to
    write its table. That process ends when the sweep does, and a cluster on this machine with it.

    Args:
        address: Of a cluster that runs, "auto" or "host:port"; this machine has to be one of its nodes. None: a cluster
            is started here, and ended by `close`.
        num_cpus: Cores that a job takes; torch uses as many threads.
        num_gpus: GPUs that a job takes, also parts of one; None: one if any node has one.
        timeout_min: Minutes that a job may take, from when it begins to run; None: any.
        runtime_env: Ray's description of the environment of the workers. Without its `working_dir` they work in the
            folder in which the sweep was started, which all nodes must share.

    Raises:
        ValueError: If a value is out of range, or Ray is not installed.
    """

    slots: int | None = None

    def __init__(
        self,
        address: str | None = None,
        num_cpus: float = 1,
        num_gpus: float | None = None,
        timeout_min: float | None = None,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        checks.number("hydra.launcher.num_cpus", num_cpus, above=0)
        if num_gpus is not None:
            checks.number("hydra.launcher.num_gpus", num_gpus, low=0)
        if timeout_min is not None:
            checks.number("hydra.launcher.timeout_min", timeout_min, above=0)
        if address is not None and not re.fullmatch(r"auto|[\w.-]+:\d+|\[[0-9a-fA-F:]+\]:\d+", address):
            raise ValueError(
                f"hydra.launcher.address={address!r} must be auto, host:port, or null for a cluster on this machine. "
                "For ray:// run raiopt on a node of the cluster."
            )
        if importlib.util.find_spec("ray") is None:
            raise ValueError("hydra/launcher=ray needs Ray: pip install raiopt[ray]")
        self._options = {
            "address": address,
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "timeout_min": timeout_min,
            "runtime_env": None if runtime_env is None else plain(runtime_env),
        }
        self._running: dict[str, Task] = {}
        self._driver: subprocess.Popen[bytes] | None = None

    def start(self, tasks: Sequence[Task]) -> None:
        """Puts the tasks into Ray's queue; connects to the cluster before the first ones.

        Raises:
            ValueError: If no cluster answers, or a job needs more than any of its nodes has.
        """
        if self._driver is None:
            self._connect()
        self._running |= {task.key: task for task in tasks}
        with suppress(OSError):  # the driver is gone, and poll will say so
            self._pipe.send([(task.key, task.plain()) for task in tasks])

    def poll(self, seconds: float) -> list[Ended]:
        """Returns the tasks that ended: all of them if the cluster is lost."""
        if self._driver is None:
            return []
        try:
            ended = self._pipe.recv() if self._pipe.poll(seconds) else []
        except (EOFError, OSError):
            why = f"the Ray cluster was lost: {self._last_words()}"
            ended = [(key, why) for key in self._running]
            self.close()
        return [Ended(self._running.pop(key), why) for key, why in ended]

    def close(self) -> None:
        """Ends our tasks and leaves the cluster; one on this machine is ended."""
        if self._driver is None:
            return
        driver, self._driver = self._driver, None
        self._pipe.close()
        if not self._ready:  # it may try for minutes; what it started ends with it
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
            self._knock(address)
        self._scratch = Path(tempfile.mkdtemp(prefix="raiopt-ray-"))
        self._pipe, theirs = multiprocessing.Pipe()
        self._driver, self._ready = self._begin(theirs.fileno()), False
        theirs.close()
        limit = TO_ANSWER if address is not None and self._options["runtime_env"] is None else TO_START
        try:
            self._ready, refusal = self._pipe.recv() if self._pipe.poll(limit) else (False, "")
        except EOFError:
            refusal = f"Ray could not start: {self._last_words()}"
        if not self._ready:
            if "AuthToken" in (self._scratch / "log").read_text(errors="replace"):
                refusal = (
                    f"hydra.launcher.address={address!r} wants Ray's token: set RAY_AUTH_MODE=token, see Ray's docs."
                )
            self.close()
            raise ValueError(refusal or no_cluster(address, f"in {limit:g} s"))

    def _begin(self, descriptor: int) -> subprocess.Popen[bytes]:
        """Starts the driver, in a session of its own: Ctrl-C is for this process alone, which then ends the driver."""
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

    def _knock(self, address: str) -> None:
        """Raises at once if nobody listens there: Ray would try for minutes."""
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise ValueError(no_cluster(address, one_line(getattr(error, "strerror", None) or str(error)))) from error

    def _last_words(self) -> str:
        """Returns the last line that Ray printed, without its clock and its source."""
        with suppress(OSError):
            lines = (self._scratch / "log").read_text(errors="replace").split("\n")
            for line in reversed(lines):
                if line.strip():
                    return one_line(re.sub(r"^\[[^]]*\] (\S+:\d+: )?", "", line.strip()))
        return "it said nothing"


class RayLauncher(SweepLauncher):
    """Tasks of a Ray cluster. It takes what `RayEngine` takes; num_gpus=null is 0 if device asks for none."""

    def __init__(self, **options: Any) -> None:
        RayEngine(**options)
        self.options = options

    def engine(self, tasks: int | None) -> RayEngine:
        """Returns the cluster, to which it connects when it gets the first jobs."""
        options = dict(self.options)
        if options.get("num_gpus") is None and str(self.config.device) not in ("auto", "cuda"):
            options["num_gpus"] = 0
        return RayEngine(**options)
