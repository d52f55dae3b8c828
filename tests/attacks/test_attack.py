"""The settings of an attack: which have a meaning, and which classes a sample's losses refer to."""

import pytest
import torch

from raiopt.attacks import error_context
from tests.attacks.parts import Classes, images, question


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps=-1"),
        ({"steps": 1.5}, TypeError, "steps=1.5"),
        ({"restarts": 0}, ValueError, "restarts=0"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"stop": "early"}, ValueError, "stop='early'"),
        ({"best_by": "l2"}, ValueError, "best_by='l2'"),
        ({"best_by": "norm", "use_best": False}, ValueError, "no effect with use_best=False"),
        ({"targeted": True}, ValueError, "targeted=True needs target"),
        ({"targeted": True, "target": []}, ValueError, "targeted=True needs target"),
        ({"target": []}, ValueError, r"target=\[\] names none"),
        ({"num_targets": 2}, ValueError, "num_targets=2 needs one rule"),
        ({"target": 3, "num_targets": 2}, ValueError, "num_targets=2 needs one rule"),
        ({"target": "malt", "num_targets": 0}, ValueError, "num_targets=0"),
        ({"targeted": True, "target": "nxt"}, ValueError, "(?s)nxt.*Did you mean 'next'"),
        ({"targeted": True, "target": ["next", "nxt"]}, ValueError, "(?s)nxt.*Did you mean 'next'"),
        ({"targeted": True, "target": [3, "next", 3]}, ValueError, "names a target twice"),
        ({"attack_misclassified": True}, ValueError, "no effect with stop=fooled"),
        ({"targeted": True, "target": -2}, ValueError, "target=-2"),
        ({"targeted": True, "target": True}, TypeError, "target=True"),
        ({"epsilons": []}, TypeError, r"epsilons=\[\] must be a list"),
        ({"epsilons": "0.1"}, TypeError, "must be a list of radii"),
        ({"epsilons": 0.1}, TypeError, "must be a list of radii"),
        ({"epsilons": [-0.1, 0.1]}, ValueError, "epsilons=-0.1"),
        ({"epsilons": [0.1, float("nan")]}, ValueError, "epsilons=nan"),
        ({"epsilons": [0.2, 0.1, 0.2]}, ValueError, r"must increase: \[0.1, 0.2\]"),
        ({"max_passes": 0}, ValueError, "max_passes=0"),
        ({"max_passes": 2}, ValueError, r"max_passes=2 must be at least 3: .* its evaluation a forward pass\."),
        ({"max_passes": 8, "restarts": 3}, ValueError, "must be at least 9: .* for each of 3 restarts and targets"),
        ({"max_passes": 2, "restarts": 3, "steps": 0}, ValueError, "must be at least 3"),
    ],
)
def test_settings_without_meaning_are_an_error(change, error, message):
    with pytest.raises(error, match=message):
        question(**change)


@pytest.mark.parametrize("change", [{"max_passes": 3}, {"max_passes": 1, "steps": 0}, {"max_passes": 9, "restarts": 3}])
def test_the_least_number_of_passes_is_allowed(change):
    assert question(**change).max_passes == change["max_passes"]


def test_goals():
    logits, labels = Classes()(images(8, seed=4)), torch.arange(8) % 5
    assert question().goals(logits, labels).equal(labels[:, None])
    goals = question(targeted=True, target=["next", "least_likely", 3]).goals(logits, labels)
    least = logits.scatter(1, labels[:, None], float("inf")).argmin(1).tolist()
    assert goals.tolist() == [[(i % 5 + 1) % 5, least[i], 3] for i in range(8)]
    assert question(targeted=True, target=0).goals(logits, labels).tolist() == [[0]] * 8
    with pytest.raises(ValueError, match=r"target=7 .*at most 4"):
        question(targeted=True, target=7).goals(logits, labels)


@pytest.mark.parametrize(("targets", "restarts", "rows"), [(None, 1, 1), (2, 3, 3), ([0, "next"], 3, 6)])
def test_a_sample_takes_a_row_for_each_restart_and_target(targets, restarts, rows):
    assert question(targeted=targets is not None, target=targets, restarts=restarts).rows == rows


@pytest.mark.parametrize("error", [TypeError, ValueError])
def test_the_part_that_is_wrong_is_named(error):
    with pytest.raises(error, match="optim: lr is odd"), error_context("optim"):
        raise error("lr is odd")
