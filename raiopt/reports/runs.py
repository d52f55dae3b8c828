"""Runs as they are on disk, for reports, comparisons and verdicts. Nothing here needs torch."""

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
"""Levels below a folder that are searched for runs: outputs/<date>/<time>/<job key>."""


@dataclass(frozen=True)
class Run:
    """The folder of a job, or the folders of the shards that its data were split into.

    Args:
        folder: The folder of the job, or of its first shard.
        job: What its run.json and its sweep.json hold.
        parts: The folders with its samples.
        sweep: The folder of its sweep; None of a run that was loaded by itself.
    """

    folder: Path
    job: JobRecord
    parts: tuple[Path, ...]
    sweep: Path | None = None

    @property
    def record(self) -> Record:
        """Its run.json; that of the first shard with the results of all."""
        return self.job.record

    @property
    def metrics(self) -> Metrics | None:
        """The metrics of a finished run; None of any other."""
        return self.job.metrics

    @property
    def robust(self) -> float:
        """Its robust accuracy; 0 if its record lacks it."""
        return (self.metrics and self.metrics.robust_accuracy) or 0.0

    @property
    def count(self) -> int:
        """Its number of samples; 0 if its record lacks it."""
        return (self.metrics and self.metrics.samples) or self.record.data.samples

    @property
    def perturbations(self) -> PerturbationStore:
        """Its stored perturbations; of several shards those of the first."""
        return PerturbationStore(self.folder)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, where they are known."""
        try:
            names = json.loads(read_file(self.folder / "classes.json"))
        except (OSError, ValueError):
            return None
        return [str(name) for name in names] if isinstance(names, list) else None

    def samples(self) -> pl.LazyFrame:
        """Returns its table of samples, of all shards together.

        Raises:
            ValueError: If there is none, or it cannot be read; the message names the file.
        """
        return _scanned([part / "samples.parquet" for part in self.parts])

    def trace(self) -> pl.DataFrame:
        """Returns its table of steps; of several shards that of the first.

        Raises:
            ValueError: If there is none, or it cannot be read; the message names the file.
        """
        return _scanned([self.folder / "trace.parquet"]).collect()

    def exhibits(self) -> dict[str, np.ndarray]:
        """Returns the samples that were kept as examples; empty if there are none.

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

    Its `record` is run.json, `metrics` the results in it, `samples()` and `trace()` its tables.

    Raises:
        FileNotFoundError: If there is no such folder, or no job ran in it.

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
    """Returns the runs in these folders, of jobs, of sweeps, or with such folders in them; each run once.

    The runs of a sweep are in the order of their numbers; shards of the same data are one run. Jobs that did not finish
    are included.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no run in it.
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
    """Returns the options that were given to some of the runs and are not the same in all.

    `model` and `data` are included if the runs have several, however they were chosen.
    """
    jobs = [run.job for run in runs if run.job.options or run.record.choices]
    names = dict.fromkeys(["model", "data", *(name for job in jobs for name in job.options if not is_volatile(name))])
    return [name for name in names if len({json.dumps(job.option(name)) for job in jobs}) > 1]


def labels(runs: Sequence[Run]) -> list[str]:
    """Returns a short name of each run: the options in which they differ, else the sweep's or the job's name."""
    options = differing_options(runs)
    words = [", ".join(_word(name, run.job.option(name)) for name in options) for run in runs]
    names = [word or run.record.name or run.folder.name for word, run in zip(words, runs, strict=True)]
    times = Counter(names)
    return [f"{name} ({run.folder.name})" if times[name] > 1 else name for name, run in zip(names, runs, strict=True)]


def _word(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if name in ("model", "data", "optim") else f"{name.removeprefix('optim.')}={text}"
