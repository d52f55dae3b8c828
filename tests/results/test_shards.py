"""Shards merged into one row: equal to the undivided run in every digit, incomplete if a shard is missing."""

import json
from dataclasses import asdict

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from torch import nn

from raiopt import experiment
from raiopt.attacks import Attack
from raiopt.fast import Inference
from raiopt.optim import LinfProjectedOptim
from raiopt.results.folder import RunFolder
from raiopt.results.record_reader import read_record
from raiopt.results.shards import load_samples
from raiopt.results.tables import METRICS, load_sweep
from raiopt.zoo import Classifier, ImageData
from raiopt.zoo.data import Shard
from tests import attack_functions as attacks
from tests.results.sweeps import list_jobs, make

IMAGES = torch.rand(11, 3, 4, 4, generator=torch.Generator().manual_seed(0))
COUNT = 3
APART = "shards 0 and 2 do not belong to one run: they differ in"


def net():
    module = nn.Sequential(nn.Conv2d(3, 2, 4), nn.Flatten())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return Classifier(module, name="net").frozen()


def data(_):
    labels = torch.arange(len(IMAGES)) % 2
    names = [f"image {i}" for i in range(len(IMAGES))]
    return ImageData("random", list(range(len(IMAGES))), names, labels, lambda i: IMAGES[i])


def attack(param_ndim=-1, perturbation=attacks.additive, epsilon=0.1, **changes):
    return Attack(
        optimizer=lambda params: LinfProjectedOptim(params, epsilon=epsilon, lr=epsilon / 2, param_ndim=param_ndim),
        perturbation=perturbation,
        init=lambda rows, generator: attacks.uniform_linf(rows, generator=generator, epsilon=epsilon),
        criterion=attacks.cross_entropy,
        steps=3,
        **changes,
    )


QUESTIONS = {
    "usual": {},
    "restarts": {"restarts": 2, "stop": "never"},
    "radii": {"epsilons": [0.02, 0.1]},
    "universal": {"perturbation": attacks.universal, "param_ndim": None},
}


def run(folder, number, question, shard=None, **overrides):
    """Runs a job as a sweep does; `overrides` are its own beside those of the shard."""

    def part(model):
        return data(model) if shard is None else shard.select(data(model), 2)

    if shard is not None:
        overrides |= {"data.shard": shard.index, "data.num_shards": shard.count}
    job = experiment.Job(
        model=net, data=part, attack=question, batch_size=2, save="none", inference=Inference(channels_last=False)
    )
    folder.mkdir(parents=True)
    return experiment.run(lambda: job, RunFolder(folder), {"job_number": number, "overrides": overrides, "seed": 0})


