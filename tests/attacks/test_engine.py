"""The attack on a data set: verdicts depend on each sample alone, not on other samples or the batch size."""

import logging
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Adam
from torch.testing import assert_close

from raiopt.attacks import Engine
from raiopt.fast import ModelView
from raiopt.optim import L2ProjectedOptim, LinfProjectedOptim, SignedGradientOptim
from raiopt.results.samples import samples_frame
from raiopt.zoo import load_data, load_model
from tests import attack_functions as attacks
from tests.attacks.parts import SHAPE, Classes, Counting, Linear, images, net, question, random_start, run, table, tried

WEAK = partial(LinfProjectedOptim, epsilon=1 / 64, lr=1 / 256)


def shown(x, labels, attack, model=None, **options):
    """Returns the records, and the perturbed images in the order of the ids."""
    outcomes = run(x, labels, attack, model, **options)
    records = pl.concat([samples_frame(outcome) for outcome in outcomes])
    kept = torch.cat([outcome.images.clone() for outcome in outcomes])
    deltas = [outcome.result.delta for outcome in outcomes if outcome.result is not None]
    if deltas:
        kept[torch.cat([outcome.attacked for outcome in outcomes])] += torch.cat(deltas)
    return records.sort("id"), kept[np.argsort(records["id"])]


def labels_of(x, wrong=3):
    """Returns the model's predictions, every `wrong`-th of them false."""
    labels = Linear()(x).argmax(1)
    labels[::wrong] = 1 - labels[::wrong]
    return labels


@pytest.mark.parametrize(
    "change",
    [{}, {"restarts": 3}, {"epsilons": [1 / 256, 1 / 128, 1 / 64]}, {"stop": "never", "attack_misclassified": True}],
)
@given(data=st.data())
def test_order_batch_size_and_other_samples_change_nothing(change, data):
    n = 12
    x, attack = images(n, seed=1), question(optimizer=WEAK, init=random_start, **change)
    labels = labels_of(x)
    records, kept = shown(x, labels, attack)
    assert 0 < records["verified"].sum() < n
    ids = data.draw(st.permutations(range(n)))[: data.draw(st.integers(1, n))]
    size = data.draw(st.integers(1, n + 2))
    others, perturbed = shown(x[ids], labels[ids], attack, ids=ids, batch_size=size)
    assert torch.equal(perturbed, kept[sorted(ids)])
    unlike = (
        ["forward_passes", "backward_passes"] if attack.stop == "fooled" else []
    )  # decided rows that wait still count passes
    assert others.drop(unlike).equals(records[sorted(ids)].drop(unlike))


@pytest.mark.parametrize("stop", ["fooled", "never"])
@pytest.mark.parametrize("inner", [SGD, partial(SGD, momentum=0.9), Adam])
def test_order_and_batches_change_nothing_beyond_rounding(inner, stop):
    x, model = images(24, seed=3, spread=0.4), net().float()
    optimizer = partial(L2ProjectedOptim, InnerOpt=inner, epsilon=0.7, lr=0.05)
    init = partial(attacks.uniform_l2, epsilon=0.3)
    attack = question(optimizer=optimizer, init=init, criterion=attacks.cross_entropy, stop=stop)
    labels = model(x).argmax(1)
    records, kept = shown(x, labels, attack, model)
    assert 0 < records["verified"].sum() < 24
    ids = torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()
    for size in (1, 5, 24):
        others, perturbed = shown(x[ids], labels[ids], attack, model, ids=ids, batch_size=size)
        assert others["verified"].equals(records["verified"])
        assert others["first_fooled_step"].equals(records["first_fooled_step"])
        assert_close(perturbed, kept, rtol=1e-4, atol=1e-5)


def test_a_robust_network_judges_its_samples_alike_in_every_batch():
    x, labels = load_data("digits")
    x, labels, model = x[:24], labels[:24], load_model("digits_robust").eval().requires_grad_(False)
    attack = question(
        optimizer=partial(LinfProjectedOptim, epsilon=0.2, lr=0.08),
        init=partial(attacks.uniform_linf, epsilon=0.2),
        criterion=attacks.cross_entropy,
        restarts=2,
        steps=4,
    )
    records = table(x, labels, attack, model)
    assert 0 < records["verified"].sum() < 24
    ids = list(range(23, -1, -1))
    others = table(x[ids], labels[ids], attack, model, ids=ids, batch_size=14)
    assert others["verified"].equals(records["verified"])
    assert others["clean_prediction"].equals(records["clean_prediction"])


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("targeted", [False, True])
def test_stopping_early_breaks_the_same_samples_at_the_same_step(restarts, targeted):
    x, model = images(30, seed=3, spread=0.4), net().float()
    labels = model(x).argmax(1)
    settings = {"targeted": True, "target": ["next", 3]} if targeted else {}
    make = partial(
        question,
        optimizer=partial(L2ProjectedOptim, epsilon=0.7, lr=0.1),
        init=partial(attacks.uniform_l2, epsilon=0.2),
        criterion=attacks.cross_entropy,
        restarts=restarts,
        steps=10,
        **settings,
    )
    early, late = (table(x, labels, make(stop=stop), model) for stop in ("fooled", "never"))
    assert len(early["first_fooled_step"].drop_nulls().unique()) > 2
    assert early["first_fooled_step"].equals(late["first_fooled_step"])
    won = early["first_fooled_step"].is_not_null()
    for frame in (early.filter(won), late.filter(won)) if targeted else ():
        assert frame["adversarial_prediction"].equals(frame["target"], null_equal=False)
    assert early.filter(won)["verified"].all()
    assert late.filter(won)["verified"].all()
    if not targeted:
        assert early["verified"].equals(late["verified"])
    assert early["backward_passes"].sum() < late["backward_passes"].sum()


