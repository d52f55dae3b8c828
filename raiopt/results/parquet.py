"""Reads Parquet files at literal paths, whatever special characters they contain."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from raiopt.results.files import own


def scan_parquet(files: Path | Sequence[Path]) -> pl.LazyFrame:
    """Returns the table in a Parquet file, or the concatenated rows of several files.

    By itself, polars would interpret `[`, `*` and `?` in a path as a pattern, and a leading `~` as the home directory.

    Raises:
        FileNotFoundError: If a file does not exist.
        LinkError: See `own`.
    """
    files = [files] if isinstance(files, Path) else files
    return pl.scan_parquet([own(file).absolute() for file in files], glob=False)
