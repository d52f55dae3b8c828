"""The command in this process or in a child process, in an empty folder, and ways to interrupt it."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from raiopt.cli import main
from raiopt.results.record_reader import read_record

SMALL = ["data.limit=8", "solver.steps=2", "threads=1", "model=python"]
OWN = r'''
import ctypes, logging, os, signal, sys, time, warnings
from pathlib import Path
import torch
from torch import nn

trouble = Path("trouble").exists

class Waiting(nn.Module):
    """Waits while there is a file `hold`, from the batch on that its text numbers."""
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 10)
    def forward(self, x):
        while Path("hold").exists() and batches() >= int(Path("hold").read_text()):
            Path(f"waits-{os.getpid()}").touch()
            time.sleep(0.02)
        return self.linear(x.mean((2, 3)))

def batches():
    for path in Path("outputs").glob("*/*/.lock.json"):
        if str(os.getpid()) in path.read_text():
            return len(list(path.parent.glob("chunks/0*.json")))
    return 0

def net():
    torch.manual_seed(int(Path("seed").read_text()) if Path("seed").exists() else 0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))

def waits():
    torch.manual_seed(0)
    return Waiting()

def raises():
    if trouble():
        raise RuntimeError("no such weights")
    return net()

def kills():
    if trouble():
        os.kill(os.getpid(), signal.SIGKILL)
    return net()

def crashes():
    if trouble():
        ctypes.string_at(0)
    return net()

def leaves():
    if trouble():
        os._exit(3)
    return net()

def vanishes():
    if trouble():
        os._exit(0)
    return net()

def exits():
    if trouble():
        sys.exit("enough")
    return net()

def hangs():
    if trouble():
        time.sleep(1000)
    return net()

def loud():
    print("from print")
    warnings.warn("from warnings")
    logging.getLogger("own").info("from logging")
    ctypes.CDLL(None).dprintf(2, b"from C\n")
    return net()

def gpus():
    with open("gpus", "a") as file:
        file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "all") + "\n")
    return net()
'''


class Command:
    """A running command; all its processes carry a mark in their environment, and are its own process group."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        (folder / "own.py").write_text(OWN, encoding="utf-8")
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.out, self.err = folder / f"{self.mark}.out", folder / f"{self.mark}.err"
        env = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raiopt", *words],
                cwd=folder,
                env={**env, "RAIOPT_TEST": self.mark, "PYTHONUNBUFFERED": "1", **environment},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def ends(self, seconds: float = 120) -> int:
        """Waits for the end; returns the exit status, after it was seen that no process is left."""
        try:
            code = self.process.wait(seconds)
            until(lambda: not self.processes(), f"processes are left: {self.processes()}")
        finally:
            self.end()
        return code

    def end(self) -> None:
        """Kills whatever is left of it."""
        for pid in self.processes():
            kill(pid)
        self.process.wait()

    def processes(self) -> list[int]:
        """Returns the numbers of all its processes that live."""
        return [pid for pid in numbers() if self.mark.encode() in environment(pid) and not is_zombie(pid)]

    def server(self) -> int | None:
        """Returns the number of the process that forks its workers."""
        of = [pid for pid in self.processes() if parent(pid) == self.process.pid and b"forkserver" in command_line(pid)]
        return of[0] if of else None

    def workers(self) -> list[int]:
        """Returns the numbers of its workers."""
        server = self.server()
        return [pid for pid in self.processes() if parent(pid) == server]

    def tells(self, pattern: str, seconds: float = 120) -> re.Match[str]:
        """Waits until it printed a text, and returns it."""
        return until(lambda: re.search(pattern, self.said()), f"{pattern!r} is not in:\n{self.said()}", seconds, self)

    def said(self) -> str:
        """Returns what it printed until now."""
        return self.out.read_text() + self.err.read_text()


def run(folder: Path, *words: str) -> tuple[int, str]:
    """Returns exit status and output of a command in this process, whose workers are forked from one warm server."""
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        code = main(list(words))
    until(lambda: not left(), "workers are left")
    return code, said.getvalue()


def left() -> list[int]:
    """Returns the processes that were forked from the server of this process."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    return [] if pid is None else [child for child in numbers() if parent(child) == pid and not is_zombie(child)]


def until(check: Callable[[], Any], failure: str, seconds: float = 60, command: Command | None = None) -> Any:
    """Waits until a check holds, and returns what it returned."""
    end = time.monotonic() + seconds
    while not (found := check()):
        late = time.monotonic() > end
        over = command is not None and command.process.poll() is not None and not check()
        if late or over:
            pytest.fail(failure if command is None else f"{failure}\n{command.said()}")
        time.sleep(0.01)
    return found


def numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def is_zombie(pid: int) -> bool:
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def records(folder: Path) -> dict[str, Any]:
    """Returns the records of the jobs in a sweep's folder, by job key."""
    found = {path.parent.name: read_record(path.parent) for path in sorted(folder.glob("*/run.json"))}
    return {key: {} if record is None else record.as_json() for key, record in found.items()}


def stamps(folder: Path) -> dict[str, int]:
    """Returns when the record of each finished job was written."""
    return {
        key: (folder / key / "run.json").stat().st_mtime_ns
        for key, record in records(folder).items()
        if record.get("status") == "finished"
    }
