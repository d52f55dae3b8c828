"""Logs runs to MLflow from their folders. Does not need torch."""

import getpass
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raiopt import checks
from raiopt.results.files import files_below, is_own, read_file, write_json
from raiopt.results.records import read_jobs
from raiopt.results.tables import load_sweep
from raiopt.results.tracked import read_json, tracked

ARTIFACTS = ("small", "all", "none")
MARK = ".mlflow.json"
"""The file in a job's folder that stores the MLflow run as which it was logged."""

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment defaults: by default, MLflow retries a server for minutes and sends usage statistics."""


@dataclass(frozen=True)
class Mlflow:
    """The MLflow server or database and the experiment to which runs are logged.

    Args:
        uri: sqlite:///FILE, http://HOST:PORT of a server, or another database; not a folder, as old versions allowed.
        experiment: The name of the experiment; created if it does not exist.
        artifacts: The files that are logged: small (the picture, the log, the config, the record), all or none.

    Raises:
        ValueError: If an argument is invalid, or required packages are not installed.
    """

    uri: str
    experiment: str = "raiopt"
    artifacts: str = "small"

    def __post_init__(self) -> None:
        checks.choice("tracker.artifacts", self.artifacts, ARTIFACTS)
        if not self.experiment.strip():
            raise ValueError("tracker.experiment must not be empty: give a name.")
        file = re.match(r"(sqlite:///.|(?!sqlite|file)[a-z][\w+.-]*://.|databricks$)", self.uri)
        if not file:
            raise ValueError(
                f"tracker.uri={self.uri!r} must be sqlite:///FILE, http://HOST:PORT or another database of MLflow."
            )
        needed = ["mlflow", *(["sqlalchemy", "alembic"] if self.is_database else [])]
        for package in needed:
            spec = find_spec(package)
            if spec is None or spec.origin is None:  # a plain folder of that name is not the package
                raise ValueError(f"tracker=mlflow needs {package}: pip install 'raiopt[mlflow]'")

    @property
    def is_database(self) -> bool:
        """Whether MLflow opens a database itself instead of asking a server."""
        return not self.uri.startswith(("http:", "https:", "databricks", "uc:"))

    @property
    def file(self) -> Path | None:
        """The file of SQLite."""
        return Path(self.uri.removeprefix("sqlite:///")).absolute() if self.uri.startswith("sqlite:") else None

    @property
    def public_uri(self) -> str:
        """The URI without user and password.

        >>> Mlflow.public_uri.fget(type("", (), {"uri": "http://me:secret@host:5000"}))
        'http://host:5000'
        """
        return re.sub(r"://[^/@]*@", "://", self.uri)

    def mark(self, folder: Path) -> str:
        """Returns the key of this location in a folder's mark; an SQLite file may be moved together with the folder."""
        place = os.path.relpath(self.file, folder) if self.file else self.public_uri
        return f"{place} {self.experiment}"


