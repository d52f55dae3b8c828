"""The cache shared by jobs of one process: it changes no result, and its size is bounded."""

import gc
import hashlib
import json
import logging
import weakref
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raiopt import experiment
from raiopt.attacks import Attack
from raiopt.experiment import Job
from raiopt.fast import Inference, ModelView, memory
from raiopt.fast.memory import MAX_KEPT_ENTRIES, Memory
from raiopt.optim import L2ProjectedOptim, LinfProjectedOptim
from raiopt.results.chunks import Chunks
from raiopt.results.folder import RunFolder
from raiopt.zoo import Classifier, ImageData, digits, load_model
from tests import attack_functions as attacks

PGD = Attack(
    optimizer=partial(LinfProjectedOptim, epsilon=0.1, lr=0.05),
    perturbation=attacks.additive,
    init=partial(attacks.uniform_linf, epsilon=0.1),
    criterion=attacks.cross_entropy,
    steps=2,
)
USUAL = Job(
    model=lambda: load_model("digits_robust"),
    data=lambda model: digits(limit=5),
    attack=PGD,
    device="cpu",
    batch_size=3,
    inference=Inference(channels_last=False),
)
IMAGE = 3 * 4 * 4 * 4
"""Bytes of one image of `data`."""


def small(classes=2, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, classes))
    return Classifier(net, name="small", mean=0.5, std=0.5).frozen()


def data(count=5, read=None, labels=True):
    images = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    known = torch.arange(count) % 2 if labels else None
    names = [f"image {i}" for i in range(count)]
    return ImageData("random", list(range(count)), names, known, read or (lambda i: images[i]))


def counted(images):
    """Returns data whose reads are counted, and the list of what was read."""
    numbers = []

    def read(number):
        numbers.append(number)
        return images[number]

    return data(len(images), read), numbers


