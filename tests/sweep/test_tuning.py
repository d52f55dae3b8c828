"""Tuning: its search space, that it finds the optimum, and that it resumes."""

import json
import sys
from pathlib import Path

import optuna
import polars as pl
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalStorage

from raiopt.cli import main
from raiopt.results.record import SCHEMA
from raiopt.sweep import local
from raiopt.sweep.task import Ended
from raiopt.sweep.tuning import _mend, distribution

TUNE = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=2", "name=s", "data.limit=2", "solver.steps=1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Bowl:
    """An executor whose jobs are over at once: robust accuracy is how far lr is from 0.3; above 0.9 they fail late."""

    slots = 2

    def __init__(self):
        self.started, self.asked, self.stop_after = [], [], None

    def start(self, tasks):
        self.started += tasks

    def poll(self, seconds):
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        task = self.started.pop(0)
        lr = task.config["optim"]["lr"]
        self.asked.append(lr)
        failed = lr > 0.9
        record = {
            "schema": SCHEMA,
            "started": str(len(self.asked)),
            **task.about,
            "status": "failed" if failed else "finished",
            "ball": {"norm": "linf", "epsilon": 0.1, "finite": True},
        }
        record |= {
            "metrics": {"robust_accuracy": 0.0 if failed else abs(lr - 0.3), "attack_seconds": 0.0},
            "hashes": {"weights": "w", "data": "d"},
        }
        if failed:
            record |= {"error": {"type": "ValueError", "message": "too large"}}
        folder = Path(task.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(record))
        return [Ended(task)]

    def close(self):
        self.started = []


@pytest.fixture
def bowl(monkeypatch):
    executor = Bowl()
    monkeypatch.setattr(local.LocalLauncher, "executor", lambda self, tasks: executor)
    monkeypatch.setattr("raiopt.sweep.tuning.check_hashes", lambda finished: None)
    return executor


def statuses(tmp_path):
    return pl.read_parquet(tmp_path / "outputs/s/sweep.parquet")["status"].to_list()


def parsed(text):
    return OverridesParser.create().parse_override(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=interval(0.5,2)", FloatDistribution(0.5, 2.0)),
        ("a=tag(log,interval(0.001,1))", FloatDistribution(0.001, 1.0, log=True)),
        ("a=int(interval(1,9))", IntDistribution(1, 9)),
        ("a=range(1,10,4)", IntDistribution(1, 9, step=4)),
        ("a=range(0.5,1.6,0.5)", CategoricalDistribution(["0.5", "1.0", "1.5"])),
        ("a=1,null,x", CategoricalDistribution(["1", "null", "x"])),
    ],
)
def test_values_become_distributions(text, expected):
    assert distribution(parsed(text)) == expected


@pytest.mark.parametrize("text", ["a=interval(2,1)", "a=tag(log,interval(0,1))", "a=range(3,3)"])
def test_options_without_values_are_refused(text):
    with pytest.raises(ValueError, match="a="):
        distribution(parsed(text))


def test_it_finds_the_minimum_and_resumes_up_to_the_total(tmp_path, bowl, capsys):
    words = [*TUNE, "optim.lr=interval(0,1)"]
    assert main([*words, "hydra.sweeper.n_trials=8"]) in (0, 1)
    assert len(bowl.asked) == 8
    assert main([*words, "hydra.sweeper.n_trials=40"]) in (0, 1)
    assert len(bowl.asked) == len(set(bowl.asked)) == len(statuses(tmp_path)) == 40
    best = min((lr for lr in bowl.asked if lr <= 0.9), key=lambda lr: abs(lr - 0.3))
    assert abs(best - 0.3) < 0.02
    assert f"best of 40 trials: robust_accuracy={abs(best - 0.3):g} with optim.lr={best}" in capsys.readouterr().out
    assert main([*words, "hydra.sweeper.n_trials=40"]) in (0, 1)
    assert len(bowl.asked) == 40


def test_a_failing_trial_counts_and_does_not_stop_the_study(tmp_path, bowl):
    assert main([*TUNE, "optim.lr=0.1,0.95", "hydra.sweeper.n_trials=12"]) == 1
    assert sorted(statuses(tmp_path)) == ["failed", "finished"]  # each of the two questions has one folder
    assert 0.1 in bowl.asked
    assert bowl.asked.count(0.1) <= 2  # two may run at once


def test_a_trial_that_was_interrupted_is_the_first_to_run_again(tmp_path, bowl):
    words = [*TUNE, "optim.lr=interval(0,0.9)", "hydra.sweeper.n_trials=6"]
    bowl.stop_after = 3
    assert main(words) == 130
    left = [row["optim.lr"] for row in pl.read_parquet("outputs/s/sweep.parquet").filter(status="killed").to_dicts()]
    assert len(left) == 2
    bowl.stop_after = None
    assert main(words) == 0
    assert bowl.asked[3:5] == left
    assert statuses(tmp_path) == ["finished"] * 6