def test_only_samples_that_are_predicted_right_are_attacked():
    x, model = images(), Linear()
    labels = labels_of(x, wrong=4)
    (outcome,) = run(x, labels)
    assert outcome.attacked.tolist() == [False, True, True, True, False, True]
    assert len(outcome.result.delta) == 4
    records = table(x, labels)
    assert records["stopped"].to_list()[::4] == ["misclassified"] * 2
    assert records["verified"].to_list()[::4] == [None] * 2
    assert run(x[:1], labels[:1])[0].result is None
    every = table(x, labels, question(attack_misclassified=True, stop="never"))
    assert every["verified"].to_list()[::4] == [True] * 2
    assert every["first_fooled_step"].to_list()[::4] == [0] * 2
    assert every["forward_passes"].to_list() == [6] * 6
    assert every["verified"][1:4].equals(records["verified"][1:4])
    assert model(x).argmax(1).equal(outcome.clean_prediction)


def test_without_labels_the_prediction_is_the_label():
    x = images()
    (outcome,) = run(x)
    assert outcome.labels.equal(Linear()(x).argmax(1))
    assert outcome.attacked.all()


def test_without_steps_the_start_is_evaluated():
    x = images(12)
    zero = table(x, attack=question(steps=0))
    assert zero["verified"].to_list() == [False] * 12
    assert zero["forward_passes"].to_list() == [1] * 12
    assert zero["backward_passes"].to_list() == [0] * 12
    found = table(x, attack=question(steps=0, init=random_start, restarts=4))
    assert max(found["linf"]) > 0
    assert 0 < found["verified"].sum() < 12


@pytest.mark.parametrize("rule", ["next", "least_likely", 3])
def test_targets(rule):
    x = images(8, seed=4)
    logits = Classes()(x)
    labels = logits.argmax(1)
    optimizer = partial(LinfProjectedOptim, epsilon=0.25, lr=0.03)
    attack = question(optimizer=optimizer, targeted=True, target=rule, steps=20, criterion=attacks.cross_entropy)
    (outcome,) = run(x, labels, attack, Classes())
    goals = {"next": (labels + 1) % 5, "least_likely": logits.argmin(1), 3: torch.full_like(labels, 3)}[rule]
    assert torch.equal(outcome.attacked, labels != goals)
    assert_close(outcome.clean_loss, torch.nn.functional.cross_entropy(logits, goals, reduction="none"))
    found, goals = outcome.result.search, goals[outcome.attacked]
    assert found.goal.equal(goals)
    assert found.fooled.any()
    assert outcome.result.verification.prediction[found.fooled].equal(goals[found.fooled])
    assert (found.loss <= -found.gains[:, 0]).all()
    stopped = table(x, labels, attack, Classes())["stopped"].to_list()
    assert [reason == "is_target" for reason in stopped] == (~outcome.attacked).tolist()


def test_reaching_one_of_several_targets_is_a_success():
    x = images(12, seed=4)
    labels = Classes()(x).argmax(1)
    optimizer = partial(LinfProjectedOptim, epsilon=0.02, lr=0.005)
    make = partial(question, optimizer=optimizer, targeted=True, steps=10, criterion=attacks.cross_entropy)
    several = table(x, labels, make(target=[0, 1, 2, 3, 4]), Classes())
    each = {target: table(x, labels, make(target=target), Classes()) for target in range(5)}
    reached = {row: {t for t, one in each.items() if one["first_fooled_step"][row] is not None} for row in range(12)}
    assert {len(targets) > 0 for targets in reached.values()} == {True, False}
    for row, targets in reached.items():
        assert (several["first_fooled_step"][row] is not None) == bool(targets)
        assert several["target"][row] != labels[row]
        assert several["target"][row] in targets or not targets


@pytest.mark.parametrize("stop", ["fooled", "never"])
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("epsilons", [None, [1 / 256, 1 / 64]])
@pytest.mark.parametrize("size", [5, 64])
def test_recorded_passes_agree_with_calls_of_the_model(stop, restarts, epsilons, size):
    x, model = images(20), Counting(Linear())
    attack = question(optimizer=WEAK, init=random_start, stop=stop, restarts=restarts, epsilons=epsilons)
    records = table(x, labels_of(x), attack, fast=model, batch_size=size)
    assert (records["forward_passes"].sum(), records["backward_passes"].sum()) == model.total
    assert max(model.sizes) <= max(size, restarts)
    assert len(records["forward_passes"].drop_nulls()) == 13


