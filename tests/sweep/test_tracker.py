"""Runs in MLflow, as MLflow tells them, against their folders; and trackers that fail, which fails no run.

Without MLflow a part is skipped; scripts/test_tracker runs all of it.
"""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest
import yaml
from hydra import compose, initialize_config_module
from pebble import ProcessPool

from raiopt.cli import main
from raiopt.config.options import store
from raiopt.reports.runs import load_runs
from raiopt.results import trackers
from raiopt.results.record_reader import read_record
from raiopt.results.trackers import MARK, Mlflow
from raiopt.sweep import tracker_process
from raiopt.sweep.job_key import job_key, register_resolvers
from raiopt.sweep.tracker_process import TrackerProcess
from raiopt.verbs import track
from tests.sweep.command import OWN, Command

SMALL = ["data.limit=8", "solver.steps=2", "threads=1"]
SWEEP = ["-m", "name=s", "outputs=out", *SMALL]
STORE = "sqlite:///out/mlflow.db"
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="pip install 'raiopt[mlflow]'")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    register_resolvers()  # as the command does
    store.add_to_hydra_store(overwrite_ok=True)
    for name in ("HYDRA_FULL_ERROR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def nowhere(monkeypatch):
    """The settings of a place that cannot be reached; where MLflow is not installed, it is so for the process alone."""
    monkeypatch.setattr(trackers, "find_spec", lambda name: type("Spec", (), {"origin": "file"}))
    return ["tracker=mlflow", "tracker.uri=http://127.0.0.1:9"]


def _dies(place, *call):
    os._exit(3)


def logged(code):
    """What Python prints that reads the store of MLflow; not in this process, for MLflow has warnings of its own."""
    begin = f"import json\nfrom mlflow.tracking import MlflowClient\nc = MlflowClient({STORE!r})\n"
    done = subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def runs(experiment="raiopt"):
    """All runs of an experiment by their folders, as read from MLflow."""
    return logged(f"""
def files(run, path=None):
    for entry in c.list_artifacts(run, path):
        yield from files(run, entry.path) if entry.is_dir else [entry.path]
found = {{}}
for r in c.search_runs([c.get_experiment_by_name({experiment!r}).experiment_id]):
    curves = {{n: [(m.step, m.value) for m in c.get_metric_history(r.info.run_id, n)] for n in r.data.metrics}}
    assert r.data.tags["raiopt.folder"] not in found
    found[r.data.tags["raiopt.folder"]] = {{"run": r.info.run_id, "status": r.info.status, "name": r.info.run_name,
        "params": r.data.params, "metrics": r.data.metrics, "tags": r.data.tags, "curves": curves,
        "files": sorted(files(r.info.run_id)), "seconds": (r.info.end_time - r.info.start_time) / 1000}}
print(json.dumps(found))""")


def read_flat(folder):
    """The options of a job, read without raiopt."""

    def flat(node, prefix=""):
        for key, value in node.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]

    return dict(flat(yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())))


