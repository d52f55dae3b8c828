"""The one door to image files, whoever made them: a closed list of formats, and limits before any pixel is decoded.

By itself, Pillow chooses the decoder by what a file holds, whatever its name: it would have Ghostscript run the
PostScript in an `x.png`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""Formats that Pillow decodes in this process, without another program."""
MAX_PIXELS = 80_000_000
MAX_BYTES = 512 * 2**20
"""Bytes of a file: pixels of 16 bits in three channels, not compressed, fit into it."""
DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for a broken file

_open, _lock = Image.open, threading.RLock()


def open_picture(file: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    """Returns the picture in a file; only its header has been read.

    Args:
        file: A path, or an open file.

    Raises:
        ValueError: If it is no regular file, too large, or of no format in `FORMATS`; the message names the file.
    """
    name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", "a picture")
    try:
        _check_size(file)
        image = _open(file, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            image.close()
            raise ValueError(f"it has {image.width} x {image.height} pixels, and at most {MAX_PIXELS:,} are decoded")
    except UnidentifiedImageError as error:
        why = f"it is not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, or its header is damaged"
        raise ValueError(f"{name} cannot be read as an image ({why}).") from error
    except (*DAMAGE, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} cannot be read as an image ({error}).") from error
    return image


def _check_size(file: str | os.PathLike[str] | BinaryIO) -> None:
    if isinstance(file, str | os.PathLike):
        found = os.stat(file)
    else:
        try:
            found = os.fstat(file.fileno())
        except (AttributeError, OSError):  # it is in memory
            return
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for without end
        raise ValueError("it is no regular file")
    if found.st_size > MAX_BYTES:
        raise ValueError(f"it has {found.st_size:,} bytes, and at most {MAX_BYTES:,} are read")


@contextmanager
def only_pictures() -> Iterator[None]:
    """Lets code of others, such as torchvision's data sets, open pictures through `open_picture` alone meanwhile."""

    def opened(fp: Any, mode: str = "r", formats: Any = None) -> Image.Image:
        return open_picture(fp)

    with _lock:
        before, Image.open = Image.open, opened
        try:
            yield
        finally:
            Image.open = before


def content_hash(folder: Path, names: list[str]) -> str:
    """Returns the hash of the names and bytes of files below a folder, none of which is decoded."""
    digest = hashlib.sha256()
    for name in names:
        try:
            _check_size(folder / name)
            with open(folder / name, "rb") as stream:
                digest.update(f"{name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / name} cannot be read as an image ({error}).") from error
    return digest.hexdigest()