class Sick(Linear):
    """Returns NaN where the first pixel is above a bound."""

    def forward(self, x):
        return torch.where((x[:, 0, 0, 0] > 0.53)[:, None], torch.nan, super().forward(x))


def test_samples_that_are_not_finite_are_undecided_and_isolated():
    x = images(8, spread=0.1)
    x[:, 0, 0, 0] = torch.tensor([0.25, 0.5, 0.9375, 0.25, 0.5, 0.25, 0.9375, 0.25])
    labels = Linear()(x).argmax(1)
    attack = question(
        optimizer=partial(SignedGradientOptim, lr=1 / 64), criterion=lambda z, t, **_: z[:, 0], steps=4, stop="never"
    )
    records, kept = shown(x, labels, attack, Sick())
    lost = [2, 6]
    assert [records["stopped"][i] for i in lost] == ["not_finite"] * 2
    assert [records["clean_prediction"][i] for i in lost] == [None] * 2
    assert records["verified"][lost].to_list() == [None] * 2
    assert records["not_finite_step"].to_list() == [None, 2, None, None, 2, None, None, None]  # 0.5, 0.516, 0.531
    undecided = [i for i in (1, 4) if not records["verified"][i]]
    assert all(records["undecided"][i] and records["stopped"][i] == "not_finite" for i in undecided)
    healthy = [0, 3, 5, 7]
    others, alone = shown(x[healthy], labels[healthy], attack, Linear(), ids=healthy)
    assert records[healthy].equals(others)
    assert torch.equal(kept[healthy], alone)


class Small(Linear):
    """A model with memory for `room` rows only."""

    def __init__(self, room):
        super().__init__()
        self.room, self.sizes = room, []

    def forward(self, x):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        self.sizes.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize(("restarts", "room", "size", "left"), [(1, 5, 24, 3), (3, 7, 24, 6), (1, 1, 24, 1)])
def test_the_batch_is_halved_when_memory_runs_out(caplog, restarts, room, size, left):
    x = images(24)
    attack = question(optimizer=WEAK, init=random_start, restarts=restarts, stop="never")
    labels = labels_of(x, wrong=100)
    expected, model = table(x, labels, attack), Small(room)
    with caplog.at_level(logging.WARNING, "raiopt"):
        found = table(x, labels, attack, model, batch_size=size)
    assert found.equals(expected)
    assert f"Out of memory with {24 // restarts} samples in a batch: continuing with {12 // restarts}." in caplog.text
    assert max(model.sizes) == left


@pytest.mark.parametrize("change", [{"perturbation": attacks.universal}, {"restarts": 3, "init": random_start}])
def test_an_out_of_memory_error_that_no_smaller_batch_avoids_is_raised(change):
    room = 5 if "perturbation" in change else 2
    with pytest.raises(torch.OutOfMemoryError):
        run(images(), attack=question(**change), fast=Small(room), batch_size=6)


def test_the_batch_size_counts_rows():
    for restarts, samples in ((3, 3), (30, 1)):
        attack = question(restarts=restarts, init=random_start)
        engine = Engine(ModelView(Linear()), attack, shape=SHAPE, classes=2, batch_size=10)
        assert engine.samples_at_once == samples
    attack = question(restarts=3, init=random_start)
    assert [len(part.ids) for part in run(images(8), attack=attack, batch_size=10)] == [3, 3, 2]


def test_restarts_from_the_same_point_are_an_error():
    with pytest.raises(ValueError, match=r"restarts=3 has no effect: .* Use a random init"):
        run(images(), attack=question(restarts=3))
    assert run(images(), attack=question(restarts=2, perturbation=partial(attacks.patch, size=2, shared=False)))


def test_the_global_generator_is_neither_read_nor_set():
    x, found = images(12), []
    attack = question(optimizer=WEAK, init=partial(attacks.uniform_linf, epsilon=1 / 64), restarts=2)
    patches = question(perturbation=partial(attacks.patch, size=2, shared=False), init=random_start)
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        found.append((table(x, attack=attack), table(x, attack=patches)))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert all(a.equals(b) for a, b in zip(*found, strict=True))
    assert not table(x, attack=question(**{**vars(attack), "seed": 1})).equals(found[0][0])


def test_reaches_the_worst_corner_of_the_ball_for_a_linear_model():
    x = images()
    trial = tried(x, attack=question(stop="never"))
    away = torch.where(Linear()(x).argmax(1).bool(), -1 / 16, 1 / 16).view(-1, 1, 1, 1)
    assert torch.equal(trial.delta, away * Linear().weight.sign().view(SHAPE))
