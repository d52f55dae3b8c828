"""Locks the folder of a run or a sweep, so that only one process at a time works in it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raiopt.results.files import make_folder, read_file, remove_left, write_json


@contextmanager
def locked(folder: Path, patience: float = 0) -> Iterator[None]:
    """Holds the lock of a folder within the context.

    The operating system releases the lock when the process ends, even if it is killed.

    Args:
        patience: Seconds to wait for another process.

    Raises:
        FileExistsError: If another process holds it; the message names it and its machine.
    """
    from filelock import FileLock, Timeout  # slow: takes as long as all other imports of `raiopt --help`

    make_folder(folder, parents=True)
    # filelock detects a removed lock file, so the file can be removed while others wait.
    lock, holder = FileLock(folder / ".lock", timeout=patience), folder / ".lock.json"
    try:
        if (folder / ".lock").is_symlink():
            (folder / ".lock").unlink()
        lock.acquire()
    except Timeout:
        raise FileExistsError(f"{folder} is in use: {_holder(holder)}. Wait for it, or end it.") from None
    try:
        about = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat("T", "seconds")}
        write_json(holder, about)
        for place in (folder, folder / "perturbations"):
            remove_left(place)
        yield
    finally:
        holder.unlink(missing_ok=True)
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()


def _holder(holder: Path) -> str:
    try:
        about: Any = json.loads(read_file(holder))
        return f"process {about['pid']} on {about['host']} works in it since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # the holder has not written its description yet
        return "another process works in it"