def test_without_a_tracker_nothing_of_it_is_imported():
    code = "import sys; from raiopt.cli import main; main(sys.argv[1:]); print([m for m in sys.modules if m in "
    code += "('mlflow', 'raiopt.results.trackers', 'raiopt.sweep.tracker_process')])"
    done = subprocess.run([sys.executable, "-c", code, *SMALL], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


def test_the_tracker_does_not_change_the_job_key():
    with initialize_config_module("raiopt.conf", version_base="1.3"):
        settings = [[], ["tracker=mlflow"], ["tracker=mlflow", "tracker.uri=http://h", "tracker.artifacts=all"]]
        assert len({job_key(compose("raiopt", overrides=words), {}) for words in settings}) == 1


@pytest.mark.parametrize("words", [SMALL, ["-m", *SMALL, "seed=0,1"]])
def test_a_tracker_that_is_not_installed_is_reported_before_anything_runs(words, monkeypatch, capfd):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert main([*words, "tracker=mlflow"]) == 1
    assert capfd.readouterr().err == "raiopt: tracker=mlflow needs mlflow: pip install 'raiopt[mlflow]'\n"
    assert not list(Path().glob("outputs/*"))


@pytest.mark.parametrize("setting", ["tracker.artifacts=al", "tracker.uri=mlruns", "tracker.uri=http://me:pw@host"])
def test_a_refused_setting_does_not_touch_a_run_of_that_name(setting, capsys):
    assert main([*SMALL, "name=a"]) == 0
    (folder,) = Path("outputs/a").iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main([*SMALL, "name=a", "tracker=mlflow", setting]) == 1
    assert setting.partition("=")[0] in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before | {
        folder / "run.log": (folder / "run.log").stat().st_mtime_ns
    }


def test_the_options_of_a_job_are_in_its_record_and_references_are_followed():
    assert main([*SMALL, "name=a", "init=uniform_linf", "optim.epsilon=0.3"]) == 0
    (folder,) = Path("outputs/a").iterdir()
    found = read_record(folder).options
    assert (found["init.epsilon"], found["optim.epsilon"], found["solver.steps"]) == (0.3, 0.3, 2)
    assert not [name for name in found if "_target_" in name]


def test_a_failing_tracker_does_not_affect_the_run(nowhere, capfd):
    assert main([*SMALL, "name=a", *nowhere]) == 0
    (folder,) = Path("outputs/a").iterdir()
    assert read_record(folder).status == "finished"
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "tracker" in line]
    assert line.startswith("raiopt: tracker=mlflow: the job is not logged: ")
    remedy = f"raiopt track {folder} tracker.experiment=raiopt tracker.uri=http://127.0.0.1:9"
    assert line.endswith(f"To log them later: {remedy}")
    assert line.removeprefix("raiopt: ") in (folder / "run.log").read_text()
    assert not (folder / MARK).exists()


def test_a_sweep_says_once_that_its_jobs_are_not_logged(nowhere, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "from raiopt.results import trackers\ntrackers.find_spec = lambda name: type('Spec', (), {'origin': 'file'})\n"
    )
    command = Command(tmp_path, "-m", "name=s", *SMALL, "seed=0,1", *nowhere, PYTHONPATH=str(tmp_path))
    code, said = command.ends(), command.said()
    assert code == 0, said
    assert said.count("tracker=mlflow: 2 of 2 jobs are not logged: ") == 1
    assert said.count("not logged") == 1
    for folder in Path("outputs/s").glob("*/"):
        assert "2 of 2 jobs are not logged" in (folder / "run.log").read_text()


@pytest.mark.parametrize("patience", [0.0, 0.3])
def test_after_ctrl_c_a_tracker_is_not_waited_for(nowhere, patience, tmp_path, capfd):
    process = TrackerProcess(Mlflow("http://127.0.0.1:9"))
    process.log(tmp_path)
    assert not process.end(patience)
    assert "the job is not logged" in capfd.readouterr().err
    assert not multiprocessing.active_children()


def test_a_failure_to_start_the_process_is_reported(nowhere, monkeypatch, tmp_path, capfd):
    process = TrackerProcess(Mlflow("http://127.0.0.1:9"))
    with monkeypatch.context() as context:
        context.setattr(ProcessPool, "schedule", lambda *_, **__: os.open("none", os.O_RDONLY))
        process.log(tmp_path)
    assert not process.end()
    assert "the job is not logged: " in capfd.readouterr().err


def test_a_process_that_dies_is_reported_in_one_line(nowhere, monkeypatch, tmp_path, capfd):
    process = TrackerProcess(Mlflow("http://127.0.0.1:9"))
    monkeypatch.setattr(tracker_process, "_call", _dies)
    process.log(tmp_path)
    assert not process.end()
    assert "the job is not logged: " in capfd.readouterr().err


