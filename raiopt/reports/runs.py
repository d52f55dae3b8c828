"""Loads runs from disk for reports, comparisons and verdicts. Nothing here needs torch."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file

from raiopt.results.files import own, read_file
from raiopt.results.parquet import scan_parquet
from raiopt.results.perturbation_store import PerturbationStore
from raiopt.results.record import Metrics, Record
from raiopt.results.records import JobRecord, is_volatile, read_job, read_jobs
from raiopt.results.shards import grouped, merged

DEPTH = 3
"""The number of levels below a folder that are searched for runs: outputs/<date>/<time>/<job key>."""


@dataclass(frozen=True)
class Run:
    """A run: the folder of a job, or the folders of the shards of a job.

    Args:
        folder: The folder of the job, or of its first shard.
        job: The content of its run.json and its sweep.json.
        parts: The folders with its samples.
        sweep: The folder of its sweep; None for a run that was loaded individually.
    """

    folder: Path
    job: JobRecord
    parts: tuple[Path, ...]
    sweep: Path | None = None

    @property
    def record(self) -> Record:
        """The run's run.json; for shards, that of the first shard with the results of all."""
        return self.job.record

    @property
    def metrics(self) -> Metrics | None:
        """The metrics of a finished run, else None."""
        return self.job.metrics

    @property
    def robust(self) -> float:
        """The robust accuracy; 0 if the record does not contain it."""
        return (self.metrics and self.metrics.robust_accuracy) or 0.0

    @property
    def count(self) -> int:
        """The number of samples; 0 if the record does not contain it."""
        return (self.metrics and self.metrics.samples) or self.record.data.samples

    @property
    def perturbations(self) -> PerturbationStore:
        """The stored perturbations; for several shards, those of the first."""
        return PerturbationStore(self.folder)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, if known."""
        try:
            names = json.loads(read_file(self.folder / "classes.json"))
        except (OSError, ValueError):
            return None
        return [str(name) for name in names] if isinstance(names, list) else None

    def samples(self) -> pl.LazyFrame:
        """Returns the table of samples of the run, with the samples of all shards.

        Raises:
            ValueError: If there is no such table, or it cannot be read; the message names the file.
        """
        return _scanned([part / "samples.parquet" for part in self.parts])

    def trace(self) -> pl.DataFrame:
        """Returns the table of steps of the run; for several shards, that of the first.

        Raises:
            ValueError: If there is no such table, or it cannot be read; the message names the file.
        """
        return _scanned([self.folder / "trace.parquet"]).collect()

    def exhibits(self) -> dict[str, np.ndarray]:
        """Returns the samples that the run kept as examples; empty if there are none.

        Raises:
            ValueError: If they cannot be read; the message names the file.
        """
        path = self.folder / "exhibits.safetensors"
        if not path.exists():
            return {}
        try:
            return load_file(own(path))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None


def _scanned(files: list[Path]) -> pl.LazyFrame:
    for file in files:
        if not file.exists():
            raise ValueError(f"{file} does not exist.")
        try:
            scan_parquet(file).collect_schema()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
    return scan_parquet(files)


def load_run(folder: Path | str) -> Run:
    """Returns the run in a job's folder.

    Its `record` is the content of run.json, `metrics` are the results, `samples()` and `trace()` return its tables.

    Raises:
        FileNotFoundError: If the folder does not exist, or no job ran in it.

    >>> import json, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "run.json").write_text(json.dumps({"schema": 2, "status": "failed"}))
    >>> load_run(folder).job.status
    'failed'
    """
    folder = Path(folder)
    if not (folder / "run.json").exists():
        raise FileNotFoundError(f"{folder} has no run.json: give the folder of one job, as in outputs/NAME/JOB.")
    return Run(folder, read_job(folder.absolute()), (folder,))


def load_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Returns the runs in folders of jobs, folders of sweeps, or parents of such folders, without duplicates.

    The runs of a sweep are in the order of their numbers; the shards of an attack are one run. Unfinished jobs are
    included.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If a folder contains no runs.
    """
    found: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} does not exist; give the folder of a run or sweep, as in outputs/NAME.")
        runs = list(_below(folder, DEPTH))
        if not runs:
            raise ValueError(f"{folder} contains no runs; give the folder of a run or sweep, as in outputs/NAME.")
        for run in runs:
            found.setdefault(run.folder.resolve(), run)
    return list(found.values())


def _below(folder: Path, depth: int) -> list[Run]:
    if (folder / "run.json").exists():
        return [load_run(folder)]
    children = sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.is_symlink() and path.name not in ("replaced", "figures")
    )
    jobs = [child for child in children if (child / "run.json").exists()]
    is_sweep = (folder / "sweep.json").exists()
    runs = [_run(folder, group) for group in grouped(read_jobs(folder))] if jobs or is_sweep else []
    deeper = [child for child in children if depth and not is_sweep and child not in jobs]
    return runs + [run for child in deeper for run in _below(child, depth - 1)]


def _run(sweep: Path, group: list[JobRecord]) -> Run:
    job = merged(sweep, group)
    return Run(sweep / job.name, job, tuple(sweep / shard.name for shard in group), sweep)


def differing_options(runs: Sequence[Run]) -> list[str]:
    """Returns the options that were given to some of the runs and differ between runs.

    `model` and `data` are included whenever they differ, however they were chosen.
    """
    jobs = [run.job for run in runs if run.job.options or run.record.choices]
    names = dict.fromkeys(["model", "data", *(name for job in jobs for name in job.options if not is_volatile(name))])
    return [name for name in names if len({json.dumps(job.option(name)) for job in jobs}) > 1]


def labels(runs: Sequence[Run]) -> list[str]:
    """Returns a short name for each run: the differing options, else the name of the sweep or job."""
    options = differing_options(runs)
    words = [", ".join(_word(name, run.job.option(name)) for name in options) for run in runs]
    names = [word or run.record.name or run.folder.name for word, run in zip(words, runs, strict=True)]
    times = Counter(names)
    return [f"{name} ({run.folder.name})" if times[name] > 1 else name for name, run in zip(names, runs, strict=True)]


def _word(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if name in ("model", "data", "optim") else f"{name.removeprefix('optim.')}={text}"
