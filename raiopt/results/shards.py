"""Merges the jobs of one attack on several shards of the data into one job."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from raiopt.results.metrics import check_counts, metrics
from raiopt.results.parquet import scan_parquet
from raiopt.results.record import Record
from raiopt.results.records import JobRecord, read_job, read_jobs, without_volatile
from raiopt.results.stage_counts import merged_stages

SHARD, COUNT = "data.shard", "data.num_shards"
MAX_LISTED = 10
"""The largest number of shards listed in a message."""


def merged_shards(folder: Path | str, jobs: Iterable[JobRecord]) -> list[JobRecord]:
    """Returns the jobs of the sweep in `folder`, where jobs that differ only in data.shard are merged.

    A merged job has the metrics of all its samples. It is finished if all its shards are, else incomplete.
    """
    return [merged(Path(folder), group) for group in grouped(jobs)]


def load_samples(folder: Path | str) -> pl.LazyFrame:
    """Returns the table of samples of a job; for a shard, the samples of all shards, in the order of the data.

    Args:
        folder: The folder of a job: the folder of its sweep plus a name from the column `job` of the sweep's table.

    Raises:
        FileNotFoundError: If the folder does not exist, or has no table of samples.
        ValueError: If a shard is not finished.

    >>> import tempfile, polars
    >>> folder = tempfile.mkdtemp()
    >>> polars.DataFrame({"id": [0, 1], "verified": [True, False]}).write_parquet(f"{folder}/samples.parquet")
    >>> load_samples(folder).filter(polars.col("verified")).collect()["id"].to_list()
    [0]
    """
    folder = Path(folder).resolve()
    if _shard(read_job(folder)) is not None:
        group = next(g for g in grouped(read_jobs(folder.parent)) if folder.name in [job.name for job in g])
        if wrong := _unfit(group):
            raise ValueError(f"{folder}: {wrong}.")
        return _samples(folder.parent, group)
    if not (folder / "samples.parquet").exists():
        raise FileNotFoundError(
            f"{folder} has no samples.parquet: its job is not finished, or it is not the folder of a job."
        )
    return scan_parquet(folder / "samples.parquet")


def grouped(jobs: Iterable[JobRecord]) -> list[list[JobRecord]]:
    """Groups jobs by attack, shards sorted by number; a job on the whole data set is its own group."""
    groups: dict[str, list[JobRecord]] = {}
    for job in jobs:
        key = job.name if _shard(job) is None else json.dumps(without_volatile(_without_shard(job)), sort_keys=True)
        groups.setdefault(key, []).append(job)
    return [sorted(group, key=lambda job: _shard(job) or 0) for group in groups.values()]


def _shard(job: JobRecord) -> int | None:
    """Returns the number of the shard that a job attacked; None if it attacked all data."""
    number, count = job.options.get(SHARD), _count(job)
    known = type(number) is int and number >= 0 and (count is None or number < count)
    return number if known else None


def _count(job: JobRecord) -> int | None:
    """Returns the number of shards, which may be set in a job's config instead of its command."""
    known = job.options.get(COUNT, job.record.data.num_shards)
    return known if type(known) is int else None


def _without_shard(job: JobRecord) -> dict[str, Any]:
    return {name: value for name, value in job.options.items() if name != SHARD}


def merged(folder: Path, group: Sequence[JobRecord]) -> JobRecord:
    """Returns the shards of one attack merged into one job; a job on the whole data set is returned unchanged."""
    if _shard(group[0]) is None:
        return group[0]
    first, wrong = group[0], _unfit(group)
    job = JobRecord(first.name, "incomplete", _without_shard(first), wrong)
    if wrong is not None:
        return job
    try:
        return replace(job, status="finished", record=_merged_record(_samples(folder, group), group))
    except (OSError, pl.exceptions.PolarsError) as error:
        return replace(job, error=f"a samples.parquet cannot be read: {str(error).splitlines()[0]}")


def _merged_record(samples: pl.LazyFrame, group: Sequence[JobRecord]) -> Record:
    """Returns the record of the first shard, with the results of all shards."""
    first, records = group[0].record, [job.record for job in group]
    targeted = any(job.metrics and job.metrics.target_reached is not None for job in group)
    found = metrics(samples, first.attack.epsilons, targeted=targeted)
    seconds = sum(record.metrics.attack_seconds for record in records if record.metrics)
    return replace(
        first,
        hashes=replace(first.hashes, data=[str(record.hashes.data) for record in records]),
        metrics=replace(found, attack_seconds=round(seconds, 3)),
        checks=None if first.checks is None else check_counts(samples, first.ball.column, first.ball.radius),
        stages=merged_stages(records) if first.stages else [],
    )


def _samples(folder: Path, group: Sequence[JobRecord]) -> pl.LazyFrame:
    return scan_parquet([folder / job.name / "samples.parquet" for job in group])


def _unfit(group: Sequence[JobRecord]) -> str | None:
    """Returns why the shards of an attack are incomplete; None if they are complete."""
    numbers = Counter(map(_shard, group))
    if twice := [number for number, times in numbers.items() if times > 1]:
        names = ", ".join(job.name for job in group if _shard(job) == twice[0])
        return f"shard {twice[0]} has several folders: {names}"
    return _unfinished(group) or _differing(group)


def _unfinished(group: Sequence[JobRecord]) -> str | None:
    by_number = {_shard(job): job for job in group}
    count = next((known for job in group if (known := _count(job)) is not None), None)
    why = next((f"shard {number}: {job.error}" for number, job in by_number.items() if job.status == "failed"), None)
    if count is None:
        return why or f"no shard records {COUNT}"
    states = {number: by_number[number].status if number in by_number else "missing" for number in range(count)}
    running = [number for number, status in states.items() if status == "running"]
    lost = [number for number, status in states.items() if status not in ("finished", "running")]
    parts = [
        f"{len(part)} of {count} shards {'is' if len(part) == 1 else 'are'} {state}: {_numbers(part)}"
        for part, state in ((lost, "missing or failed"), (running, "running"))
        if part
    ]
    return "; ".join([*parts, *([why] if why else [])]) or None


def _numbers(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - MAX_LISTED} more" if len(numbers) > MAX_LISTED else ""
    return ", ".join(map(str, numbers[:MAX_LISTED])) + more


def _differing(group: Sequence[JobRecord]) -> str | None:
    """Returns a message if finished shards differ in something that must be equal; None if they do not."""

    def shared(record: Record) -> dict[str, Any]:
        parts = {name: getattr(record, name) for name in ("model", "ball", "perturbation", "batch_size", "seed")}
        return {"raiopt": record.versions.get("raiopt"), "weights": record.hashes.weights, **parts}

    first, *others = [shared(job.record) for job in group]
    for number, other in enumerate(others, 1):
        if parts := [name for name, value in other.items() if value != first[name]]:
            return f"shards 0 and {number} do not belong to one run: they differ in {', '.join(parts)}"
    return None
