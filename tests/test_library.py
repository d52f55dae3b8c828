"""raiopt.attack: data in every form, and errors of model, data and settings at the start."""

import inspect
import logging
import math
from dataclasses import fields
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import raiopt
from raiopt.attacks import Attack
from raiopt.fast import Inference
from raiopt.optim import L2ProjectedOptim, LinfProjectedOptim
from raiopt.perturbations import PatchPerturbation, margin, random_places, targeted_dlr
from raiopt.sampling import uniform_like_linf_n_ball_
from tests.attacks.networks import small
from tests.attacks.parts import SHAPE, Linear, images

PGD = partial(LinfProjectedOptim, epsilon=1 / 64, lr=1 / 256)
attack = partial(raiopt.attack, optimizer=PGD, criterion=margin, steps=5, inference=Inference(channels_last=False))


def samples(n=20):
    x = images(n)
    labels = Linear()(x).argmax(1)
    labels[::7] = 1 - labels[::7]
    return x, labels


def test_a_pair_a_list_of_pairs_and_a_loader_are_one_data_set():
    x, labels = samples()
    records, kept = attack(Linear(), (x, labels), init=uniform_like_linf_n_ball_, return_images=True)
    assert records["id"].to_list() == list(range(20))
    assert 0 < records["verified"].sum() < 17
    parts = [(x[:7], labels[:7]), (x[7:7], labels[7:7]), [x[7:], labels[7:]]]
    loader = DataLoader(TensorDataset(x, labels), batch_size=6)
    for data in (parts, loader, iter(parts)):
        others, images = attack(Linear(), data, init=uniform_like_linf_n_ball_, return_images=True, batch_size=5)
        unlike = ["forward_passes", "backward_passes"]
        assert others.drop(unlike).equals(records.drop(unlike))
        assert torch.equal(images, kept)


def test_the_images_are_those_of_the_kept_perturbations():
    x, labels = samples()
    records, kept = attack(Linear(), (x, labels), return_images=True)
    assert kept.shape == x.shape
    assert ((kept >= 0) & (kept <= 1)).all()
    moved = (kept - x).abs().flatten(1).amax(1)
    assert_close(moved.double(), torch.tensor(records["linf"].fill_null(0.0).to_list(), dtype=torch.float64))
    attacked = records["verified"].is_not_null()
    assert attacked.sum() == 17
    predicted = torch.tensor(records["adversarial_prediction"].to_list()[1:7])
    assert Linear()(kept)[1:7].argmax(1).equal(predicted)
    assert torch.equal(kept[::7], x[::7])


def test_the_records_agree_with_a_closed_form():
    x = images(20)
    labels = Linear()(x).argmax(1)
    reach = float(Linear().weight.abs().sum()) / 64
    broken = Linear().score(x).abs() < reach
    assert attack(Linear(), (x, labels))["verified"].to_list() == broken.tolist()


def test_the_model_is_in_eval_mode_and_frozen_meanwhile_and_restored():
    net = nn.Sequential(*small(), nn.Dropout(0.5))
    net.train().requires_grad_(True)
    net[1].eval()
    net[0].weight.requires_grad_(False)
    modes, flags = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen = []

    def noted(logits, target):
        seen.append((any(m.training for m in net.modules()), any(p.requires_grad for p in net.parameters())))
        return F.cross_entropy(logits, target, reduction="none")

    x = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    records = raiopt.attack(
        net, (x, torch.zeros(4).long()), PGD, criterion=noted, steps=2, stop="never", attack_misclassified=True
    )
    assert records["forward_passes"].min() >= 1
    assert set(seen) == {(False, False)}
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())

    def failing(logits, target):
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        raiopt.attack(net, (x, torch.zeros(4).long()), PGD, criterion=failing)
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags


