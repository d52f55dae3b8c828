"""Results of a run in stages: tables and record agree, also after a resumed run and over shards."""

from dataclasses import replace

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from raiopt.attacks import Attack, Engine, Stage
from raiopt.results.record import Metrics, Record, StageRecord
from raiopt.results.stage_counts import merged_stages, with_counts
from tests import attack_functions as attacks
from tests.results.test_chunks import assert_same, interrupted, job, run

NAMES = ["first", "second", "third"]


def staged(**changes):
    """A job of three stages, each stronger than the last."""
    made = job(**changes)

    def stage(name, **asked):
        return Stage(name, Attack(**{**vars(made.attack), **asked}), [f"solver.steps={asked['steps']}"])

    plan = [
        stage("first", steps=0),
        stage("second", steps=1, criterion=attacks.margin),
        stage("third", steps=4, target="next", restarts=2),
    ]
    return replace(made, stages=plan)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged") / "run"
    return folder, run(folder, make=staged)


def test_record_and_tables_agree(undisturbed):
    folder, record = undisturbed
    samples, trace = pl.read_parquet(folder / "samples.parquet"), pl.read_parquet(folder / "trace.parquet")
    stages = record["stages"]
    assert [stage["name"] for stage in stages] == NAMES
    assert [stage["words"] for stage in stages] == [["solver.steps=0"], ["solver.steps=1"], ["solver.steps=4"]]
    left = record["metrics"]["attacked"]
    for stage in stages:
        assert stage["attacked"] == left
        mine = samples.filter(pl.col("stage") == stage["name"])
        assert stage["broken"] == mine["verified"].sum()
        left -= stage["broken"]
        steps = trace.filter(pl.col("stage") == stage["name"])
        assert steps["step"].to_list() == list(range(int(stage["words"][0][-1]) + 1))
        assert set(steps["samples"]) == {stage["attacked"]}
        assert stage["robust_accuracy"] == left / len(samples)  # the model gets all of them right
    assert sum(stage["broken"] > 0 for stage in stages) > 1
    assert stages[-1]["robust_accuracy"] == record["metrics"]["robust_accuracy"] > 0
    for name in ("forward_passes", "backward_passes"):
        assert sum(stage[name] for stage in stages) == record["metrics"][name]
    assert record["metrics"]["target_reached"] is None


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_stages_of_finished_batches_are_kept_when_a_run_resumes(tmp_path, undisturbed, batches):
    folder, record = undisturbed
    interrupted(tmp_path / "run", [(Engine, "run")], batches + 1, staged)
    again = run(tmp_path / "run", make=staged)
    assert (again["continued"] is not None) == bool(batches)
    assert_same(tmp_path / "run", folder)
    assert again["stages"] == record["stages"]


def test_other_batch_sizes_give_the_same_counts(tmp_path, undisturbed):
    folder, record = undisturbed
    other = run(tmp_path / "run", make=staged, batch_size=8)
    passes = ["forward_passes", "backward_passes"]  # waiting rows pass too
    tables = [
        pl.read_parquet(at / "samples.parquet").select("id", "stage", "verified") for at in (folder, tmp_path / "run")
    ]
    assert_frame_equal(*tables)
    for one, two in zip(record["stages"], other["stages"], strict=True):
        assert {k: v for k, v in one.items() if k not in passes} == {k: v for k, v in two.items() if k not in passes}


def test_one_attack_has_no_stages(tmp_path):
    assert run(tmp_path / "run")["stages"] == []
    for name in ("samples", "trace"):
        assert pl.read_parquet(tmp_path / "run" / f"{name}.parquet")["stage"].dtype == pl.String
        assert pl.read_parquet(tmp_path / "run" / f"{name}.parquet")["stage"].is_null().all()


def test_merged_shards_have_the_counts_of_the_undivided_run():
    parts = [(5, [(5, 2, 3), (3, 1, 2)]), (8, [(7, 3, 4), (4, 0, 4)])]
    kinds = ("attacked", "broken", "robust")
    noted = [
        [{**dict(zip(kinds, c, strict=True)), "forward_passes": 9, "backward_passes": 8} for c in p] for _, p in parts
    ]
    about = [StageRecord("a"), StageRecord("b", gradient_free=True)]
    records = [
        Record(metrics=Metrics(samples=count), stages=with_counts(about, [each], count))
        for (count, _), each in zip(parts, noted, strict=True)
    ]
    assert merged_stages(records) == with_counts(about, noted, 13)
    assert [stage.robust_accuracy for stage in merged_stages(records)] == [7 / 13, 6 / 13]
