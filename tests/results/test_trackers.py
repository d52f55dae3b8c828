"""What a tracker receives for a job, compared with the job folder; MLflow itself is in tests/sweep/test_tracker.py."""

import json
import re
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raiopt.checks import printable
from raiopt.results import trackers
from raiopt.results.record import SCHEMA
from raiopt.results.records import VOLATILE
from raiopt.results.tracked import tracked
from raiopt.results.trackers import Mlflow

RECORD = {
    "schema": SCHEMA,
    "status": "finished",
    "name": "mine",
    "note": "for the paper",
    "job_key": "0123456789",
    "command": ["raiopt", "optim.lr=0.5"],
    "overrides": {"optim.lr": 0.5, "note": "for the paper"},
    "choices": {"optim": "signed", "optim/InnerOpt": "sgd", "tracker": "mlflow", "experiment": None},
    "started": "2026-11-22T14:23:01+00:00",
    "seconds": 2.5,
    "git": {"commit": "abc", "changed": True},
    "hashes": {"weights": "w", "data": "d"},
    "checks": {"survivors": 3, "restarts_differ": None},
    "metrics": {"samples": 8, "robust_accuracy": 0.25, "median_l0": None, "epsilons": [0.05, 1.0]},
}


def folder_of(path, record=RECORD, **changes):
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps({**record, **changes}))
    return path


def test_exactly_the_metrics_of_the_record_are_logged(tmp_path):
    metrics = {**RECORD["metrics"], "robust_accuracies": [0.75, 0.25]}
    job = tracked(folder_of(tmp_path, metrics=metrics))
    assert job.metrics == {
        "seconds": 2.5,
        "samples": 8,
        "undecided": 0,
        "forward_passes": 0,
        "backward_passes": 0,
        "attack_seconds": 0,
        "robust_accuracy": 0.25,
        "robust_accuracy_at/0.05": 0.75,
        "robust_accuracy_at/1": 0.25,
        "checks/survivors": 3,
    }


def test_the_curves_are_the_table_of_steps_without_its_gaps(tmp_path):
    table = pl.DataFrame({"step": [0, 1, 2], "loss_mean": [0.5, None, 1.5], "fooled": [0.0, 0.25, 0.5]})
    table.write_parquet(tmp_path / "trace.parquet")
    job = tracked(folder_of(tmp_path))
    assert sorted(job.curves) == [
        ("step/fooled", 0.0, 0),
        ("step/fooled", 0.25, 1),
        ("step/fooled", 0.5, 2),
        ("step/loss_mean", 0.5, 0),
        ("step/loss_mean", 1.5, 2),
    ]


def test_params_are_options_and_choices_without_run_settings(tmp_path):
    folder = folder_of(tmp_path)
    assert tracked(folder).params == {"optim.lr": "0.5", "optim": "signed", "optim/InnerOpt": "sgd"}
    options = {
        "solver.epsilons": [0.1, 0.2],
        "optim.param_ndim": None,
        **dict.fromkeys(VOLATILE, 1),
        "tracker.uri": "u",
    }
    folder_of(tmp_path, options=options)
    asked = tracked(folder).params
    assert asked == {
        "solver.epsilons": "[0.1, 0.2]",
        "optim.param_ndim": "null",
        "optim": "signed",
        "optim/InnerOpt": "sgd",
    }


def test_tags_name_the_folder_and_the_sources_of_the_run(tmp_path):
    folder = folder_of(tmp_path, status="failed", error={"type": "ValueError", "message": "no such weights"})
    job = tracked(folder)
    assert job.status == "FAILED"
    assert (job.began, job.ended) == (1795357381000, 1795357383500)
    assert datetime.fromtimestamp(job.began / 1000, UTC).isoformat() == RECORD["started"]
    assert job.tags == {
        "mlflow.note.content": "for the paper",
        "mlflow.source.name": "raiopt optim.lr=0.5",
        "mlflow.source.git.commit": "abc",
        "raiopt.folder": str(folder),
        "raiopt.job_key": "0123456789",
        "raiopt.status": "failed",
        "raiopt.error": "no such weights",
        "raiopt.git_changed": "true",
        "raiopt.hash.weights": "w",
        "raiopt.hash.data": "d",
    }


def test_a_job_of_a_sweep_is_named_after_the_swept_options(tmp_path):
    folder = folder_of(tmp_path / "s" / "0123456789")
    assert tracked(folder).name == "mine"
    (tmp_path / "s" / "sweep.json").write_text(json.dumps({"swept": ["optim.lr", "seed"]}))
    assert tracked(folder).name == "optim.lr=0.5"


@pytest.mark.parametrize("changes", [{"status": "running"}, {"schema": SCHEMA + 1}, {"status": None}])
def test_nothing_is_logged_for_a_job_that_has_not_ended(tmp_path, changes):
    assert tracked(folder_of(tmp_path, **changes)) is None
    assert tracked(tmp_path / "none") is None


def test_a_bare_record_of_a_killed_job_is_enough(tmp_path):
    job = tracked(folder_of(tmp_path / "key", {"schema": SCHEMA, "status": "killed"}))
    assert (job.name, job.status, job.began, job.params, job.metrics) == ("key", "KILLED", 0, {}, {})


@given(name=st.text(min_size=1), value=st.text() | st.lists(st.integers(), max_size=300) | st.floats(allow_nan=False))
def test_mlflow_takes_every_name_and_value(tmp_path_factory, name, value):
    folder = folder_of(tmp_path_factory.mktemp("job"), choices={}, options={f"model.kwargs.{name}": value})
    (given,) = tracked(folder).params.items()
    assert re.fullmatch(r"[\w.:/ -]{1,250}", given[0])
    assert len(given[1]) <= 500
    text = printable(value) if isinstance(value, str) else json.dumps(value)
    assert given[1] == text or given[1] == f"{text[:497]}..."


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"uri": "mlruns"}, "tracker.uri='mlruns' must be sqlite:///FILE"),
        ({"uri": "file:///tmp/mlruns"}, "must be sqlite:///FILE"),
        ({"uri": "sqlite://"}, "must be sqlite:///FILE"),
        ({"artifacts": "al"}, "tracker.artifacts='al' must be one of"),
        ({"experiment": " "}, "tracker.experiment must not be empty"),
    ],
)
def test_wrong_settings_are_tracked(settings, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Mlflow(**{"uri": "http://localhost:5000", **settings})


@pytest.mark.parametrize("missing", ["mlflow", "sqlalchemy", "alembic"])
def test_a_missing_package_is_reported_with_the_install_command(missing, monkeypatch):
    there = type("Spec", (), {"origin": "file"})
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == missing else there)
    with pytest.raises(ValueError, match=rf"needs {missing}: pip install 'raiopt\[mlflow\]'"):
        Mlflow("sqlite:///mlflow.db")


def test_a_server_needs_no_database_here(monkeypatch):
    there = type("Spec", (), {"origin": "file"})
    monkeypatch.setattr(trackers, "find_spec", lambda name: there if name == "mlflow" else None)
    assert Mlflow("http://localhost:5000").public_uri == "http://localhost:5000"
    assert Mlflow("https://me:secret@host/path").public_uri == "https://host/path"


def test_the_sqlite_marker_moves_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: type("Spec", (), {"origin": "file"}))
    marks = [Mlflow(f"sqlite:///{root}/mlflow.db").mark(root / "a" / "b") for root in (tmp_path, tmp_path / "moved")]
    assert marks == ["../../mlflow.db raiopt"] * 2
    assert Mlflow("http://h", "other").mark(tmp_path) == "http://h other"
