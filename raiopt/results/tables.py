"""The table of a sweep, read from the folders of its jobs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from raiopt.results.files import replace_file
from raiopt.results.records import JobRecord, comparison_key, is_volatile, read_jobs
from raiopt.results.shards import merged_shards

METRICS = {
    "clean_accuracy": pl.Float64,
    "robust_accuracy": pl.Float64,
    "undecided": pl.Int64,
    "target_reached": pl.Float64,
    "median_l0": pl.Float64,
    "median_l1": pl.Float64,
    "median_l2": pl.Float64,
    "median_linf": pl.Float64,
    "forward_passes": pl.Int64,
    "backward_passes": pl.Int64,
    "attack_seconds": pl.Float64,
}


def load_sweep(folder: Path | str, *, merge_shards: bool = True) -> pl.DataFrame:
    """Returns the table of a sweep, read from its folders: one row per job, in the order of job numbers.

    Columns: `job` (its folder's name), `status`, the options that differ between jobs (if none differs, all given
    ones), `ball`, the metrics (null unless the job is finished), `error` (its first line) and `best`. The status is
    that of run.json (finished, running, failed or killed), or missing if a job of sweep.json did not start, unreadable
    if run.json is damaged or of another version, incomplete if a shard is not finished. A job is best if no other job
    with the same ball, model and data has a smaller robust accuracy. Options with lists or mixed types are converted to
    strings; null stays null.

    Args:
        folder: The folder of the sweep, as in outputs/NAME.
        merge_shards: Whether jobs that differ only in data.shard become one row, named after the first of them, with
            the metrics of all their samples, equal to those of the undivided run. False: one row per job.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If it contains no job, or its sweep.json cannot be read.

    >>> import json, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> jobs = {f"job{number}": {"number": number, "overrides": {"optim.lr": 0.1 + number}} for number in range(2)}
    >>> _ = (folder / "sweep.json").write_text(json.dumps({"schema": 1, "jobs": jobs}))
    >>> load_sweep(folder).select("job", "status", "optim.lr", "error").rows()
    [('job0', 'missing', 0.1, 'did not start'), ('job1', 'missing', 1.1, 'did not start')]
    """
    jobs = read_jobs(folder)
    if merge_shards:
        jobs = merged_shards(folder, jobs)
    return jobs_frame(jobs, _differing(jobs))


def jobs_frame(jobs: Sequence[JobRecord], options: Sequence[str]) -> pl.DataFrame:
    """Returns the table of these jobs with these options."""
    columns = {
        "job": pl.Series([job.name for job in jobs], dtype=pl.String),
        "status": pl.Series([job.status for job in jobs], dtype=pl.String),
        **{name: _column([job.option(name) for job in jobs]) for name in options},
        "ball": pl.Series([job.record.ball_words for job in jobs], dtype=pl.String),
        **{
            name: pl.Series([getattr(job.metrics, name, None) for job in jobs], dtype=kind)
            for name, kind in METRICS.items()
        },
        "error": pl.Series([job.error for job in jobs], dtype=pl.String),
        "best": pl.Series(_best(jobs), dtype=pl.Boolean),
    }
    return pl.DataFrame(columns)


def options_of(frame: pl.DataFrame) -> list[str]:
    """Returns the names of the table's columns that are options."""
    return frame.columns[frame.columns.index("status") + 1 : frame.columns.index("ball")]


def given_options(jobs: Sequence[JobRecord]) -> list[str]:
    """Returns the options that were given to at least one job."""
    return list(dict.fromkeys(name for job in jobs for name in job.options))


def _differing(jobs: Sequence[JobRecord]) -> list[str]:
    """Returns the given options that differ between jobs; if none does, all that can change a result."""
    given = [job for job in jobs if job.options]
    names = [name for name in given_options(jobs) if not is_volatile(name)]
    differing = [name for name in names if len({json.dumps(job.option(name)) for job in given}) > 1]
    return differing or names


def _column(values: Sequence[Any]) -> pl.Series:
    """Converts values to one type: numbers, booleans or strings; mixed and nested values become JSON strings."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pl.Series(values, dtype=pl.Boolean)
    if kinds and kinds <= {int, float} and all(abs(value) < 2**63 for value in values if type(value) is int):
        return pl.Series(values, dtype=pl.Float64 if float in kinds else pl.Int64, strict=False)
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pl.Series(texts, dtype=pl.String)


def _best(jobs: Sequence[JobRecord]) -> list[bool]:
    """Returns a mask of the jobs with the smallest robust accuracy among comparable jobs; false without a ball."""
    peers = [comparison_key(job) for job in jobs]
    robust = [job.metrics.robust_accuracy if job.metrics and job.record.ball.norm else None for job in jobs]
    smallest: dict[str, float] = {}
    for peer, value in zip(peers, robust, strict=True):
        if value is not None:
            smallest[peer] = min(value, smallest.get(peer, value))
    return [value is not None and value == smallest[peer] for peer, value in zip(peers, robust, strict=True)]


def save_sweep(frame: pl.DataFrame, folder: Path) -> None:
    """Writes sweep.parquet and sweep.csv into the folder of the sweep."""
    folder = folder.absolute()  # polars reads a leading ~ as the home directory
    replace_file(folder / "sweep.parquet", frame.write_parquet)
    replace_file(folder / "sweep.csv", frame.write_csv)