def left(folder):
    """Returns all results of a run except for times."""
    record = json.loads((folder / "run.json").read_text())
    del record["started"], record["seconds"], record["metrics"]["attack_seconds"]
    return record, {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


def run(folder, job, kept=None):
    folder.mkdir(parents=True, exist_ok=True)
    return experiment.run(lambda: job, RunFolder(folder), {"job_key": "a question"}, kept)


def test_jobs_in_one_process_write_the_same_results_as_in_separate_ones(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "raiopt")
    l2 = replace(PGD, optimizer=partial(L2ProjectedOptim, epsilon=1.0, lr=0.5))
    standard = replace(USUAL, model=lambda: load_model("digits_standard"))
    jobs = [
        USUAL,
        replace(USUAL, attack=l2),
        replace(USUAL, batch_size=2),
        standard,
        replace(USUAL, data=lambda model: digits(limit=4), save="all"),
        replace(USUAL, inference=Inference(channels_last=True)),
        replace(USUAL, inference=Inference(fold=False, channels_last=False)),
        replace(standard, attack=l2),
        replace(USUAL, attack=replace(PGD, seed=1)),
    ]
    prepared, real = [], ModelView.prepare
    monkeypatch.setattr(ModelView, "prepare", lambda *words: prepared.append(words) or real(*words))
    kept, warm = Memory(), []
    for number, job in enumerate(jobs):
        caplog.clear()
        run(tmp_path / f"warm {number}", job, kept)
        warm = caplog.messages
        caplog.clear()
        run(tmp_path / f"own {number}", job)
        assert warm == caplog.messages
        assert left(tmp_path / f"warm {number}") == left(tmp_path / f"own {number}")
    assert len(prepared) < 2 * len(jobs) - 1
    assert any("batch norms are computed inside" in message for message in warm)


def test_a_second_job_reads_hashes_and_prepares_nothing(tmp_path, monkeypatch):
    images, numbers = counted(torch.rand(5, 3, 4, 4))
    model, kept = small(), Memory()
    job = replace(USUAL, model=lambda: model, data=lambda _: images)
    first = run(tmp_path / "first", job, kept)
    monkeypatch.setattr(Classifier, "weights_hash", lambda _: pytest.fail("hashed again"))
    monkeypatch.setattr(ModelView, "prepare", lambda *_: pytest.fail("prepared again"))
    monkeypatch.setattr("raiopt.fast.memory.hashlib.sha256", lambda *_: NoDigest())
    numbers.clear()
    assert run(tmp_path / "second", job, kept).hashes == first.hashes
    assert run(tmp_path / "first", job, kept).skipped
    assert numbers == []


class NoDigest:
    def copy(self):
        pytest.fail("hashed again")


def test_a_modified_model_is_prepared_again():
    model, kept, images = small(), Memory(), data().image(0)[None]
    net: Any = model.net

    def known():
        return kept.weights_hash(model), kept.view(model, Inference(channels_last=False), images, "first", None)

    hashes, views = zip(*[known() for _ in range(2)], strict=True)
    assert hashes[0] == hashes[1] == model.weights_hash()
    assert views[0] is views[1]
    for change in (
        lambda: net[3].weight.mul_(2),
        lambda: net[1].running_mean.add_(1),
        lambda: setattr(net[3].bias, "data", net[3].bias + 1),
        lambda: setattr(net[0], "weight", nn.Parameter(net[0].weight + 1, requires_grad=False)),
    ):
        before, (_, view) = model.weights_hash(), known()
        with torch.no_grad():
            change()
        found, fresh = known()
        assert before != found == model.weights_hash()
        assert fresh is not view
        torch.testing.assert_close(fresh.fast(images), model(images))


def test_a_view_is_cached_by_options_and_first_batch():
    model, kept, images = small(), Memory(), data(3).image(0).expand(2, -1, -1, -1)
    usual = {"options": Inference(channels_last=False), "images": images, "first": "a", "known": None}
    view = kept.view(model, **usual)
    assert kept.view(model, **usual) is view
    assert kept.view(small(), **usual) is not view
    for name, value in {
        "options": Inference(channels_last=False, fold=False),
        "images": images[:1],
        "first": "b",
        "known": {"fold": False},
    }.items():
        assert kept.view(model, **{**usual, name: value}) is not view
        assert kept.view(model, **usual) is view


def test_a_failed_preparation_is_not_cached(monkeypatch):
    model, kept = small(), Memory()
    images = data().image(0)[None]
    filters = logging.getLogger("raiopt").filters.copy()
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "forward", lambda self, x: torch.rand(len(x), 2))
        with pytest.raises(ValueError, match="not deterministic"):
            kept.view(model, Inference(), images, "first", None)
    assert logging.getLogger("raiopt").filters == filters
    assert kept.view(model, Inference(channels_last=False), images, "first", None).about["fold"]


def expected_hash(samples):
    """Returns the hash of a data set as its definition says."""
    digest = hashlib.sha256()
    for position, name in enumerate(samples.names):
        label = "" if samples.labels is None else samples.labels[position].item()
        digest.update(f"{name} {label}\n".encode() + samples.image(position).numpy().tobytes())
    return digest.hexdigest()


@given(
    st.lists(st.sampled_from([torch.float32, torch.float64]), min_size=1, max_size=7),
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 7)), min_size=1, max_size=4),
    st.integers(0, 12),
    st.booleans(),
)
def test_batches_and_hashes_do_not_depend_on_the_cache(types, passes, room, labels):
    images = data(len(types)).read
    samples = data(len(types), lambda number: images(number).to(types[number]), labels)
    kept = Memory(capacity_bytes=room * IMAGE)
    for size, stop in passes:
        for number, ((batch, found), own) in enumerate(
            zip(kept.data(samples).batches(size), samples.batches(size), strict=True)
        ):
            assert batch.ids == own.ids
            assert batch.names == own.names
            assert torch.equal(batch.images, own.images)
            assert found == expected_hash(samples.select(indices=list(range(number * size + len(own.ids)))))
            if number == stop:
                break
    assert kept.data(samples).hash(2) == expected_hash(samples)


