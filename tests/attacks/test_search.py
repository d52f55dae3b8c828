"""The search over a batch: removed rows change no other, restarts and targets share a batch, the best row wins."""

import math
import statistics
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam, RMSprop
from torch.testing import assert_close

from raiopt.attacks.search_result import STOPPED, SearchResult, best_rows, of_samples
from raiopt.attacks.search_state import search_rows as search
from raiopt.optim import (
    AdaptiveStepOptim,
    ChainedParamTransformingOptimizer,
    L1NormedGradientOptim,
    L1ProjectedOptim,
    L2FrankWolfe,
    L2NormedGradientOptim,
    L2ProjectedOptim,
    LinfProjectedOptim,
    MomentumGradientOptim,
    ProjectedParameterOptimizer,
    SignedGradientOptim,
    SteepestProjectedOptim,
)
from raiopt.perturbations import AdditivePerturbation
from tests import attack_functions as attacks
from tests.attacks.parts import Classes, Counting, Linear, images, net, question, random_start, rows
from tests.attacks.test_start import KINDS, brighter_each

N = 12


def per_sample_mask(images, generators):
    """Restricts the perturbation of each sample to its brighter half."""
    return AdditivePerturbation(images, mask=images > images.flatten(1).median(1).values.view(-1, 1, 1, 1))


def chained(*members):
    return partial(ChainedParamTransformingOptimizer, *members)


INF = partial(ProjectedParameterOptimizer, p=float("inf"), epsilon=0.2)
L2 = partial(L2ProjectedOptim, epsilon=0.7, lr=0.1)
RADII = torch.linspace(0.3, 0.9, N, dtype=torch.float64).view(-1, 1, 1, 1)
CASES = {
    "sgd": {"optimizer": L2},
    "momentum": {"optimizer": partial(L2, InnerOpt=SGD, momentum=0.9)},
    "adam": {"optimizer": partial(L2, InnerOpt=Adam, lr=0.02)},
    "rmsprop": {"optimizer": partial(L2, InnerOpt=partial(RMSprop, momentum=0.5, centered=True), lr=0.005)},
    "chain": {"optimizer": partial(chained(L1NormedGradientOptim, MomentumGradientOptim, INF), lr=0.5)},
    "signs": {"optimizer": partial(chained(MomentumGradientOptim, SignedGradientOptim, INF), InnerOpt=Adam, lr=0.05)},
    "rows of pixels": {"optimizer": partial(L2ProjectedOptim, epsilon=0.2, lr=0.05, param_ndim=1)},
    "radii": {"optimizer": partial(L2, epsilon=RADII)},
    "l1": {"optimizer": partial(L1ProjectedOptim, epsilon=3.0, lr=0.5, q=0.8)},
    "masks": {"optimizer": L2, "perturbation": per_sample_mask},
    "patches": {
        "optimizer": partial(LinfProjectedOptim, epsilon=0.9, lr=0.1),
        "perturbation": partial(attacks.patch, size=3, shared=False),
    },
    "affine": {
        "optimizer": partial(LinfProjectedOptim, epsilon=1.0, lr=0.1),
        "perturbation": partial(attacks.affine, rotation=90.0, translation=0.5, scale=0.5),
    },
    "restarts": {"optimizer": L2, "restarts": 3},
    "targets": {"optimizer": L2, "targeted": True, "target": ["next", "least_likely", 0]},
    "norm": {"optimizer": L2, "best_by": "norm"},
    "towards": {"optimizer": L2, "target": "likely", "num_targets": 2},
    "apgd": {"optimizer": partial(AdaptiveStepOptim, p=2, epsilon=0.7, steps=15, lr=0.1)},
    "apgd for l1": {"optimizer": partial(AdaptiveStepOptim, p=1, epsilon=3.0, steps=15, lr=0.1)},
    "apgd of rows": {"optimizer": partial(AdaptiveStepOptim, p=2, epsilon=0.2, steps=15, lr=0.1, param_ndim=1)},
    "steepest": {"optimizer": partial(SteepestProjectedOptim, p=2, epsilon=0.7, lr=0.1)},
    "schedule": {"optimizer": L2, "schedule": attacks.cosine},
    "last": {"optimizer": L2, "use_best": False},
}


def searched(monkeypatch, attack, spare, batch):
    monkeypatch.setattr("raiopt.attacks.search_state.MIN_LEAVING_SHARE", spare)
    model = Counting(net())
    return (*search(model, attack, batch, lambda: None), model)


def batch_of(attack, n=N, labels=None):
    x, model = images(n, seed=3, spread=0.4).double(), net()
    return rows(x, model(x).argmax(1) if labels is None else labels, attack, model)


ALWAYS, NEVER = 0.0, 2.0


