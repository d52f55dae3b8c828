"""The lock of the folder of a run or a sweep: one process at a time works in it."""

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
    """Holds the lock of a folder while the context lasts.

    The system releases it when the process ends, however it ends.

    Args:
        patience: Seconds to wait for another process.

    Raises:
        FileExistsError: If another process holds it; the message names it and its machine.
    """
    from filelock import FileLock, Timeout  # takes as long as everything else that `raiopt --help` imports

    make_folder(folder, parents=True)
    # filelock notices if its file was removed, so it can be removed while others wait.
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
    except (OSError, ValueError, KeyError, TypeError):  # it has not written it yet
        return "another process works in it"
