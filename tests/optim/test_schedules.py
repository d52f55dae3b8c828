"""Factors of the learning rate at each step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR

from raiopt.attacks.search_state import search_rows as search
from raiopt.optim import AdaptiveStepOptim, schedules
from tests.attacks.parts import Linear, images, question, rows


def rates(schedule, steps, lr=0.5):
    """The learning rate of each step."""
    optimizer, found = SGD([torch.zeros(1, requires_grad=True)], lr=lr), []
    scheduler = schedule(optimizer, steps)
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return found


@given(steps=st.integers(2, 50), final=st.floats(0.001, 1))
def test_schedules_in_closed_form(steps, final):
    at = [step / steps for step in range(steps)]
    made = {
        "linear": [0.5 * (1 - t + final * t) for t in at],
        "cosine": [0.5 * (final + (1 - final) * (1 + math.cos(math.pi * t)) / 2) for t in at],
        "exponential": [0.5 * final**t for t in at],
    }
    for name, expected in made.items():
        found = rates(lambda o, n, name=name: getattr(schedules, name)(o, n, final=final), steps)
        assert found == pytest.approx(expected)
    assert rates(schedules.constant, steps) == [0.5] * steps


def test_schedules_agree_with_torch():
    cosine = rates(schedules.cosine, 20)
    assert cosine == pytest.approx(rates(lambda optimizer, steps: CosineAnnealingLR(optimizer, steps), 20))
    linear = rates(lambda o, n: schedules.linear(o, n, final=0.1), 20)
    assert linear == pytest.approx(rates(lambda o, n: LinearLR(o, 1.0, 0.1, total_iters=n), 20))


@pytest.mark.parametrize(
    ("name", "setting", "error", "message"),
    [
        ("cosine", {"final": -0.1}, ValueError, "final=-0.1"),
        ("linear", {"final": 2.0}, ValueError, "final=2.0"),
        ("exponential", {"final": 0.0}, ValueError, "final=0.0"),
        ("linear", {"final": "all"}, TypeError, "final='all'"),
    ],
)
def test_wrong_settings_are_refused(name, setting, error, message):
    with pytest.raises(error, match=message):
        rates(lambda o, n: getattr(schedules, name)(o, n, **setting), 3)


def test_optimizers_that_set_their_own_step_size_keep_it():
    def apgd():
        return AdaptiveStepOptim([torch.zeros(1, 2, requires_grad=True)], p=2, epsilon=1.0, steps=5)

    assert schedules.auto(apgd(), 5) is None
    with pytest.raises(ValueError, match=r"AdaptiveStepOptim sets its own step size: take schedule=auto"):
        schedules.cosine(apgd(), 5)
    assert rates(schedules.auto, 5) == rates(schedules.cosine, 5)


def test_an_attack_follows_its_schedule():
    x = images(1)
    labels = Linear()(x).argmax(1)
    shares = [1, 2, 0, 1]
    attack = question(steps=4, stop="never", schedule=lambda o, n: LambdaLR(o, lambda step: shares[min(step, n - 1)]))
    found, _, _ = search(Linear(), attack, rows(x, labels, attack, Linear()), lambda: None)
    moved = found.gains[0].diff()
    assert torch.equal(moved / moved[0], torch.tensor([1.0, 2.0, 0.0, 1.0]))
