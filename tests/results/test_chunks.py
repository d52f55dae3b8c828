"""A stopped run resumes after its finished chunks, with the results of an uninterrupted run."""

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file
from torch import nn

from raiopt import experiment
from raiopt.attacks import Attack, Engine
from raiopt.experiment import Job
from raiopt.fast import Inference
from raiopt.optim import LinfProjectedOptim
from raiopt.results import chunks, perturbation_store
from raiopt.results.folder import RunFolder
from raiopt.zoo import Classifier, ImageData
from tests import attack_functions as attacks

IMAGES = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
ABOUT = {"job_key": "a question"}


class Net(nn.Module):
    """Two classes, apart by the sum of a third of the values."""

    def __init__(self, offset=24.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 4)
        with torch.no_grad():
            self.conv.weight[0], self.conv.weight[1] = -1.0, torch.linspace(0.5, 1.5, 48).view(3, 4, 4)
            self.conv.bias[0], self.conv.bias[1] = 2 * offset, 0.0

    def forward(self, x):
        return self.conv(x).flatten(1)


def data(images=IMAGES, name="random"):
    def of_model(_):
        ids, names = list(range(len(images))), [f"image {i}" for i in range(len(images))]
        return ImageData(name, ids, names, None, lambda i: images[i])

    return of_model


def job(*, net=None, images=IMAGES, batch_size=3, save="all", channels_last=False, **changes):
    usual = {
        "optimizer": partial(LinfProjectedOptim, epsilon=0.05, lr=0.02),
        "perturbation": attacks.additive,
        "init": partial(attacks.uniform_linf, epsilon=0.05),
        "criterion": attacks.cross_entropy,
        "steps": 3,
    }
    return Job(
        model=lambda: Classifier(net or Net(), name="net").frozen(),
        data=data(images),
        attack=Attack(**{**usual, **changes}),
        batch_size=batch_size,
        save=save,
        inference=Inference(channels_last=channels_last),
    )


def universal(**changes):
    shared = partial(LinfProjectedOptim, epsilon=0.3, lr=0.1, param_ndim=None)
    return job(optimizer=shared, perturbation=attacks.universal, **changes)


def run(folder, make=job, **options):
    folder.mkdir(exist_ok=True)
    return experiment.run(lambda: make(**options), RunFolder(folder), ABOUT).as_json()


def load_perturbations(folder):
    """Returns the content of the files of stored perturbations."""
    return [load_file(path) for path in perturbation_store.PerturbationStore(folder).files]


def left(folder):
    """Returns all results of a run."""
    record = json.loads((folder / "run.json").read_text())
    figures = {name: value for name, value in record["metrics"].items() if name != "attack_seconds"}
    return (
        pl.read_parquet(folder / "samples.parquet"),
        pl.read_parquet(folder / "trace.parquet"),
        load_perturbations(folder),
        (
            figures,
            record["hashes"],
            (folder / "gallery.png").read_bytes(),
            (folder / "exhibits.safetensors").read_bytes(),
        ),
    )


def assert_same(folder, other):
    (samples, trace, stored, rest), (samples_2, trace_2, stored_2, rest_2) = left(folder), left(other)
    assert_frame_equal(samples, samples_2, check_exact=True)
    assert_frame_equal(trace, trace_2, check_exact=True)
    assert [part.keys() for part in stored] == [part.keys() for part in stored_2]
    for part, part_2 in zip(stored, stored_2, strict=True):
        assert all(torch.equal(tensor, part_2[name]) for name, tensor in part.items())
    assert rest == rest_2
    assert not (folder / "chunks").exists()


WRITERS = [(chunks, "write_record"), (chunks, "replace_file"), (perturbation_store, "replace_file")]
"""The functions that write the files of chunks, and those that are made from them."""


def stopping(monkeypatch, functions, at, *, after=False):
    """Lets call number `at` of these functions raise KeyboardInterrupt, before or after its work."""
    calls = []

    def stopped(real, *arguments, **settings):
        calls.append(real)
        number = len(calls)
        if number == at and not after:
            raise KeyboardInterrupt
        value = real(*arguments, **settings)
        if number == at:
            raise KeyboardInterrupt
        return value

    def stoppable(real):
        return lambda *arguments, **settings: stopped(real, *arguments, **settings)

    for place, name in functions:
        monkeypatch.setattr(place, name, stoppable(getattr(place, name)))


def interrupted(folder, functions, at, make=job, *, after=False, **options):
    with pytest.MonkeyPatch.context() as monkeypatch:
        stopping(monkeypatch, functions, at, after=after)
        with pytest.raises(KeyboardInterrupt):
            run(folder, make, **options)
    assert json.loads((folder / "run.json").read_text())["status"] == "killed"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    record = run(folder)
    assert record["continued"] is None
    assert 0 < record["metrics"]["verified"] < 8
    return folder


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_a_run_resumes_after_its_finished_batches(tmp_path, undisturbed, batches):
    folder = tmp_path / "run"
    interrupted(folder, [(Engine, "run")], batches + 1)
    record = run(folder)
    assert_same(folder, undisturbed)
    if not batches:
        assert record["continued"] is None
        return
    samples = pl.read_parquet(folder / "samples.parquet").head(3 * batches)
    passes = samples.select(pl.col("forward_passes") + pl.col("backward_passes")).sum().item()
    assert record["continued"] == {"batches": batches, "samples": 3 * batches, "passes": passes}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 19))
