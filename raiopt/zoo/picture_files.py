"""The only place where image files are opened: a closed list of formats, and size limits before decoding.

Pillow itself chooses the decoder by the content of a file, not by its name: it would run the PostScript in an `x.png`
with Ghostscript.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""Formats that Pillow decodes by itself, without another program."""
MAX_PIXELS = 80_000_000
MAX_BYTES = 512 * 2**20
"""Limit of a file's size: enough for uncompressed 16-bit pixels in three channels."""
DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for a damaged file

_open, _lock = Image.open, threading.RLock()


def open_picture(file: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    """Opens the image in a file, reading only its header.

    Args:
        file: A path, or an open file.

    Raises:
        ValueError: If it is not a regular file, too large, or not in one of `FORMATS`; the message names the file.
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


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """Opens an image; damage found while decoding it also raises a ValueError that names the file."""
    with open_picture(file) as image:
        try:
            yield image
        except DAMAGE as error:
            raise ValueError(f"{file} cannot be read as an image ({error}).") from error


def _check_size(file: str | os.PathLike[str] | BinaryIO) -> None:
    try:
        found = os.stat(file if isinstance(file, str | os.PathLike) else file.fileno())
    except (AttributeError, io.UnsupportedOperation):  # an object in memory
        return
    if not stat.S_ISREG(found.st_mode):  # reading a pipe could block forever
        raise ValueError("it is not a regular file")
    if found.st_size > MAX_BYTES:
        raise ValueError(f"it has {found.st_size:,} bytes, and at most {MAX_BYTES:,} are read")


@contextmanager
def only_pictures() -> Iterator[None]:
    """Makes `PIL.Image.open` use `open_picture` inside the block, for other libraries' code."""
    with _lock:
        before, Image.open = Image.open, lambda fp, mode="r", formats=None: open_picture(fp)
        try:
            yield
        finally:
            Image.open = before


def content_hash(folder: Path, names: list[str]) -> str:
    """Returns the hash of the names and bytes of files in a folder; the files are not decoded."""
    digest = hashlib.sha256()
    for name in names:
        try:
            _check_size(folder / name)
            with open(folder / name, "rb") as stream:
                digest.update(f"{name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder / name} cannot be read as an image ({error}).") from error
    return digest.hexdigest()