@pytest.mark.parametrize("case", CASES)
def test_removing_rows_changes_nothing(monkeypatch, case):
    changes = {"init": partial(attacks.uniform_linf, epsilon=0.01), "criterion": attacks.cross_entropy, "steps": 15}
    attack = question(**{**changes, **CASES[case]})
    batch = batch_of(attack)
    found, parameter, start, some = searched(monkeypatch, attack, ALWAYS, batch)
    expected, whole_parameter, whole, every = searched(monkeypatch, attack, NEVER, batch)
    assert start.independent
    assert len(set(expected.steps.tolist())) > 1
    assert len(set(some.sizes)) > 2
    assert set(every.sizes) == {len(batch)}
    for name in (field.name for field in fields(SearchResult)):
        if "passes" not in name:
            assert_close(getattr(found, name), getattr(expected, name), equal_nan=True)
    assert_close(parameter, whole_parameter)
    index = torch.arange(len(batch))
    claims = start.claim(parameter, index), whole.claim(whole_parameter, index)
    assert_close(*(claim.perturbed(batch.images) for claim in claims))
    assert claims[0].is_valid().all()
    passes = found.forward_passes.sum().item(), found.backward_passes.sum().item()
    assert passes == some.total
    assert (expected.forward_passes.sum().item(), expected.backward_passes.sum().item()) == every.total
    assert passes[0] < every.total[0]
    assert (found.forward_passes == found.steps + 1).all()


class OwnSGD(SGD):
    pass


@pytest.mark.parametrize(
    "change",
    [
        {"perturbation": brighter_each, "optimizer": partial(LinfProjectedOptim, epsilon=0.3, lr=0.1)},
        {"optimizer": partial(L2, InnerOpt=OwnSGD)},
        {"optimizer": partial(L2, param_ndim=None)},
        {"perturbation": KINDS["universal"]},
    ],
)
def test_coupled_rows_keep_the_batch_whole(monkeypatch, change):
    attack = question(**change)
    batch = batch_of(attack)
    found, _, start, model = searched(monkeypatch, attack, ALWAYS, batch)
    assert not start.independent
    assert set(model.sizes) == {N}
    assert (found.forward_passes == len(model.sizes)).all()


def test_few_decided_rows_are_not_removed_at_once(monkeypatch):
    attack = question(optimizer=L2, steps=15, criterion=attacks.cross_entropy)
    batch = batch_of(attack, n=40)
    found, _, _, model = searched(monkeypatch, attack, 1 / 4, batch)
    sizes = [size for size, after in zip(model.sizes, [*model.sizes[1:], 0], strict=True) if size != after]
    assert 2 < len(sizes) < 8
    assert all(after <= 3 / 4 * size for size, after in pairwise(sizes))
    assert (found.forward_passes >= found.steps + 1).all()


def test_no_empty_batch_passes_the_model():
    class Sick(Linear):
        def forward(self, x):
            root = (x.flatten(1)[:, :1] - x.flatten(1)[:, :1].detach()).abs().sqrt()  # infinite derivative at 0
            return super().forward(x) + root

    attack = question()
    x = images()
    model = Counting(Sick())
    found, *_ = search(model, attack, rows(x, Linear()(x).argmax(1), attack, Sick()), lambda: None)
    assert found.not_finite.tolist() == [0] * 6
    assert model.sizes == [6]


@pytest.mark.parametrize("stop", ["fooled", "never"])
def test_siblings_stop_when_one_succeeds(stop):
    attack = question(
        optimizer=L2,
        restarts=4,
        steps=12,
        stop=stop,
        init=partial(attacks.uniform_l2, epsilon=0.7),
        criterion=attacks.cross_entropy,
    )
    batch = batch_of(attack)
    found, *_ = search(net(), attack, batch, lambda: None)
    of_sample = found.first_fooled.view(N, 4)
    first = torch.where(of_sample < 0, 99, of_sample).amin(1)
    assert 1 < (first < 99).sum() < N or stop == "fooled"
    assert len(first.unique()) > 2
    steps = found.steps.view(N, 4)
    if stop == "never":
        assert (steps == 12).all()
        return
    assert torch.equal(steps, first.clamp(max=12)[:, None].expand(N, 4))
    assert [STOPPED[i] for i in found.stopped.view(N, 4)[:, 0]] == ["fooled" if f < 99 else "steps" for f in first]


def test_the_first_restart_is_the_attack_with_one():
    make = partial(question, optimizer=L2, init=random_start, stop="never", criterion=attacks.cross_entropy)
    one, three = make(), make(restarts=3)
    found, parameter, _ = search(net(), one, batch_of(one), lambda: None)
    many, parameters, _ = search(net(), three, batch_of(three), lambda: None)
    assert many.restart.tolist() == [0, 1, 2] * N
    assert_close(parameters[::3], parameter)
    assert_close(many.gains[::3], found.gains)
    assert not torch.allclose(parameters[1::3], parameter)


def test_targets_that_are_the_label_are_left_out():
    attack = question(targeted=True, target=[0, 1, 2], restarts=2)
    x, labels = images(3), torch.tensor([0, 1, 4])
    batch = rows(x, labels, attack, Classes())
    assert batch.samples.tolist() == [0] * 4 + [1] * 4 + [2] * 6
    assert batch.goals.tolist() == [1, 2, 1, 2, 0, 2, 0, 2, 0, 1, 2, 0, 1, 2]
    assert batch.restarts.tolist() == [0, 0, 1, 1] * 2 + [0, 0, 0, 1, 1, 1]
    assert torch.equal(batch.images, x[batch.samples])