def test_a_study_of_other_options_is_refused(bowl, capsys):
    assert main([*TUNE, "optim.lr=interval(0,0.9)", "hydra.sweeper.n_trials=2"]) == 0
    assert main([*TUNE, "optim.lr=interval(0,0.8)", "hydra.sweeper.n_trials=4"]) == 1
    assert "contains a study with another space of optim.lr" in capsys.readouterr().err
    assert len(bowl.asked) == 2


def test_a_changed_default_starts_another_study(tmp_path, bowl, capsys):
    words = [*TUNE, "optim.lr=interval(0,0.9)", "hydra.sweeper.n_trials=3"]
    assert main(words) == 0
    for path in tmp_path.glob("outputs/s/*/run.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "options": {**record["options"], "optim.grad_scale": 3.0}}))
    assert main(words) == 0
    assert (
        "3 finished jobs run again because a default changed: optim.grad_scale=3.0 is now 1.0"
        in capsys.readouterr().out
    )
    assert len(bowl.asked) == 6
    assert (tmp_path / "outputs/s/replaced/study.journal-1").exists()


def test_jobs_used_only_by_an_earlier_study_are_removed_from_the_table(tmp_path, bowl):
    words = [*TUNE, "optim.lr=interval(0,0.9)", "hydra.sweeper.n_trials=4"]
    assert main(["-m", "name=s", "data.limit=2", "solver.steps=1", "optim.lr=0.8"]) == 0
    bowl.stop_after = 3
    assert main(words) == 130  # two of them still ran
    finished = sorted(tmp_path.glob("outputs/s/*/run.json"), key=lambda path: path.stat().st_mtime_ns)[1]
    record = json.loads(finished.read_text())
    finished.write_text(json.dumps({**record, "options": {**record["options"], "optim.grad_scale": 3.0}}))
    bowl.stop_after = None
    assert main([*words, "hydra.sweeper.seed=7"]) == 0
    table = pl.read_parquet(tmp_path / "outputs/s/sweep.parquet")
    assert table["status"].unique().to_list() == ["finished"]
    assert 0.8 in table["optim.lr"]
    assert set(bowl.asked[3:]) <= set(table["optim.lr"])
    numbers = [job["number"] for job in json.loads((tmp_path / "outputs/s/sweep.json").read_text())["jobs"].values()]
    assert len(numbers) == len(set(numbers)) == len(table)
    assert len(list(tmp_path.glob("outputs/s/replaced/*"))) == 4  # the journal, the outdated job and two that still ran


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "There is nothing to tune: give an option as"),
        (["optim.lr=interval(0,1)", "hydra.sweeper.metric=robust"], "hydra.sweeper.metric='robust' must be one of"),
        (["optim.lr=interval(0,1)", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 must be"),
        (["optim.rate=interval(0,1)"], "optim.rate is not an option"),
        (["optim.lr=interval(0,1)", "hydra/launcher=basic"], "needs hydra/launcher=local"),
    ],
)
def test_bad_input_is_reported_before_there_is_a_folder(tmp_path, bowl, capsys, words, message):
    assert main([*TUNE, *words]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("outputs/s/*"))
    assert not bowl.asked


def test_without_optuna_the_remedy_is_reported(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main([*TUNE, "optim.lr=interval(0,1)"]) == 1
    assert "pip install 'raiopt[optuna]'" in capsys.readouterr().err


def test_a_truncated_journal_is_repaired(tmp_path):
    journal = tmp_path / "study.journal"
    journal.write_bytes(b'{"a": 1}\n{"b": 2}\n{"c"')
    (tmp_path / "study.journal.lock").write_text("")
    _mend(journal)
    assert journal.read_bytes() == b'{"a": 1}\n{"b": 2}\n'
    assert not (tmp_path / "study.journal.lock").exists()


def test_real_trials_run_in_workers(tmp_path):
    words = [*TUNE, "optim.lr=interval(0.01,0.1)", "optim.param_ndim=-1,null", "hydra.sweeper.n_trials=3"]
    assert main(words) == 0
    assert statuses(tmp_path) == ["finished"] * 3
    study = optuna.load_study(
        study_name="raiopt",
        storage=JournalStorage(JournalFileBackend(str(tmp_path / "outputs/s/study.journal"))),
    )
    table = pl.read_parquet(tmp_path / "outputs/s/sweep.parquet")
    assert sorted(trial.value for trial in study.trials) == sorted(table["robust_accuracy"].to_list())
