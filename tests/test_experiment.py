"""One job: devices, incompatible models and data, and the files that a second process finds."""

from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from raiopt.attacks import Attack, Engine
from raiopt.experiment import Job, choose_device, load, run
from raiopt.optim import LinfProjectedOptim
from raiopt.results.chunks import Chunks
from raiopt.results.folder import RunFolder
from raiopt.zoo import Classifier, ImageData
from tests import attack_functions as attacks

ATTACK = Attack(
    optimizer=partial(LinfProjectedOptim, epsilon=0.1, lr=0.1),
    perturbation=attacks.additive,
    init=lambda rows, generator: rows,
    criterion=attacks.cross_entropy,
    steps=1,
)


def data(_=None, classes=None, labels=(0, 1, 1)):
    images = torch.linspace(0, 1, 3 * 12).view(3, 3, 2, 2)
    ids = list(range(3))
    return ImageData("three", ids, ["a", "b", "c"], torch.tensor(labels), lambda i: images[i], num_classes=classes)


class Head(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.linear = nn.Linear(12, classes)
        nn.init.constant_(self.linear.bias, 0.1)

    def forward(self, x):
        return self.linear(x.flatten(1))


def job(net=None, data=data, **options):
    return Job(model=lambda: Classifier(net or Head(), name="net").frozen(), data=data, attack=ATTACK, **options)


def test_auto_finds_a_device_and_others_are_taken_by_name():
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:63", "mps:1", "cpu:1", "cuda:one"])
def test_a_device_that_this_machine_lacks_is_an_error(name):
    with pytest.raises(ValueError, match=f"device={name} does not exist: this machine has .* device. Use device=auto"):
        choose_device(name)


@pytest.mark.parametrize("name", ["tpu", ""])
def test_a_device_that_does_not_exist_is_an_error(name):
    with pytest.raises(ValueError, match="must be one of 'auto', 'cpu', 'cuda', 'mps'"):
        choose_device(name)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (job(nn.Identity()), r"The model net must return logits \(N, classes\), not shape \(1, 3, 2, 2\)"),
        (job(data=partial(data, classes=3)), "has 3 classes and the model 2"),
        (job(data=partial(data, labels=(0, 1, 2))), "c has the label 2; labels must lie between 0 and 1"),
    ],
)
def test_model_and_data_that_do_not_fit_are_an_error(made, message):
    with pytest.raises(ValueError, match=message):
        load(made, torch.device("cpu"))


def test_hash_of_the_data_does_not_depend_on_the_batch_size_but_on_every_pixel(tmp_path):
    def digest(name, **options):
        (tmp_path / name).mkdir()
        return run(lambda: job(**options), RunFolder(tmp_path / name), {}).hashes.data

    assert digest("a", batch_size=1) == digest("b", batch_size=2) == digest("c")
    changed = data()
    brighter = ImageData(**{**vars(changed), "read": lambda i: changed.read(i).clamp(max=0.99)})
    assert digest("d", data=lambda _: brighter) != digest("a2")


def test_the_global_random_generator_is_left_alone(tmp_path):
    before = torch.random.get_rng_state()
    net = Head()
    torch.random.set_rng_state(before)
    run(lambda: job(net), RunFolder(tmp_path), {})
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_job_in_which_nothing_is_attacked_is_complete(tmp_path):
    net = Head()
    with torch.no_grad():
        net.linear.bias.copy_(torch.tensor([100.0, -100.0]))
    record = run(lambda: job(net, data=partial(data, labels=(1, 1, 1))), RunFolder(tmp_path), {})
    assert record.metrics.clean_accuracy == record.metrics.robust_accuracy == 0
    assert record.metrics.forward_passes == 0
    assert len(pl.read_parquet(tmp_path / "trace.parquet")) == 0
    names = {path.name for path in tmp_path.iterdir()}
    tables = {"samples.parquet", "trace.parquet"}
    assert names == tables | {"gallery.png", "exhibits.safetensors", "perturbations.safetensors", "run.json"}


def test_a_kill_after_the_end_leaves_a_finished_run(tmp_path, monkeypatch):
    net, real = Head(), Chunks.discard

    def interrupted(chunks):
        if chunks.begun():
            raise KeyboardInterrupt
        real(chunks)

    monkeypatch.setattr(Chunks, "discard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(lambda: job(net), RunFolder(tmp_path), {})
    assert run(lambda: job(net), RunFolder(tmp_path), {}).skipped


def test_a_finished_run_about_other_weights_is_an_error(tmp_path):
    run(lambda: job(Head()), RunFolder(tmp_path), {})
    before = (tmp_path / "run.json").read_bytes()
    other = Head()
    nn.init.constant_(other.linear.bias, 0.2)
    with pytest.raises(FileExistsError, match="contains a finished run with other weights"):
        run(lambda: job(other), RunFolder(tmp_path), {})
    assert (tmp_path / "run.json").read_bytes() == before


def test_the_trace_holds_decided_samples_at_their_last_loss(tmp_path, monkeypatch):
    searches, real = [], Engine.run

    def noted(self, *arguments):
        for outcome in real(self, *arguments):
            searches.extend([] if outcome.result is None else [outcome.result.search])
            yield outcome

    monkeypatch.setattr(Engine, "run", noted)
    torch.manual_seed(0)
    net = Head()
    labels = net(data().image(0)[None]).argmax(1).repeat(3)
    steps = replace(ATTACK, steps=6, optimizer=partial(LinfProjectedOptim, epsilon=0.3, lr=0.1))
    made = replace(job(net, batch_size=2, data=partial(data, labels=labels.tolist())), attack=steps)
    run(lambda: made, RunFolder(tmp_path), {})
    gains = np.concatenate([search.gains.numpy() for search in searches]).astype(np.float64)
    fooled = np.concatenate([search.fooled_at.numpy() for search in searches])
    ends = np.concatenate([search.steps.numpy() for search in searches])
    assert 0 < ends.min() < 6
    for row, end in enumerate(ends):
        assert (gains[row, end:] == gains[row, end]).all()
        assert (fooled[row, end:] == fooled[row, end]).all()
    trace = pl.read_parquet(tmp_path / "trace.parquet")
    np.testing.assert_allclose(trace["loss_mean"], gains.mean(0))
    np.testing.assert_allclose(trace["loss_median"], np.median(gains, 0))
    np.testing.assert_allclose(trace["fooled_so_far"], np.logical_or.accumulate(fooled, 1).mean(0))
    assert (np.diff(trace["fooled_so_far"]) >= 0).all()
    assert trace["fooled_so_far"][-1] > 0