@st.composite
def found_rows(draw):
    """What a search found for rows of a few samples, and their samples."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    samples = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    n, steps = len(samples), 3

    def numbers(low, high, *shape):
        size = n * max(1, *shape, 1)
        values = draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
        return torch.tensor(values).view(n, *shape)

    whole = ("prediction", "best_step", "zero_gradients", "steps", "forward_passes", "backward_passes", "restart")
    columns = {name: numbers(0, 5) for name in (*whole, "goal")}
    columns |= {name: numbers(-1, 3) for name in ("first_fooled", "not_finite")}
    columns |= {name: numbers(0, 1).bool() for name in ("fooled", "claimed", "zero_at_start")}
    columns |= {name: numbers(-4, 4).float() for name in ("loss", "score", "spread")}
    columns["score"][numbers(0, 9) == 0] = float("-inf")
    columns |= {"stopped": numbers(0, 3), "gains": numbers(-4, 4, steps).float(), "fooled_at": numbers(0, 1, steps) > 0}
    return samples, SearchResult(**columns)


@given(found_rows())
def test_the_best_row_of_a_sample_and_the_totals_of_all_rows(drawn):
    samples, found = drawn
    batch = replace(rows(images(1), torch.zeros(1).long(), question(), Linear()), samples=samples)
    best = best_rows(found, batch)
    assert samples[best].tolist() == samples.unique().tolist()
    come = of_samples(found, batch, best)
    for number, row in enumerate(best.tolist()):
        mine = [i for i, sample in enumerate(samples.tolist()) if sample == number]

        def of(name, mine=mine):
            return getattr(found, name)[mine].tolist()

        key = [(fooled, score) for fooled, score in zip(of("fooled"), of("score"), strict=True)]
        assert (found.fooled[row], found.score[row]) == max(key)
        for name in ("prediction", "loss", "fooled", "claimed", "best_step", "score", "restart", "goal"):
            assert getattr(come, name)[number] == getattr(found, name)[row]
        hits = [step for step in of("first_fooled") if step >= 0]
        assert come.first_fooled[number] == (min(hits) if hits else -1)
        lost = of("not_finite")
        assert come.not_finite[number] == (-1 if min(lost) < 0 else max(lost))
        assert come.gains[number].tolist() == found.gains[mine].amax(0).tolist()
        assert come.fooled_at[number].tolist() == found.fooled_at[mine].any(0).tolist()
        assert come.zero_at_start[number] == all(of("zero_at_start"))
        assert come.stopped[number] == min(of("stopped"))
        assert come.steps[number] == max(of("steps"))
        assert come.zero_gradients[number] == min(of("zero_gradients"))
        for name in ("forward_passes", "backward_passes"):
            assert getattr(come, name)[number] == sum(of(name))
        highest, several = found.gains[mine].amax(1).tolist(), len(mine) > 1 and len(set(of("goal"))) == 1
        spread = statistics.stdev(highest) if several else math.nan
        assert come.spread[number].item() == pytest.approx(spread, rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("targeted", [True, False])
def test_the_criterion_sees_goals_labels_and_clean_logits_of_the_rows_that_are_left(targeted):
    x, seen = images(8, seed=4), []
    labels = Classes()(x).argmax(1)
    goals = (labels + 1) % 5 if targeted else labels

    def noted(logits, goals, *, labels, clean):
        seen.append((goals, labels, clean))
        return attacks.cross_entropy(logits, goals)

    attack = question(
        criterion=noted,
        targeted=targeted,
        target="next" if targeted else None,
        optimizer=partial(L2NormedGradientOptim, lr=0.03),
        steps=15,
    )
    search(Classes(), attack, rows(x, labels, attack, Classes()), lambda: None)
    sizes = [len(own) for _, own, _ in seen]
    assert sizes[0] == 8 > sizes[-1]
    clean = Classes()(x)
    for their_goals, own, their_clean in seen:
        at = [(clean == row).all(1).nonzero().item() for row in their_clean]
        assert torch.equal(own, labels[at])
        assert torch.equal(their_goals, goals[at])
        assert (their_goals is own) != targeted


def test_the_graph_of_a_step_is_freed_before_rows_are_removed(monkeypatch):
    monkeypatch.setattr("raiopt.attacks.search_state.MIN_LEAVING_SHARE", ALWAYS)
    attack = question(optimizer=partial(L2FrankWolfe, epsilon=0.7), steps=6)
    found, parameter, start = search(net(), attack, batch_of(attack), lambda: None)
    assert start.parameter.grad is None
    assert not any(getattr(found, field.name).requires_grad for field in fields(SearchResult))
    assert not parameter.requires_grad


def test_every_iterate_is_reported(monkeypatch):
    calls = []
    attack = question(stop="never")
    model = nn.Sequential(Linear())
    x = images()
    search(model, attack, rows(x, torch.zeros(6).long(), attack, model), lambda: calls.append(1))
    assert len(calls) == 6