def test_raiopt_track_explains_its_arguments():
    with pytest.raises(ValueError, match="the following arguments are required: FOLDER"):
        track.main(["tracker.uri=sqlite:///x.db"])


@needs_mlflow
def test_a_sweep_in_mlflow_agrees_with_its_folders(capfd):
    words = [*SWEEP, "optim.lr=0.1,-1.0", "optim.epsilon=0.1", "init=uniform_linf", "note=hello"]
    assert main([*words, "tracker=mlflow"]) == 1  # one job fails
    assert capfd.readouterr().out.endswith("logged in sqlite:///out/mlflow.db, experiment raiopt\n")
    found, sweep = runs(), Path("out/s").absolute()
    jobs = {run.folder.absolute(): run for run in load_runs(["out/s"])}
    assert set(found) == {str(sweep), *map(str, jobs)}
    parent = found[str(sweep)]
    assert (parent["status"], parent["name"]) == ("FAILED", "s")
    assert parent["files"] == ["sweep.csv"]
    for folder, job in jobs.items():
        entry, record = found[str(folder)], job.record
        assert entry["tags"]["mlflow.parentRunId"] == parent["run"]
        assert entry["status"] == job.job.status.upper()
        assert entry["seconds"] == pytest.approx(record.seconds, abs=1e-3)
        assert (entry["tags"]["raiopt.job_key"], entry["tags"]["mlflow.note.content"]) == (folder.name, "hello")
        options = read_flat(folder)
        assert entry["params"]["init.epsilon"] == entry["params"]["optim.epsilon"] == "0.1"
        assert entry["params"]["optim.lr"] == str(options["optim.lr"])
        assert entry["params"]["model"] == "digits_robust"
        own = {name.partition(".")[0] for name in entry["params"]}
        assert not own & {"tracker", "note", "name", "outputs", "device", "threads", "force", "retry", "yes"}
        assert {name for name in entry["params"]} >= {
            name for name in options if name.startswith(("solver.", "data."))
        } - {name for name in options if "._" in name}
        if job.job.status == "failed":
            assert entry["tags"]["raiopt.error"] == record.error.message
            assert set(entry["metrics"]) == {"seconds"}
            assert entry["files"] == ["hydra/config.yaml", "record.json", "run.log"]
            continue
        assert entry["files"] == ["gallery.png", "hydra/config.yaml", "record.json", "run.log"]
        for name, value in asdict(record.metrics).items():
            if value is not None:
                assert entry["metrics"][name] == value
        trace = pl.read_parquet(folder / "trace.parquet")
        for name in ("loss_mean", "fooled_so_far"):
            assert entry["curves"][f"step/{name}"] == [list(row) for row in trace.select("step", name).rows()]


@needs_mlflow
def test_the_same_command_logs_only_missing_runs(capfd):
    words = [*SWEEP, "model=python", "model.factory=own:raises,own:net"]
    Path("own.py").write_text(OWN)
    Path("trouble").touch()
    assert main(words) == 1
    tracked = [*words, "tracker=mlflow"]
    assert main([*tracked, "retry=none"]) == 1  # no job runs, but all are logged
    first = runs()
    assert sorted(run["status"] for run in first.values()) == ["FAILED", "FAILED", "FINISHED"]
    assert main([*tracked, "retry=none"]) == 1
    assert {folder: run["run"] for folder, run in runs().items()} == {
        folder: run["run"] for folder, run in first.items()
    }
    Path("trouble").unlink()
    assert main(tracked) == 0  # failed jobs run again, under the same run of MLflow
    second = runs()
    assert {folder: run["run"] for folder, run in second.items()} == {
        folder: run["run"] for folder, run in first.items()
    }
    assert {run["status"] for run in second.values()} == {"FINISHED"}
    assert not any("raiopt.error" in run["tags"] for run in second.values())
    assert {len(entry["curves"].get("step/fooled", [])) for entry in second.values()} == {0, 3}  # of sweep and jobs
    assert main([*SWEEP, "seed=5,6", "tracker=mlflow"]) == 0  # a larger sweep has the same parent
    third = runs()
    (parent,) = {run["tags"].get("mlflow.parentRunId") for run in third.values()} - {None}
    assert parent == first[str(Path("out/s").absolute())]["run"]
    assert len(third) == len(first) + 2
    assert third[str(Path("out/s").absolute())]["metrics"]["jobs"] == 4