def test_a_run_resumes_wherever_its_writing_stopped(tmp_path, undisturbed, at, after):
    """There are 18 files: the record that the chunks begin with, 5 for each of 3 batches, samples, perturbations."""
    folder = tmp_path / "run"
    interrupted(folder, WRITERS, at, after=after)
    run(folder)
    assert_same(folder, undisturbed)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 8))
def test_a_run_of_one_batch_resumes_wherever_its_writing_stopped(tmp_path, at, after):
    run(tmp_path / "undisturbed", batch_size=8)
    interrupted(tmp_path / "run", WRITERS, at, after=after, batch_size=8)
    assert (run(tmp_path / "run", batch_size=8)["continued"] is not None) == ((at, after) > (6, False))
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.parametrize("name", ["trace_frame", "metrics", "draw_gallery"])
def test_a_run_stopped_while_merging_chunks_attacks_nothing_again(tmp_path, monkeypatch, undisturbed, name):
    folder = tmp_path / "run"
    interrupted(folder, [(experiment, name)], 1)
    monkeypatch.setattr(Engine, "run", lambda *_: pytest.fail("attacked again"))
    record = run(folder)
    assert_same(folder, undisturbed)
    assert record["continued"]["samples"] == 8


def test_no_perturbation_is_lost_when_a_kill_comes_while_those_of_the_chunks_are_removed(tmp_path, undisturbed):
    folder = tmp_path / "run"

    def half(path, **_):
        if path.exists():
            next(path.glob("*.safetensors")).unlink()
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("raiopt.results.perturbation_store.shutil.rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    assert len(list((folder / "perturbations").iterdir())) == 2
    run(folder)
    assert_same(folder, undisturbed)


def test_failed_resumptions_lose_nothing(tmp_path, undisturbed):
    folder = tmp_path / "run"
    interrupted(folder, [(Engine, "run")], 3)
    interrupted(folder, [(experiment, "load")], 1)
    with pytest.raises(ValueError, match="device=cuda:63 does not exist"):
        experiment.run(lambda: replace(job(), device="cuda:63"), RunFolder(folder), ABOUT)
    assert run(folder)["continued"]["batches"] == 2
    assert_same(folder, undisturbed)


@pytest.mark.parametrize("broken", [None, b"", b'{"data": "0', b"[]"])
def test_a_chunk_without_its_last_file_is_done_again(tmp_path, undisturbed, broken):
    folder = tmp_path / "run"
    interrupted(folder, [(Engine, "run")], 3)
    last = folder / "chunks" / "000001.json"
    last.unlink() if broken is None else last.write_bytes(broken)
    (folder / "chunks" / "000001.samples.parquet").write_bytes(b"half")
    (folder / "perturbations" / "000001.safetensors").write_bytes(b"half")
    assert run(folder)["continued"]["batches"] == 1
    assert_same(folder, undisturbed)


CHANGED = IMAGES.clone()
CHANGED[4] = 1 - CHANGED[4]


@pytest.mark.parametrize("images", [CHANGED, IMAGES[:7], torch.cat([IMAGES, IMAGES[:1]])], ids=["one", "fewer", "more"])
def test_other_data_are_refused_and_nothing_is_lost(tmp_path, undisturbed, images):
    folder = tmp_path / "run"
    interrupted(folder, [(Engine, "run")], 3)
    before = {path: path.read_bytes() for path in (folder / "chunks").iterdir()}
    with pytest.raises(
        FileExistsError, match=r"a part of a run with other data. Nothing was overwritten: give another"
    ):
        run(folder, images=images)
    assert before == {path: path.read_bytes() for path in (folder / "chunks").iterdir()}
    run(folder)
    assert_same(folder, undisturbed)


@pytest.mark.parametrize("place", [([(Engine, "run")], 3), ([(experiment, "draw_gallery")], 1)], ids=["attack", "end"])
@pytest.mark.parametrize("options", [{"net": Net(23.5)}, {"batch_size": 2}], ids=["weights", "batch_size"])
def test_other_options_start_a_new_run(tmp_path, options, place):
    interrupted(tmp_path / "run", *place)
    assert run(tmp_path / "run", **options)["continued"] is None
    run(tmp_path / "other", **options)
    assert_same(tmp_path / "run", tmp_path / "other")


def test_data_whose_name_has_control_characters_are_still_the_same(tmp_path):
    def make():
        return replace(job(), data=data(name="ran\x1bdom"))

    interrupted(tmp_path / "run", [(Engine, "run")], 3, make)
    assert run(tmp_path / "run", make)["continued"]["batches"] == 2


def test_the_model_runs_as_it_did_before(tmp_path, monkeypatch):
    times = {"value": (1.0, 0.1)}
    monkeypatch.setattr("raiopt.fast.view.seconds", lambda *_: times["value"])
    interrupted(tmp_path / "run", [(Engine, "run")], 2, channels_last=None)
    times["value"] = (0.1, 1.0)
    assert run(tmp_path / "run", channels_last=None)["inference"]["channels_last"] is True
    assert run(tmp_path / "other", channels_last=None)["inference"]["channels_last"] is False


def test_shared_perturbations_are_stored_by_batch_in_one_file(tmp_path):
    record = run(tmp_path / "run", universal)
    stored = load_file(tmp_path / "run" / "perturbations.safetensors")
    assert stored["batch"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert stored["parameter"].shape == (3, 3, 4, 4)
    made = (IMAGES[stored["ids"]] + stored["parameter"][stored["batch"]]).clamp(0, 1) - IMAGES[stored["ids"]]
    assert torch.equal(made, stored["delta"])
    assert len({tuple(row.flatten().tolist()) for row in stored["parameter"]}) == 3
    assert record["coupled"]
    interrupted(tmp_path / "again", [(Engine, "run")], 3, universal)
    run(tmp_path / "again", universal)
    assert_same(tmp_path / "again", tmp_path / "run")


@pytest.mark.parametrize("make", [job, universal])
def test_large_perturbations_stay_in_a_file_a_chunk(tmp_path, monkeypatch, make):
    run(tmp_path / "one", make)
    monkeypatch.setattr(perturbation_store, "MAX_MERGED_BYTES", 1000)
    run(tmp_path / "many", make)
    assert not (tmp_path / "many" / "perturbations.safetensors").exists()
    assert sorted(path.name for path in (tmp_path / "many" / "perturbations").iterdir()) == [
        f"{number:06}.safetensors" for number in range(3)
    ]
    (whole,), parts = load_perturbations(tmp_path / "one"), load_perturbations(tmp_path / "many")
    for name in ("ids", "delta"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
    if make is universal:
        rows = torch.cat([part["parameter"][part["batch"]] for part in parts])
        assert torch.equal(rows, whole["parameter"][whole["batch"]])


def test_save_none_stores_no_perturbations(tmp_path):
    run(tmp_path / "none", save="none")
    assert load_perturbations(tmp_path / "none") == []
    assert {path.name for path in (tmp_path / "none").iterdir()} == {
        "exhibits.safetensors",
        "gallery.png",
        "run.json",
        "samples.parquet",
        "trace.parquet",
    }
    run(tmp_path / "fooled", save="fooled")
    (stored,) = load_perturbations(tmp_path / "fooled")
    broken = pl.read_parquet(tmp_path / "fooled" / "samples.parquet").filter("verified")
    assert stored["ids"].tolist() == broken["id"].to_list() != []


def test_nothing_of_a_batch_is_kept_while_the_next_one_runs(tmp_path, monkeypatch):
    seen, real = [], Engine.run

    def watched(self, *arguments):
        gc.collect()
        assert [about() for about in seen] == [None] * len(seen)
        for outcome in real(self, *arguments):
            tensors = (outcome.result.delta, outcome.result.search.gains, outcome.images)
            seen.extend(map(weakref.ref, tensors))
            del tensors
            yield outcome

    monkeypatch.setattr(Engine, "run", watched)
    run(tmp_path / "run", batch_size=2)
    assert len(seen) == 12


OWN = '''
import os, signal
from pathlib import Path
import torch
from torch import nn

class Data:
    """Kills its process when the third batch is read and the chunks of two are there."""
    def __init__(self):
        self.x = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        if i == 6 and "KILLED" in os.environ and list(Path().glob("outputs/a/*/chunks/000001.json")):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.x[i], int(self.x[i].sum() > 24)

def net():
    torch.manual_seed(0)
    layer = nn.Linear(48, 2)
    with torch.no_grad():
        layer.weight[0], layer.weight[1] = -1, 1
        layer.bias.copy_(torch.tensor([48.0, 0.0]))
    return nn.Sequential(nn.Flatten(), layer)
'''


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal")
def test_the_command_resumes_after_a_kill(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    words = ["model=python", "model.factory=own:net", "data=python", "data.factory=own:Data", "batch_size=3"]
    words += ["threads=1", "solver.steps=3", "optim.epsilon=0.05", "init=uniform_linf", "save=all"]

    def command(name, **environment):
        return subprocess.run(
            [sys.executable, "-m", "raiopt", *words, f"name={name}"],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )

    assert command("a", KILLED="1").returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "outputs" / "a").iterdir()
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    done = command("a")
    assert done.returncode == 0, done.stderr
    continued = json.loads((folder / "run.json").read_text())["continued"]
    assert (continued["batches"], continued["samples"]) == (2, 6)
    assert f"continued: 6 samples finished before, {continued['passes']} passes saved" in done.stdout
    done = command("b")
    assert "continued" not in done.stdout
    (other,) = (tmp_path / "outputs" / "b").iterdir()
    assert_same(folder, other)
