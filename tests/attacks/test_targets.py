"""Target classes: their order, and the passes needed to find it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raiopt.attacks.targets import nearest, ordered
from tests import attack_functions as attacks
from tests.attacks.parts import Classes, Counting, images, net, question, random_start, table, tried
from tests.reference import array
from tests.strategies import tensors

LOGITS = tensors((4, 5), low=-3, high=3)
LABELS = torch.tensor([0, 1, 4, 2])


@given(logits=LOGITS, count=st.integers(1, 4))
def test_orders_of_classes(logits, count):
    likely, least = (ordered(rule, count, logits, LABELS) for rule in ("likely", "least_likely"))
    after = ordered("next", count, logits, LABELS)
    for row, label in enumerate(LABELS.tolist()):
        others = [k for k in np.argsort(-logits[row].numpy(), kind="stable") if k != label]
        assert likely[row].tolist() == others[:count]
        assert least[row].tolist() == [k for k in np.argsort(logits[row].numpy(), kind="stable") if k != label][:count]
        assert after[row].tolist() == [(label + k) % 5 for k in range(1, count + 1)]


@pytest.mark.parametrize("rule", ["next", "likely", "malt", "least_likely"])
def test_the_number_of_targets_is_limited_by_the_classes(rule):
    with pytest.raises(ValueError, match=r"num_targets=5 must be below the number of classes, which is 5"):
        ordered(rule, 5, torch.zeros(4, 5), LABELS)


@pytest.mark.parametrize("p", [1, 2, math.inf, 0, None])
def test_the_nearest_boundaries_of_a_linear_model(p):
    generator = torch.Generator().manual_seed(0)
    weights, x = torch.randn(5, 48, generator=generator), images(8)
    model = nn.Sequential(nn.Flatten(), linear := nn.Linear(48, 5))
    linear.weight.data.copy_(weights)
    labels = model(x).argmax(1)
    found, taken = nearest(model, x, labels, 3, p)
    logits, dual = array(model(x)), {1: np.inf, 0: np.inf, 2: 2, None: 2, math.inf: 1}[p]
    for row, label in enumerate(labels.tolist()):
        others = [k for k in range(5) if k != label]
        steep = {k: np.linalg.norm(array(weights[label] - weights[k]), dual) for k in others}
        others.sort(key=lambda k: (logits[row, label] - logits[row, k]) / steep[k])
        assert found[row].tolist() == others[:3]
    assert taken == 4
    assert not x.requires_grad


@pytest.mark.parametrize("target", ["next", "likely", "malt", "least_likely"])
def test_where_there_are_fewer_classes_all_are_tried(target):
    x = images(8)
    all_five = table(x, attack=question(target=target, num_targets=5, restarts=2, init=random_start))
    assert all_five.equals(table(x, attack=question(target=target, restarts=2, init=random_start)))
    assert all_five["verified"].any()


def test_the_passes_of_malt_are_counted():
    x, model = images(5, seed=2).double(), Counting(net())
    labels = model.model(x).argmax(1)
    records = table(x, labels, question(steps=3, target="malt", num_targets=2, stop="never"), model)
    assert (records["forward_passes"] == 1 + 2 * 4).all()  # the gradients, and two rows of three steps
    assert (records["backward_passes"] == 4 + 2 * 3).all()


@pytest.mark.parametrize("passes", [13, 14, 30])
def test_the_limit_of_passes_includes_those_of_malt(passes):
    x, model = images(5, seed=2).double(), Counting(net())
    labels = model.model(x).argmax(1)
    asked = {"steps": 9, "target": "malt", "num_targets": 2, "stop": "never"}
    with pytest.raises(ValueError, match=r"max_passes=12 must be at least 13: .* after 5 that find the"):
        table(x, labels, question(**asked, max_passes=12), model)
    records = table(x, labels, question(**asked, max_passes=passes), model)
    assert (records["steps"] >= 1).all()
    assert (records["forward_passes"] + records["backward_passes"]).max() <= passes


def test_a_target_alone_moves_towards_it_but_every_wrong_class_counts():
    x = images(8, seed=3)
    labels = Classes()(x).argmax(1)
    assert Classes()(x).argmin(1).ne(labels).all()
    usual = {"steps": 20, "target": "least_likely", "criterion": attacks.cross_entropy}
    towards, reached = (tried(x, labels, question(targeted=t, **usual), Classes()) for t in (False, True))
    assert (towards.verification.prediction != labels)[towards.verification.broken].all()
    goal = Classes()(x).argmin(1)
    assert (reached.verification.prediction == goal)[reached.search.fooled].all()
    assert (towards.search.steps <= reached.search.steps).all()
    assert (towards.search.gains[:, 1] > towards.search.gains[:, 0]).all()  # the loss falls
