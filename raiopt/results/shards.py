"""The jobs of one question that was split over shards of the data, as one job."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from raiopt.results.metrics import metrics, signs_of
from raiopt.results.parquet import scan_parquet
from raiopt.results.records import JobRecord, is_volatile, read_job, read_jobs
from raiopt.results.stages import merged_stages

SHARD, COUNT = "data.shard", "data.num_shards"
LISTED = 10
"""So many shards that are not finished are told by number."""


def merged_shards(folder: Path | str, jobs: Iterable[JobRecord]) -> list[JobRecord]:
    """Returns the jobs of the sweep in `folder`, those that differ in data.shard alone as one, where the first was.

    Its figures are those of the table of all its samples. It is finished if all its shards are, else incomplete.
    """
    return [merged(Path(folder), group) for group in grouped(jobs)]


def load_samples(folder: Path | str) -> pl.LazyFrame:
    """Returns the table of samples of a job; for a shard, that of all shards of its question, in the order of the data.

    Args:
        folder: A job's folder: that of a sweep and a name from the column `job` of its table.

    Raises:
        FileNotFoundError: If there is no such folder, or it has no table of samples.
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
        raise FileNotFoundError(f"{folder} has no samples.parquet: its job is not finished, or it is no job's folder.")
    return scan_parquet(folder / "samples.parquet")


def grouped(jobs: Iterable[JobRecord]) -> list[list[JobRecord]]:
    """Returns the shards of each question by number; a job that is no shard is alone."""
    groups: dict[str, list[JobRecord]] = {}
    for job in jobs:
        key = job.name if _shard(job) is None else _question(job)
        groups.setdefault(key, []).append(job)
    return [sorted(group, key=lambda job: _shard(job) or 0) for group in groups.values()]


def _shard(job: JobRecord) -> int | None:
    """Returns the number of the shard that a job is, None if it is none."""
    number, count = job.options.get(SHARD), _count(job)
    known = type(number) is int and number >= 0 and (count is None or number < count)
    return number if known else None


def _count(job: JobRecord) -> int | None:
    """Returns how many shards a job knows of; their number may stand in its config instead of in the command."""
    known = job.options.get(COUNT, (job.record.get("data") or {}).get("num_shards"))
    return known if type(known) is int else None


def _question(job: JobRecord) -> str:
    asked = {name: value for name, value in _without_shard(job).items() if not is_volatile(name)}
    return json.dumps(asked, sort_keys=True)


def _without_shard(job: JobRecord) -> dict[str, Any]:
    return {name: value for name, value in job.options.items() if name != SHARD}


def merged(folder: Path, group: Sequence[JobRecord]) -> JobRecord:
    """Returns the shards of one question as one job; a job that is no shard as it is."""
    if _shard(group[0]) is None:
        return group[0]
    first, wrong = group[0], _unfit(group)
    options = _without_shard(first)
    if wrong is None:
        try:
            samples = _samples(folder, group)
            targeted = "target_reached" in first.metrics
            figures = metrics(samples, first.metrics.get("epsilons"), targeted=targeted)
            told: dict[str, Any] = {"signs": signs_of(samples, first.record)} if "signs" in first.record else {}
            if first.record.get("stages"):
                told["stages"] = merged_stages([job.record for job in group])
        except (OSError, pl.exceptions.PolarsError) as error:
            wrong = f"a samples.parquet cannot be read: {str(error).splitlines()[0]}"
        else:
            seconds = round(sum(job.metrics["attack_seconds"] for job in group), 3)
            hashes = {**first.record["hashes"], "data": [job.record["hashes"]["data"] for job in group]}
            record = {**first.record, "hashes": hashes, "metrics": {**figures, "attack_seconds": seconds}, **told}
            return JobRecord(first.name, "finished", options, None, record)
    return JobRecord(first.name, "incomplete", options, wrong)


def _samples(folder: Path, group: Sequence[JobRecord]) -> pl.LazyFrame:
    return scan_parquet([folder / job.name / "samples.parquet" for job in group])


def _unfit(group: Sequence[JobRecord]) -> str | None:
    """Returns what keeps the shards of a question from being the whole of it, None if nothing does."""
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
        return why or f"no shard tells {COUNT}"
    states = {number: by_number[number].status if number in by_number else "missing" for number in range(count)}
    running = [number for number, status in states.items() if status == "running"]
    lost = [number for number, status in states.items() if status not in ("finished", "running")]
    told = [
        f"{len(part)} of {count} shards {'is' if len(part) == 1 else 'are'} {state}: {_numbers(part)}"
        for part, state in ((lost, "missing or failed"), (running, "running"))
        if part
    ]
    return "; ".join([*told, *([why] if why else [])]) or None


def _numbers(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return ", ".join(map(str, numbers[:LISTED])) + more


def _differing(group: Sequence[JobRecord]) -> str | None:
    """Returns in what finished shards differ that they must share: then they are no parts of one run."""

    def shared(job: JobRecord) -> dict[str, Any]:
        told = {name: job.record.get(name) for name in ("model", "ball", "perturbation", "batch_size", "seed")}
        versions, hashes = job.record.get("versions", {}), job.record["hashes"]
        return {"raiopt": versions.get("raiopt"), "weights": hashes["weights"], **told}

    first, *others = [shared(job) for job in group]
    for number, other in enumerate(others, 1):
        if parts := [name for name, value in other.items() if value != first[name]]:
            return f"shards 0 and {number} are not of one run: they differ in {', '.join(parts)}"
    return None
