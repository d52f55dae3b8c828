"""Several radii: for a linear model the smallest successful radius has a closed form."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.optim import SGD

from raiopt.optim import (
    AdaptiveStepOptim,
    ChainedParamTransformingOptimizer,
    DDNOptim,
    FMNOptim,
    L0ProjectedOptim,
    L2ProjectedOptim,
    LinfProjectedOptim,
    LookaheadGradientOptim,
    ProjectedParameterOptimizer,
    SquareOptim,
    SteepestGradientOptim,
    VarianceTunedGradientOptim,
)
from raiopt.results.metrics import metrics
from tests import attack_functions as attacks
from tests.attacks.parts import Counting, Linear, images, net, question, random_start, table

INF = math.inf
SQUARE = partial(SquareOptim, p=INF)
OPTIMIZERS = {
    INF: partial(LinfProjectedOptim, epsilon=1.0, lr=0.25),
    2: partial(L2ProjectedOptim, epsilon=1.0, lr=0.25),
    1: partial(
        ChainedParamTransformingOptimizer,
        partial(SteepestGradientOptim, p=1),
        partial(ProjectedParameterOptimizer, p=1, epsilon=1.0),
        lr=0.25,
    ),
}
LARGEST = {INF: 0.25, 2: 0.25, 1: 0.25}
"""Radii up to which no pixel gets to a wall, and one step from the centre gets to the border."""


def distances(x, p):
    """Returns the norms of the smallest perturbations that put the samples onto the decision boundary."""
    model = Linear()
    dual = {INF: 1, 2: 2, 1: INF}[p]
    weight, flat = model.weight.double().numpy(), x.double().flatten(1).numpy()
    return np.abs(flat @ weight - model.offset) / np.linalg.norm(weight, dual)


@pytest.mark.parametrize("p", OPTIMIZERS)
@given(data=st.data())
def test_the_smallest_radius_of_a_linear_model_is_the_closed_form(p, data):
    x = images(8, seed=data.draw(st.integers(0, 99)), spread=0.2)
    x = 0.5 + (x - 0.5) * {INF: 1.0, 2: 0.25, 1: 1 / 16}[p]
    expected = distances(x, p)
    reach = st.floats(0.02, 1.3).map(lambda share: min(share * float(expected.max()), LARGEST[p]))
    radii = sorted(data.draw(st.lists(reach, min_size=1, max_size=6, unique=True)))
    gaps = np.abs(expected[:, None] - np.array(radii)[None])
    assume(gaps.min() > 1e-4 * radii[0] and all(b - a > 1e-4 * radii[0] for a, b in pairwise(radii)))
    found = table(x, attack=question(optimizer=OPTIMIZERS[p], epsilons=radii, steps=3))
    for row, distance in zip(found.iter_rows(named=True), expected, strict=True):
        enough = [radius for radius in radii if radius > distance]
        assert row["verified"] == bool(enough)
        assert row["epsilon"] == (enough[0] if enough else radii[-1])
        norms = {INF: "linf", 2: "l2", 1: "l1"}[p]
        assert row[norms] <= row["epsilon"] * (1 + 1e-6)


RADII = [k / 512 for k in range(1, 9)]
LINEAR = question(epsilons=RADII, steps=3, optimizer=partial(LinfProjectedOptim, epsilon=1.0, lr=1 / 64))


def changed(attack, **changes):
    return type(attack)(**{**vars(attack), **changes})


def test_bisection_agrees_with_fewer_passes():
    x = images(30)
    bisect, each = table(x, attack=LINEAR), [table(x, attack=changed(LINEAR, epsilons=[radius])) for radius in RADII]
    broken = np.array([one["verified"].to_list() for one in each])
    smallest = [RADII[flags.argmax()] if flags.any() else RADII[-1] for flags in broken.T]
    assert bisect["verified"].to_list() == broken.any(0).tolist()
    assert bisect["epsilon"].to_list() == smallest
    assert len(bisect["epsilon"].unique()) > 3
    passes = np.sum([one["forward_passes"].to_numpy() for one in each], axis=0)
    assert 1.8 * bisect["forward_passes"].to_numpy().sum() < passes.sum()
    assert (bisect["forward_passes"].to_numpy() <= passes).all()


def test_the_radii_at_which_a_search_succeeded():
    x = images(30)
    found = table(x, attack=LINEAR)
    distance = distances(x, INF)
    for row, nearest in zip(found.iter_rows(named=True), distance, strict=True):
        assert len(row["broken_at"]) == len(RADII)
        broken = [radius > nearest for radius in RADII]
        assert all(expected or not hit for hit, expected in zip(row["broken_at"], broken, strict=True))
        assert sum(row["broken_at"]) <= 4
        assert row["verified"] == any(row["broken_at"])
    assert 0 < found["verified"].sum() < 30


@pytest.mark.parametrize("epsilons", [[RADII[1]], RADII])
def test_a_sample_robust_at_all_radii_has_the_record_of_the_largest(epsilons):
    x = (
        torch.full((2, 3, 4, 4), 0.5)
        + Linear().weight.sign().view(1, 3, 4, 4) * torch.tensor([0.25, -0.25])[:, None, None, None]
    )
    found = table(x, attack=changed(LINEAR, epsilons=epsilons))
    assert not found["verified"].any()
    assert found["epsilon"].to_list() == [epsilons[-1]] * 2
    assert found["broken_at"].to_list() == [[False] * len(epsilons)] * 2
    assert found["linf"].to_list() == [epsilons[-1]] * 2


def test_robust_accuracy_falls_with_the_radius():
    x, model = images(40, seed=3, spread=0.4), net().float()
    radii = [0.1, 0.2, 0.3, 0.4, 0.6, 0.9]
    make = partial(L2ProjectedOptim, epsilon=1.0, lr=0.1)
    labels = model(x).argmax(1)
    labels[:4] = (labels[:4] + 1) % 5
    attack = question(optimizer=make, epsilons=radii, steps=10, criterion=attacks.cross_entropy)
    found = table(x, labels, attack, model)
    robust = metrics(found.lazy(), radii).robust_accuracies
    assert robust == sorted(robust, reverse=True)
    assert 0.9 >= robust[0] > robust[-1]
    alone = [
        metrics(table(x, labels, changed(attack, optimizer=partial(make, epsilon=e), epsilons=None), model).lazy())
        for e in radii
    ]
    assert all(r <= one.robust_accuracy + 1 / 40 for r, one in zip(robust, alone, strict=True))
    assert metrics(found.lazy(), radii).robust_accuracy == robust[-1]


def test_a_perturbation_that_fits_into_a_smaller_ball_counts_there():
    """A step of 1/64 succeeds on every sample nearer to the boundary than that, in any ball."""
    x = images(30)
    near = distances(x, INF) < 1 / 64
    attack = question(
        epsilons=[1 / 64, 1 / 8, 1 / 4], steps=1, optimizer=partial(LinfProjectedOptim, epsilon=1.0, lr=1 / 64)
    )
    found = table(x, attack=attack)
    assert found["verified"].to_list() == near.tolist()
    assert set(found.filter("verified")["epsilon"]) == {1 / 64}
    assert [row for row, hit in zip(found["broken_at"].to_list(), near, strict=True) if hit] == [
        [False, True, False]
    ] * int(near.sum())
    assert (found.filter("verified")["forward_passes"] <= 2).all()


@pytest.mark.parametrize("p", [0, 2])
def test_the_radius_of_other_balls(p):
    x, model = images(12, seed=3, spread=0.4), net().float()
    make = {0: partial(L0ProjectedOptim, epsilon=1, lr=2.0), 2: partial(L2ProjectedOptim, epsilon=1.0, lr=0.2)}[p]
    radii = {0: [1, 3, 9, 20], 2: [0.2, 0.4, 0.8]}[p]
    attack = question(optimizer=make, epsilons=radii, steps=10, criterion=attacks.cross_entropy)
    found = table(x, attack=attack, model=model)
    broken = found.filter("verified")
    assert len(broken["epsilon"].unique()) > 1
    assert (broken["l0" if p == 0 else "l2"] <= broken["epsilon"] * (1 + 1e-6)).all()


@pytest.mark.parametrize("inner", [SGD, type("Own", (SGD,), {})])
@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("passes", [6, 7, 10, 17, 40])
def test_passes_are_limited_over_all_radii(monkeypatch, passes, restarts, inner):
    x = images(24)
    model = Counting(Linear())
    make = partial(LinfProjectedOptim, InnerOpt=inner, epsilon=1.0, lr=1 / 512)
    attack = question(
        epsilons=RADII,
        steps=6,
        max_passes=passes,
        restarts=restarts,
        init=random_start,
        optimizer=make,
    )
    found = table(x, attack=attack, fast=model)
    spent = found["forward_passes"] + found["backward_passes"]
    assert max(spent) <= passes
    assert (found["forward_passes"].sum(), found["backward_passes"].sum()) == model.total
    assert {"passes", "fooled"} <= set(found["stopped"]) or passes == 40
    unlimited = table(x, attack=changed(attack, max_passes=None))
    assert max(unlimited["forward_passes"] + unlimited["backward_passes"]) > passes or passes == 40


def chained(*members):
    last = partial(ProjectedParameterOptimizer, p=INF, epsilon=1 / 512)
    return partial(ChainedParamTransformingOptimizer, *members, last, lr=1 / 512)


@pytest.mark.parametrize(
    ("make", "passes_per_step"),
    [
        (partial(SquareOptim, p=INF, epsilon=1 / 512, steps=30), 1),
        (partial(LinfProjectedOptim, epsilon=1 / 512, lr=1 / 512), 2),
        (chained(LookaheadGradientOptim), 4),
        (chained(partial(VarianceTunedGradientOptim, epsilon=1 / 512, neighbors=3)), 8),
        (chained(LookaheadGradientOptim, partial(VarianceTunedGradientOptim, epsilon=1 / 512, neighbors=3)), 10),
    ],
)
@pytest.mark.parametrize("passes", [11, 25])
def test_a_limit_counts_all_that_a_step_takes(make, passes_per_step, passes):
    model = Counting(Linear())
    attack = question(optimizer=make, steps=30, max_passes=passes, stop="never")
    found = table(images(6), attack=attack, fast=model)
    spent = found["forward_passes"] + found["backward_passes"]
    assert (found["forward_passes"].sum(), found["backward_passes"].sum()) == model.total
    assert max(spent) <= passes < min(spent) + 2 * passes_per_step
    least, each = max(3, 1 + passes_per_step), max(2, passes_per_step)
    with pytest.raises(ValueError, match=f"must be at least {least}: a step takes {each} "):
        table(images(6), attack=changed(attack, max_passes=passes_per_step))


@pytest.mark.parametrize("make", [partial(AdaptiveStepOptim, p=INF), SQUARE, partial(FMNOptim, p=2), DDNOptim])
def test_an_optimizer_plans_for_the_steps_that_the_limit_leaves(make):
    x, labels = images(6), Linear()(images(6)).argmax(1)
    asked = {"stop": "never", "target": "malt", "criterion": attacks.margin}
    settings = {} if make is DDNOptim else {"epsilon": 1 / 64}
    passes_per_step = 1 if make is SQUARE else 2
    passes = 4 + 9 * passes_per_step
    limited = question(optimizer=partial(make, steps=30, **settings), steps=30, max_passes=passes, **asked)
    alike = question(optimizer=partial(make, steps=9, **settings), steps=9, **asked)
    limited, alike = (table(x, labels, attack).drop("stopped") for attack in (limited, alike))
    assert limited.equals(alike)


def test_the_evaluation_alone_is_limited_too():
    x = images(6)
    found = table(x, attack=changed(LINEAR, steps=0, max_passes=2))
    assert found["forward_passes"].to_list() == [2] * 6
    assert found["backward_passes"].to_list() == [0] * 6
