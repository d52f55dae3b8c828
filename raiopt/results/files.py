"""The one door to the files of a run, a sweep and a report: nothing is written or read through a link inside of them.

A folder may come from a stranger, and a link in it may lead anywhere. A link in the place of a file is replaced by
writing, and refused by reading; one in the place of a folder of ours is refused. The way to a run's or a sweep's
folder is the user's own, and may have links.
"""

import io
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

INNER = ("figures", "chunks", "perturbations", ".hydra", ".slurm", "replaced")
"""The folders that raiopt makes inside of the folder of a run, a sweep or a report."""
LEFT = ".*.tmp"
"""The names of files that a killed process did not come to moving to their places."""
LEFT_AFTER = 3600.0
"""Seconds after which nobody is writing such a file any more."""
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe would be waited for without end


class LinkError(OSError):
    """A link, or something else that is no file, where a folder has a file of its own; the message names it."""


def check_folder(folder: Path) -> Path:
    """Returns the folder, unless it is a link inside of the folder of a run, a sweep or a report.

    Raises:
        LinkError: If it is.
    """
    job = folder
    if folder.name in INNER:
        if folder.is_symlink():
            raise LinkError(f"{folder} is a link: nothing is written or read through it. Remove it.")
        job = folder.parent
    if is_linked_job(job):
        raise LinkError(f"{job} is a link inside of a sweep: nothing is written or read through it. Remove it.")
    return folder


def is_linked_job(folder: Path) -> bool:
    """Says whether a job's folder is a link in the folder of a sweep."""
    return folder.is_symlink() and os.path.lexists(folder.parent / "sweep.json")


def make_folder(folder: Path, *, parents: bool = False) -> Path:
    """Makes a folder unless it is there, and returns it.

    Raises:
        LinkError: As `check_folder` does.
    """
    check_folder(folder).mkdir(parents=parents, exist_ok=True)
    return folder


def is_own(path: Path) -> bool:
    """Says whether a regular file is there which is reached by no link inside of the folder."""
    try:
        return _is_regular(check_folder(path.parent) / path.name)
    except OSError:
        return False


def own(path: Path) -> Path:
    """Returns the path of a file that code of others is going to read.

    Raises:
        FileNotFoundError: If it is not there.
        LinkError: If it is no regular file, or reached by a link inside of the folder.
    """
    check_folder(path.parent)
    if not _is_regular(path):
        raise _wrong(path)
    return path


def own_files(folder: Path, pattern: str) -> list[Path]:
    """Returns the regular files in a folder that match a pattern, sorted; none if the folder is not there.

    Raises:
        LinkError: If the folder is a link inside of another, or a match is no regular file.
    """
    return [own(path) for path in sorted(check_folder(folder).glob(pattern))]


def files_below(folder: Path) -> Iterator[Path]:
    """Yields every regular file in a folder and those in it; no link is followed."""
    check_folder(folder)
    for directory, _, names in os.walk(folder):
        yield from (path for name in sorted(names) if _is_regular(path := Path(directory, name)))


def read_file(path: Path, most: int | None = None) -> bytes:
    """Returns the content of a file, or only its first bytes.

    Raises:
        FileNotFoundError: If it is not there.
        LinkError: If it is no regular file, or reached by a link inside of the folder.
    """
    check_folder(path.parent)
    if path.is_symlink():
        raise _wrong(path)
    with os.fdopen(os.open(path, os.O_RDONLY | _SAFE), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise _wrong(path)
        return stream.read(-1 if most is None else most)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under a fresh name beside its place, then moves it there in one step.

    Raises:
        LinkError: If its folder is a link inside of another.
    """
    check_folder(path.parent)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _SAFE, 0o666))
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Writes what JSON can hold into a file, in one step."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text into a file, in one step."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def open_to_append(path: Path) -> IO[bytes]:
    """Opens a file for writing at its end; a link in its place makes way for a new file.

    Raises:
        LinkError: If its folder is a link inside of another, or something else than a file is in its place.
    """
    check_folder(path.parent)
    if path.is_symlink():
        path.unlink()
    stream = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _SAFE, 0o666), "ab")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise _wrong(path)
    return stream


class LogFile(logging.FileHandler):
    """A handler that appends to the log in a job's folder, as `open_to_append` does."""

    def _open(self) -> Any:
        return io.TextIOWrapper(open_to_append(Path(self.baseFilename)), encoding="utf-8", errors=self.errors)


def remove_left(folder: Path) -> None:
    """Removes what killed processes left of files that they were writing."""
    for left in folder.glob(LEFT):
        with suppress(OSError):
            if left.lstat().st_mtime < time.time() - LEFT_AFTER:
                left.unlink()


def _is_regular(path: Path) -> bool:
    """Says whether a path is that of a regular file itself, not of a link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _wrong(path: Path) -> OSError:
    if not os.path.lexists(path):
        return FileNotFoundError(2, "No such file or directory", str(path))
    return LinkError(f"{path} is {'a link' if path.is_symlink() else 'no regular file'}: only regular files are read.")