def prepare() -> None:
    """Imports MLflow in advance, because it takes seconds."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow.tracking  # pyright: ignore[reportMissingImports]  # noqa: F401


class Session:
    """Logs the folders of jobs, each only once; runs that MLflow already has are kept, or updated.

    Raises:
        Exception: Any exception of MLflow, here and in all methods.
    """

    def __init__(self, place: Mlflow) -> None:
        prepare()
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        if place.file:
            place.file.parent.mkdir(parents=True, exist_ok=True)
        self.place = place
        self.client = MlflowClient(f"sqlite:///{place.file}" if place.file else place.uri)
        self.experiment = self._experiment()
        self.parents: dict[Path, str] = {}

    def _experiment(self) -> str:
        """Returns the id of the experiment."""
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

        name = self.place.experiment
        artifacts = (self.place.file or Path("outputs/mlflow.db")).absolute().with_name("mlflow-artifacts")
        if (found := self.client.get_experiment_by_name(name)) is None:
            try:
                return self.client.create_experiment(name, artifacts.as_uri() if self.place.is_database else None)
            except MlflowException:  # another process has just created it
                if (found := self.client.get_experiment_by_name(name)) is None:
                    raise
        if found.lifecycle_stage != "active":
            raise ValueError(f"the experiment {name!r} was deleted: give another tracker.experiment=...")
        return found.experiment_id

    def log(self, folder: Path) -> bool:
        """Logs a job that has ended, as a child run of its sweep; returns False if there was nothing to do."""
        job = tracked(folder)
        if job is None:
            return False
        parent = self.parent(folder.parent) if (folder.parent / "sweep.json").exists() else None
        mark = self._mark(folder)
        is_whole = mark.get("version") == job.version
        if is_whole and parent is not None and mark.get("parent") == parent:  # then no query to MLflow is needed
            return False
        stage = self._stage(mark.get("run"))
        tags = {**job.tags, **({} if parent is None else {"mlflow.parentRunId": parent})}
        if is_whole and stage is not None:
            if stage == "active" and parent is not None:
                self.client.set_tag(mark["run"], "mlflow.parentRunId", parent)
        else:
            run = mark["run"] if stage == "active" else self._create(folder, job.name, job.began)
            self._fill(run, job.params, tags, [*((name, value, 0) for name, value in job.metrics.items()), *job.curves])
            self._log_files(run, folder)
            self.client.set_terminated(run, job.status, job.ended)
            mark = {"run": run, "version": job.version}
        self._set_mark(folder, {**mark, "parent": parent})
        return not (is_whole and stage is not None)

    def parent(self, sweep: Path) -> str:
        """Returns the run of a sweep, created if necessary, and marks it as running."""
        if sweep not in self.parents:
            run = self._mark(sweep).get("run", "")
            if self._stage(run) == "active":
                self.client.update_run(run, "RUNNING")
            else:
                run = self._create(sweep, sweep.name)
            self.parents[sweep] = run
        return self.parents[sweep]

    def end(self) -> None:
        """Logs the sweeps of all jobs that were logged: their number of jobs and their tables."""
        for sweep, run in self.parents.items():
            listed, jobs = read_json(sweep / "sweep.json"), read_jobs(sweep)
            finished = sum(job.status == "finished" for job in jobs)
            figures: list[tuple[str, float, int]] = [("jobs", len(jobs), 0), ("finished", finished, 0)]
            robust = load_sweep(sweep).filter("best")["robust_accuracy"]
            if len(robust.unique()) == 1:  # otherwise the jobs have different balls, models or data
                figures.append(("smallest_robust_accuracy", robust[0], 0))
            words = " ".join(["raiopt -m", *(listed.get("commands") or [[]])[-1]])
            tags = {"mlflow.source.name": words, "raiopt.swept": ", ".join(listed.get("swept", []))}
            self._fill(run, {}, {**tags, "raiopt.folder": str(sweep.absolute())}, figures)
            for name in ("sweep.csv", "report.html"):
                if self.place.artifacts != "none" and is_own(sweep / name):
                    self.client.log_artifact(run, str(sweep / name))
            self.client.set_terminated(run, "FINISHED" if finished == len(jobs) else "FAILED")

    def _create(self, folder: Path, name: str, began: int | None = None) -> str:
        tags = {}
        with suppress(OSError, KeyError):  # the user in a container may have no name
            tags["mlflow.user"] = getpass.getuser()
        run = self.client.create_run(self.experiment, began or None, tags, run_name=name).info.run_id
        self._set_mark(folder, {"run": run})
        return run

    def _stage(self, run: str | None) -> str | None:
        """Returns active or deleted; None if there is no such run."""
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

        if not run:
            return None
        try:
            return self.client.get_run(run).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _fill(
        self, run: str, params: Mapping[str, str], tags: Mapping[str, str], metrics: Sequence[tuple[str, float, int]]
    ) -> None:
        """Logs in batches; logging a value twice stores it once, because its timestamp is the start of the run."""
        from mlflow.entities import Metric, Param, RunTag  # pyright: ignore[reportMissingImports]

        before = self.client.get_run(run)
        for name in before.data.tags:
            if (
                name.startswith("raiopt.") and name not in tags
            ):  # outdated tags, such as the error of a job that ran again
                self.client.delete_tag(run, name)
        self.client.log_batch(run, tags=[RunTag(*pair) for pair in tags.items()])
        asked = [Param(*pair) for pair in params.items()]
        found = [Metric(name, value, before.info.start_time, step) for name, value, step in metrics]
        for first in range(0, len(asked), 100):
            self.client.log_batch(run, params=asked[first : first + 100])
        for first in range(0, len(found), 1000):
            self.client.log_batch(run, found[first : first + 1000])

    def _log_files(self, run: str, folder: Path) -> None:
        """Logs the files of a job; run.json gets another name, so that its copy is not mistaken for a run."""
        if self.place.artifacts == "none":
            return
        self.client.log_text(run, read_file(folder / "run.json").decode(), "record.json")
        small = [folder / "gallery.png", folder / "run.log", folder / ".hydra" / "config.yaml"]
        kept = [path for path in files_below(folder) if path.name != "run.json" and not path.name.startswith(".")]
        for path in kept if self.place.artifacts == "all" else small:
            if is_own(path):
                inside = path.relative_to(folder).parent.as_posix().lstrip(".")
                self.client.log_artifact(run, str(path), inside or None)

    def _mark(self, folder: Path) -> dict[str, Any]:
        return read_json(folder / MARK).get(self.place.mark(folder), {})

    def _set_mark(self, folder: Path, mark: dict[str, Any]) -> None:
        write_json(folder / MARK, {**read_json(folder / MARK), self.place.mark(folder): mark})
