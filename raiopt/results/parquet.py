"""Reading Parquet files: a path names one file, whatever characters are in it."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from raiopt.results.files import own


def scan_parquet(files: Path | Sequence[Path]) -> pl.LazyFrame:
    """Returns the table in a Parquet file, or the rows of several files in their order.

    polars alone reads `[`, `*` and `?` in a path as a pattern, and a leading `~` as the home directory.

    Raises:
        FileNotFoundError: If one is not there.
        LinkError: As `own` does.
    """
    files = [files] if isinstance(files, Path) else files
    return pl.scan_parquet([own(file).absolute() for file in files], glob=False)
