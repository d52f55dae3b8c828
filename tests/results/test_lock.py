"""A folder is locked by one process at a time, even after a killed one."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest

from raiopt.results.lock import locked

HOLDS = """
import sys
from pathlib import Path
from raiopt.results.lock import locked
with locked(Path(sys.argv[1])):
    print("holds", flush=True)
    sys.stdin.read()
"""
RACES = """
import os, sys
from pathlib import Path
from raiopt.results.lock import locked
folder, mark, left = Path(sys.argv[1]), Path(sys.argv[1], "inside"), 100
while left:
    try:
        with locked(folder):
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # fails if another process is inside
            mark.unlink()
            left -= 1
    except FileExistsError as error:
        if "is in use" not in str(error):
            raise
"""


def process(text, folder):
    words = [sys.executable, "-c", text, str(folder)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path."""
    with process(HOLDS, tmp_path) as found:
        assert found.stdout.readline() == "holds\n"
        yield found
        found.kill()


def test_a_second_process_is_refused_and_the_holder_is_named(tmp_path, holder):
    message = rf"{tmp_path} is in use: process {holder.pid} on {re.escape(socket.gethostname())} works in it since 20"
    with pytest.raises(FileExistsError, match=message), locked(tmp_path):
        pass
    (tmp_path / ".lock.json").write_text("{")
    with pytest.raises(FileExistsError, match="is in use: another process works in it"), locked(tmp_path):
        pass
    holder.communicate()
    assert holder.returncode == 0
    assert not list(tmp_path.iterdir())
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_killed_process_releases_the_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".lock.json"}
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_an_error_releases_the_lock(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "new"):
        raise KeyError
    with locked(tmp_path / "new"):
        pass


def test_one_thread_cannot_acquire_it_twice(tmp_path):
    with locked(tmp_path), pytest.raises(FileExistsError, match=f"process {os.getpid()}"), locked(tmp_path):
        pass


def test_racing_processes_never_hold_the_lock_together(tmp_path):
    racing = [process(RACES, tmp_path) for _ in range(4)]
    for found in racing:
        _, errors = found.communicate()
        assert (found.returncode, errors) == (0, "")
    assert not list(tmp_path.iterdir())