def test_images_are_cached_up_to_the_memory_limit():
    samples, numbers = counted(torch.rand(5, 3, 4, 4))
    kept = Memory(capacity_bytes=3 * IMAGE)
    kept.data(samples).hash(2)
    numbers.clear()
    kept.data(samples).hash(2)
    assert numbers == [3, 4]
    other, read = counted(torch.rand(2, 3, 4, 4))
    for _ in range(2):
        kept.data(other).hash(2)
    assert read == [0, 1]
    numbers.clear()
    kept.data(samples).hash(2)
    assert numbers == [0, 1, 2, 3, 4]


def test_the_hash_belongs_to_the_images_read_last():
    images = torch.rand(4, 3, 4, 4)
    samples, _ = counted(images)
    kept = Memory(capacity_bytes=2 * IMAGE)
    kept.data(samples).hash(2)
    images[3] = 1 - images[3]
    assert kept.data(samples).hash(2) == expected_hash(samples)
    before = images.clone()
    images[0] = 1 - images[0]
    images[3] = before[2]
    (first, _), (second, found) = kept.data(samples).batches(2)
    assert torch.equal(torch.cat([first.images, second.images]), torch.cat([before[:3], before[2:3]]))
    images.copy_(torch.cat([first.images, second.images]))
    assert found == expected_hash(samples)


def test_parts_of_data_are_different_data():
    samples, kept = data(5), Memory()
    parts = [samples, samples.select(limit=3), samples.select(indices="::-1"), replace(samples, labels=None)]
    parts += [replace(samples, names=[*"abcde"])]
    found = [kept.data(part).hash(2) for part in parts]
    assert found == [expected_hash(part) for part in parts]
    assert len(set(found)) == len(parts)
    assert kept.data(samples.select(limit=3)) is kept.data(samples.select(limit=3))


def test_only_the_last_few_models_and_data_are_kept():
    kept, alive = Memory(), []

    def asked(model, samples):
        kept.view(model, Inference(channels_last=False), samples.image(0)[None], "first", None)
        kept.weights_hash(model)
        kept.classes(model, samples)
        kept.data(samples)
        alive.append((weakref.ref(model), weakref.ref(samples)))

    for seed in range(MAX_KEPT_ENTRIES + 2):
        asked(small(seed=seed), data())
    gc.collect()
    assert [(model() is not None, samples() is not None) for model, samples in alive] == [
        *[(False, False)] * 2,
        *[(True, True)] * MAX_KEPT_ENTRIES,
    ]


def test_the_least_recently_used_entry_is_evicted():
    kept = {}
    for key in [*range(MAX_KEPT_ENTRIES), 0, MAX_KEPT_ENTRIES]:
        assert memory._cached(kept, key, lambda key=key: str(key)) == str(key)
    assert list(kept) == [2, 3, 0, MAX_KEPT_ENTRIES]


def test_hashes_are_those_that_a_run_records(tmp_path):
    record, kept = run(tmp_path / "run", USUAL), Memory()
    for job in (USUAL, replace(USUAL, batch_size=1)):
        assert experiment.hashes(job) == experiment.hashes(job, kept) == asdict(record.hashes)
    assert experiment.hashes(replace(USUAL, data=lambda model: digits(limit=4)), kept) != asdict(record.hashes)


def interrupted(_):
    raise KeyboardInterrupt


def test_a_killed_job_resumes_in_a_process_with_cached_model_and_data(tmp_path, monkeypatch):
    kept = Memory()
    run(tmp_path / "own", USUAL)
    run(tmp_path / "before", USUAL, kept)
    with monkeypatch.context() as patch:
        patch.setattr(Chunks, "merge_perturbations", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", USUAL, kept)
    assert run(tmp_path / "run", USUAL, kept).continued.samples == 5
    assert left(tmp_path / "run")[1] == left(tmp_path / "own")[1]
    other = load_model("digits_standard")
    with pytest.raises(FileExistsError, match="with other weights"):
        run(tmp_path / "run", replace(USUAL, model=lambda: other), kept)
