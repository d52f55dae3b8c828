"""Safe access to the files of runs, sweeps and reports: links inside their folders are never followed.

A folder may be untrusted, and a link in it may point anywhere. If a file is a link, writing replaces the link and
reading raises; if one of raiopt's subfolders is a link, both raise. The path to the folder of a run or sweep itself is
chosen by the user, and may contain links.
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
"""The subfolders that raiopt creates in the folder of a run, a sweep or a report."""
LEFT = ".*.tmp"
"""The names of temporary files that a killed process may leave behind."""
LEFT_AFTER = 3600.0
"""Seconds after which such a temporary file is considered abandoned."""
_SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # opening a pipe would block forever


class LinkError(OSError):
    """A link or another non-regular file in a place where a regular file is expected; the message names it."""


def check_folder(folder: Path) -> Path:
    """Returns the folder after checking that it is not a link inside the folder of a run, a sweep or a report.

    Raises:
        LinkError: If it is such a link.
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
    """Returns whether a job's folder is a link in the folder of a sweep."""
    return folder.is_symlink() and os.path.lexists(folder.parent / "sweep.json")


def make_folder(folder: Path, *, parents: bool = False) -> Path:
    """Creates a folder if it does not exist, and returns it.

    Raises:
        LinkError: See `check_folder`.
    """
    check_folder(folder).mkdir(parents=parents, exist_ok=True)
    return folder


def is_own(path: Path) -> bool:
    """Returns whether the path is a regular file that is not reached through a link inside the folder."""
    try:
        return _is_regular(check_folder(path.parent) / path.name)
    except OSError:
        return False


def own(path: Path) -> Path:
    """Returns the path of a file after checking it, for reading by third-party code.

    Raises:
        FileNotFoundError: If the file does not exist.
        LinkError: If it is not a regular file, or reached through a link inside the folder.
    """
    check_folder(path.parent)
    if not _is_regular(path):
        raise _wrong(path)
    return path


def own_files(folder: Path, pattern: str) -> list[Path]:
    """Returns the regular files in a folder that match a pattern, sorted; empty if the folder does not exist.

    Raises:
        LinkError: If the folder is a link inside another one, or a match is not a regular file.
    """
    return [own(path) for path in sorted(check_folder(folder).glob(pattern))]


def files_below(folder: Path) -> Iterator[Path]:
    """Yields every regular file in a folder and its subfolders, without following links."""
    check_folder(folder)
    for directory, _, names in os.walk(folder):
        yield from (path for name in sorted(names) if _is_regular(path := Path(directory, name)))


def read_file(path: Path, most: int | None = None) -> bytes:
    """Returns the content of a file, or only its first `most` bytes.

    Raises:
        FileNotFoundError: If the file does not exist.
        LinkError: If it is not a regular file, or reached through a link inside the folder.
    """
    check_folder(path.parent)
    if path.is_symlink():
        raise _wrong(path)
    with os.fdopen(os.open(path, os.O_RDONLY | _SAFE), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise _wrong(path)
        return stream.read(-1 if most is None else most)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file atomically: to a temporary file next to it, which is then moved to its place.

    Raises:
        LinkError: If its folder is a link inside another one.
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
    """Writes JSON data to a file atomically."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text to a file atomically."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def open_to_append(path: Path) -> IO[bytes]:
    """Opens a file for appending; a link in its place is replaced by a new file.

    Raises:
        LinkError: If its folder is a link inside another one, or there is something other than a file in its place.
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
    """A logging handler that appends to the log in a job's folder, opened by `open_to_append`."""

    def _open(self) -> Any:
        return io.TextIOWrapper(open_to_append(Path(self.baseFilename)), encoding="utf-8", errors=self.errors)


def remove_left(folder: Path) -> None:
    """Removes temporary files left behind by killed processes."""
    for left in folder.glob(LEFT):
        with suppress(OSError):
            if left.lstat().st_mtime < time.time() - LEFT_AFTER:
                left.unlink()


def _is_regular(path: Path) -> bool:
    """Returns whether a path is a regular file itself, not a link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _wrong(path: Path) -> OSError:
    if not os.path.lexists(path):
        return FileNotFoundError(2, "No such file or directory", str(path))
    return LinkError(f"{path} is {'a link' if path.is_symlink() else 'no regular file'}: only regular files are read.")