@pytest.mark.parametrize("changes", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_merged_shards_equal_the_undivided_run(tmp_path, changes):
    """Two questions, their shards run in any order: a row each, equally good, with the figures of the whole."""
    shards = [Shard(index, COUNT) for index in range(COUNT)]
    records = {}
    for number in range(2):
        run(tmp_path / "whole" / f"w{number}", number, attack(**changes))
        for shard in reversed(shards):
            name, given = (
                f"q{number}s{shard.index}",
                {"optim.lr": number / 4, "device": f"cuda:{shard.index}"},
            )
            records[name] = run(tmp_path / "split" / name, 5 - shard.index, attack(**changes), shard, **given)
        table = pl.read_parquet(tmp_path / "whole" / f"w{number}" / "samples.parquet")
        for shard in shards:
            assert_frame_equal(load_samples(tmp_path / "split" / f"q{number}s{shard.index}").collect(), table)
    frame = load_sweep(tmp_path / "split")
    assert frame["job"].to_list() == ["q0s0", "q1s0"]
    assert frame["status"].to_list() == ["finished"] * 2
    assert frame["optim.lr"].to_list() == [0.0, 0.25]
    assert "data.shard" not in frame.columns
    for number, row in enumerate(frame.iter_rows(named=True)):
        expected = asdict(read_record(tmp_path / "whole" / f"w{number}").metrics)
        assert 0 < expected["robust_accuracy"] < expected["clean_accuracy"] <= 1
        for name in METRICS.keys() - {"attack_seconds"}:
            assert row[name] == expected.get(name), name
        seconds = [records[f"q{number}s{index}"].metrics.attack_seconds for index in range(COUNT)]
        assert row["attack_seconds"] == pytest.approx(sum(seconds))
        passes = [records[f"q{number}s{index}"].metrics.forward_passes for index in range(COUNT)]
        assert row["forward_passes"] == sum(passes)
    assert frame["best"].to_list() == [True, True]
    each = load_sweep(tmp_path / "split", merge_shards=False)
    assert len(each) == 2 * COUNT
    assert sorted(each["data.shard"].unique()) == [0, 1, 2]


def shard(root, index, count=4, status="finished", samples=2, **fields):
    """A shard made by hand, in which the first samples are broken, `index` of them."""
    given = {"data.shard": index, **({} if count is None else {"data.num_shards": count})}
    fields = {"number": index, "data": f"hash {index}", "overrides": given, **fields}
    folder = make(root, f"s{index}", 0.5, status, **fields)
    if status == "finished":
        columns = ["target", "adversarial_prediction", "claimed", "forward_passes", "backward_passes", "steps"]
        columns += ["zero_gradients", "l0", "l1", "l2", "linf"]
        frame = pl.DataFrame({name: [1] * samples for name in columns})
        flags = {name: [False] * samples for name in ("undecided", "zero_at_start", "verified_8bit")}
        verified = [row < index for row in range(samples)]
        frame = frame.with_columns(label=0, clean_prediction=0, stopped=pl.lit("steps"), verified=pl.Series(verified))
        frame.with_columns(pl.Series(name, values) for name, values in flags.items()).write_parquet(
            folder / "samples.parquet"
        )
    return folder


def only_row(root):
    frame = load_sweep(root)
    assert len(frame) == 1
    return frame.row(0, named=True)


def test_shares_are_of_all_samples_and_not_the_mean_of_the_shards(tmp_path):
    sizes = [2, 3, 5, 7]
    for index, samples in enumerate(sizes):
        shard(tmp_path, index, samples=samples)
    row = only_row(tmp_path)
    held = np.array(sizes) - np.arange(4)
    assert row["robust_accuracy"] == held.sum() / sum(sizes) != np.mean(held / sizes)
    assert (row["attack_seconds"], row["forward_passes"]) == (6.0, 17)


def test_missing_shards_make_the_run_incomplete(tmp_path):
    """16 shards: 4 never started, 7 failed, 11 was killed, 2 runs; then everything but the running one is done."""
    list_jobs(tmp_path, {f"s{i}": {"data.shard": i, "data.num_shards": 16} for i in range(16)})
    lost, states = {4: "missing", 7: "failed", 11: "killed"}, {2: "running"}
    for index in range(16):
        if index not in lost:
            shard(tmp_path, index, 16, status=states.get(index, "finished"))
    shard(tmp_path, 7, 16, status="failed")
    shard(tmp_path, 11, 16, status="killed")
    row = only_row(tmp_path)
    assert (row["job"], row["status"], row["best"]) == ("s0", "incomplete", False)
    assert {row[name] for name in METRICS} == {None}
    assert row["error"] == (
        "3 of 16 shards are missing or failed: 4, 7, 11; 1 of 16 shards is running: 2; shard 7: lr=-1 must be [0, inf)"
    )
    with pytest.raises(ValueError, match="s3: 3 of 16 shards are missing or failed: 4, 7, 11"):
        load_samples(tmp_path / "s3")
    assert load_sweep(tmp_path, merge_shards=False)["status"].value_counts(sort=True)["count"].to_list() == [
        12,
        1,
        1,
        1,
        1,
    ]


def test_many_lost_shards_are_summarized(tmp_path):
    shard(tmp_path, 1, 16)
    message = "15 of 16 shards are missing or failed: 0, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 5 more"
    assert only_row(tmp_path)["error"] == message


def test_the_number_of_shards_may_be_only_in_the_record(tmp_path):
    about = {"name": "digits", "num_shards": 3}
    for index in range(2):
        file = make(tmp_path, f"s{index}", 0.5, overrides={"data.shard": index}) / "run.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "data": about}))
    assert only_row(tmp_path)["error"] == "1 of 3 shards is missing or failed: 2"


def test_shards_of_an_unknown_number_are_incomplete(tmp_path):
    shard(tmp_path, 0, count=None)
    shard(tmp_path, 1, count=None)
    assert only_row(tmp_path)["error"] == "no shard records data.num_shards"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "others"}, f"{APART} weights"),
        ({"batch_size": 7, "ball": {"norm": "l2"}}, f"{APART} ball, batch_size"),
        ({"versions": {"raiopt": "9"}}, f"{APART} raiopt"),
    ],
)
def test_shards_of_different_runs_are_not_merged(tmp_path, fields, message):
    for index in range(4):
        shard(tmp_path, index, **(fields if index == 2 else {}))
    row = only_row(tmp_path)
    assert (row["status"], row["error"], row["robust_accuracy"]) == ("incomplete", message, None)