def test_a_folded_search_and_the_model_itself_agree():
    x, net = torch.rand(20, 3, 12, 12, generator=torch.Generator().manual_seed(0)), small()
    labels = net(x).argmax(1)
    one, other = (
        raiopt.attack(
            net, (x, labels), partial(L2ProjectedOptim, epsilon=0.1, lr=0.04), inference=Inference(fold=fold), steps=10
        )
        for fold in (True, False)
    )
    assert 0 < one["verified"].sum() < 20
    assert one["verified"].equals(other["verified"])
    assert torch.equal(net(x).argmax(1), labels)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"data": (images(2) * 255, [0, 1])}, TypeError, "must give pairs"),
        ({"data": (images(2) * 255, torch.ones(2).long())}, ValueError, r"values from .* pixels must lie in \[0, 1\]"),
        ({"data": (images(2) - 0.7, torch.ones(2).long())}, ValueError, r"pixels must lie in \[0, 1\]"),
        ({"data": (images(2) * math.nan, torch.ones(2).long())}, ValueError, "values from nan"),
        ({"data": (images(2), torch.tensor([0, 2]))}, ValueError, "labels from 0 to 2; they must lie between 0 and 1"),
        ({"data": (images(2), torch.tensor([-1, 1]))}, ValueError, "labels from -1 to 1"),
        (
            {"data": (images(2)[0], torch.tensor([0, 1]))},
            ValueError,
            r"floating images \(N, C, H, W\), got .*\(3, 4, 4\)",
        ),
        ({"data": (images(2).long(), torch.tensor([0, 1]))}, ValueError, "floating images .* got torch.int64"),
        ({"data": (images(2), torch.tensor([0, 1, 1]))}, ValueError, r"one integer label for each of 2 images.*\(3,\)"),
        ({"data": (images(2), torch.tensor([0.0, 1.0]))}, ValueError, "one integer label .* got torch.float32"),
        ({"data": (images(2), torch.tensor([True, False]))}, ValueError, "one integer label .* got torch.bool"),
        ({"data": images(2)}, TypeError, r"must give pairs \(images, labels\), not Tensor"),
        ({"data": []}, ValueError, "data has no images"),
        ({"data": (images(2)[:0], torch.zeros(0).long())}, ValueError, "data has no images"),
        (
            {"data": [samples(3), (images(2) * 2, torch.ones(2).long())]},
            ValueError,
            "data, after 3 samples, has values",
        ),
        ({"criterion": nn.CrossEntropyLoss()}, ValueError, r'criterion: it must .*reduction="none"'),
        ({"steps": -1}, ValueError, "steps=-1"),
        ({"optimizer": partial(LinfProjectedOptim, epsilon=-1, lr=1)}, ValueError, "optim: epsilon=-1"),
        ({"stepz": 3}, TypeError, "stepz is no argument of raiopt.attack. Did you mean steps?"),
        ({"stages": [{"steps": 3}]}, TypeError, r"stages=\[{'steps': 3}\] must be a mapping of names to arguments"),
        ({"stages": {1: {"steps": 3}}}, TypeError, "stages: 1: {'steps': 3} must be a name and a mapping of arguments"),
        ({"stages": {"a": ["steps=3"]}}, TypeError, r"stages: 'a': \['steps=3'\] must be a name and a mapping"),
        ({"stages": {"a": {"stepz": 3}}}, TypeError, "stages.a: stepz is no argument of raiopt.attack. Did you mean"),
        ({"model": lambda x: x.flatten(1) + torch.rand(1)}, ValueError, "not deterministic"),
        ({"model": lambda x: F.dropout(x.flatten(1), training=True)}, ValueError, "Is dropout on"),
        ({"model": lambda x: x.flatten(1).sum(1)}, ValueError, r"must return logits \(N, classes\)"),
        ({"model": lambda x: {"logits": x}}, TypeError, "must return a tensor of logits"),
    ],
)
def test_incompatible_arguments_are_an_error(change, error, message):
    arguments = {"model": Linear(), "data": samples(4), **change}
    with pytest.raises(error, match=message):
        attack(arguments.pop("model"), arguments.pop("data"), **arguments)


@pytest.mark.parametrize("size", [1, 3, 128])
def test_the_criterion_of_torch_fits_without_reduction(size):
    found = attack(Linear(), samples(6), criterion=nn.CrossEntropyLoss(reduction="none"), batch_size=size)
    assert found["verified"].sum() > 0