@needs_mlflow
def test_runs_on_disk_are_logged_later_and_a_deleted_store_is_recreated(capfd):
    assert main([*SMALL, "name=one", "outputs=out"]) == 0
    assert main([*SWEEP, "seed=0,1"]) == 0
    settings = [f"tracker.uri={STORE}", "tracker.experiment=later", "tracker.artifacts=all"]
    assert track.main(["out", *settings]) == 0
    found = runs("later")
    assert len(found) == 4
    (alone,) = [run for run in found.values() if run["name"] == "one"]
    assert "mlflow.parentRunId" not in alone["tags"]
    assert {"samples.parquet", "trace.parquet", "record.json"} <= set(alone["files"])
    assert "run.json" not in alone["files"]
    assert len(load_runs(["out"])) == 3  # the copies in MLflow are no runs
    Path("out/mlflow.db").unlink()
    assert track.main(["out", *settings]) == 0
    assert set(runs("later")) == set(found)


@needs_mlflow
def test_a_forced_run_is_logged_beside_the_one_that_it_replaces(capfd):
    words = [*SMALL, "name=a", "outputs=out", "tracker=mlflow", "tracker.artifacts=none"]
    assert main(words) == 0
    (before,) = runs().values()
    assert before["files"] == []
    assert main([*words, "force=true"]) == 0
    count = logged("print(len(c.search_runs([c.get_experiment_by_name('raiopt').experiment_id])))")
    assert count == 2


@needs_mlflow
def test_a_search_is_logged_too_also_when_the_tracker_comes_later(capfd):
    pytest.importorskip("optuna")
    words = [*SWEEP, "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "optim.lr=interval(0.01,0.1)"]
    assert main([*words, "hydra.sweeper.n_trials=2"]) == 0
    assert main([*words, "hydra.sweeper.n_trials=3", "tracker=mlflow"]) == 0
    assert len(runs()) == 4


@needs_mlflow
def test_a_job_whose_curves_have_many_steps_is_logged_in_batches(capfd):
    words = ["data.limit=1", "solver.steps=300", "solver.stop=never", "threads=1", "outputs=out", "name=a"]
    assert main([*words, "tracker=mlflow"]) == 0
    (run,) = runs().values()
    curves = {name: points for name, points in run["curves"].items() if name.startswith("step/")}
    assert sum(map(len, curves.values())) > 1000
    assert all([step for step, _ in points] == list(range(301)) for points in curves.values())


@needs_mlflow
def test_a_server_that_never_responds_is_given_up(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts connections, but never answers
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert main([*SMALL, "name=a", "tracker=mlflow", f"tracker.uri={address}"]) == 0
    assert f"the job is not logged: {address} does not answer" in capfd.readouterr().err


@needs_mlflow
def test_a_store_that_cannot_be_written_is_reported_in_one_line(capfd):
    Path("file").touch()
    assert main([*SMALL, "name=a", "tracker=mlflow", "tracker.uri=sqlite:///file/mlflow.db"]) == 0
    assert "the job is not logged: " in capfd.readouterr().err


@needs_mlflow
def test_a_deleted_experiment_is_reported(capfd):
    words = [*SMALL, "outputs=out", "tracker=mlflow"]
    assert main(words) == 0
    logged("c.delete_experiment(c.get_experiment_by_name('raiopt').experiment_id); print(1)")
    assert main(words) == 0
    assert "the experiment 'raiopt' was deleted: give another tracker.experiment=..." in capfd.readouterr().err