def test_a_shard_with_two_folders_is_reported(tmp_path):
    for index in range(4):
        shard(tmp_path, index)
    make(tmp_path, "again", 0.5, overrides={"data.shard": 2, "data.num_shards": 4})
    assert only_row(tmp_path)["error"] == "shard 2 has several folders: again, s2"


def test_a_damaged_table_of_samples_is_reported(tmp_path):
    folders = [shard(tmp_path, index) for index in range(4)]
    (folders[1] / "samples.parquet").write_bytes(b"nothing")
    row = only_row(tmp_path)
    assert row["status"] == "incomplete"
    assert row["error"].startswith("a samples.parquet cannot be read: ")
    (folders[1] / "samples.parquet").unlink()
    assert only_row(tmp_path)["status"] == "incomplete"


def test_other_options_and_shard_counts_are_kept_apart(tmp_path):
    for index in range(2):
        shard(tmp_path / "two", index, 2)
        shard(tmp_path / "lr", index, 2, overrides={"data.shard": index, "data.num_shards": 2, "optim.lr": 1})
    root = tmp_path / "sweep"
    root.mkdir()
    for kind in ("two", "lr"):
        for index in range(2):
            (tmp_path / kind / f"s{index}").rename(root / f"{kind}{index}")
    make(root, "alone", 0.5, overrides={"data.shard": None})
    make(root, "beyond", status="failed", overrides={"data.shard": 2, "data.num_shards": 2})
    frame = load_sweep(root)
    assert dict(frame.select("job", "status").iter_rows()) == {
        "alone": "finished",
        "lr0": "finished",
        "two0": "finished",
        "beyond": "failed",
    }
    by_job = dict(frame.select("job", "best").iter_rows())
    assert by_job == {"alone": True, "lr0": True, "two0": True, "beyond": False}


def test_samples_of_a_job_without_shards(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no samples\.parquet: its job is not finished"):
        load_samples(make(tmp_path, "running", status="running"))
    with pytest.raises(FileNotFoundError, match="nowhere has no samples"):
        load_samples(tmp_path / "nowhere")
    folder = make(tmp_path, "done", 0.5)
    pl.DataFrame({"id": [1]}).write_parquet(folder / "samples.parquet")
    assert load_samples(str(folder)).collect()["id"].to_list() == [1]


def test_a_changed_list_of_jobs_groups_by_the_first_entry(tmp_path):
    """A shard that was run again with a default written out stays with its like."""
    list_jobs(tmp_path, {f"s{i}": {"data.shard": i, "data.num_shards": 2} for i in range(2)})
    shard(tmp_path, 0, 2)
    shard(tmp_path, 1, 2, overrides={"data.shard": 1, "data.num_shards": 2, "optim.lr": 0.1})
    assert only_row(tmp_path)["status"] == "finished"
    assert json.loads((tmp_path / "sweep.json").read_text())["jobs"].keys() == {"s0", "s1"}