def test_probabilities_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "raiopt"):
        attack(nn.Sequential(Linear(), nn.Softmax(1)), samples(4))
    assert "The model returns probabilities" in caplog.text


def test_settings_and_parts_reach_the_attack():
    x, labels = samples()
    found = attack(
        Linear(),
        (x, labels),
        criterion=targeted_dlr_of_label,
        targeted=True,
        target="next",
        restarts=2,
        epsilons=[1 / 128, 1 / 16],
        init=sized,
        seed=3,
    )
    assert set(found["epsilon"].drop_nulls()) <= {1 / 128, 1 / 16}
    assert found["target"].drop_nulls().to_list() == (1 - labels)[found["target"].is_not_null().to_numpy()].tolist()
    patches = attack(Linear(), (x, labels), perturbation=placed, optimizer=partial(PGD, epsilon=1.0, lr=0.25))
    assert patches["verified"].sum() > 0


def targeted_dlr_of_label(logits, target, labels):
    return targeted_dlr(logits, target, labels)


def sized(rows, epsilon, generator):
    return uniform_like_linf_n_ball_(rows, epsilon, generator=generator)


def placed(data, generators):
    return PatchPerturbation(data, size=3, places=random_places(data.shape, 3, generators), shared=False)


def test_the_signature_lists_the_settings():
    shown = inspect.signature(raiopt.attack).parameters
    assert {field.name for field in fields(Attack)} <= shown.keys()
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())
    assert shown["restarts"].default == 1
    assert shown["steps"].default == 40


def test_the_global_generator_is_neither_read_nor_set():
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        found.append(attack(Linear(), samples(), init=uniform_like_linf_n_ball_, restarts=2))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert found[0].equals(found[1])


def test_a_plain_function_is_attacked_as_it_is():
    x, labels = samples()
    plain = Linear()
    assert attack(lambda z: plain(z), (x, labels)).equals(attack(plain, (x, labels)))
    assert x.shape[1:] == SHAPE


def test_stages_replace_arguments_of_the_call():
    x, labels = samples()
    losses = partial(F.cross_entropy, reduction="none")
    plan = {"short": {"steps": 1}, "long": {"criterion": losses, "restarts": 2, "init": uniform_like_linf_n_ball_}}
    records, kept = attack(Linear(), (x, labels), stages=plan, return_images=True)
    first = attack(Linear(), (x, labels), steps=1)
    left = records["stage"] == "long"
    assert records.filter(~left)["verified"].equals(first.filter(~left)["verified"])
    assert left.sum() == (~first["verified"]).sum()
    assert (records["verified"] | left).drop_nulls().all()
    broken = records.filter("verified")["id"].to_list()
    assert (Linear()(kept)[broken].argmax(1) != labels[broken]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"perturbation": PatchPerturbation}, "stages.b: perturbation is the same for all stages"),
        ({"steps": -1}, "stages.b: steps=-1 must be"),
        ({"stop": "late"}, "stages.b: stop='late' must be one of"),
        ({"optimizer": partial(LinfProjectedOptim, epsilon=0.5)}, "stages.b searches in Linf 0.5"),
    ],
)
def test_incompatible_stages_are_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        attack(Linear(), samples(), stages={"a": {}, "b": changes})


def test_without_gradients_around_it_the_records_are_the_same():
    x, labels = samples()
    with torch.no_grad():
        found = attack(Linear(), (x, labels))
    assert found.equals(attack(Linear(), (x, labels)))
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch\.inference_mode\(\) forbids"):
        attack(Linear(), (x, labels))


def test_losses_and_starts_of_the_library_are_accepted_as_parts():
    x, labels = samples()
    target = {"criterion": partial(targeted_dlr_of_label), "targeted": True, "target": "next"}
    assert attack(Linear(), (x, labels), init=torch.nn.init.zeros_).equals(attack(Linear(), (x, labels)))
    assert attack(Linear(), (x, labels), **target)["verified"].sum() > 0
