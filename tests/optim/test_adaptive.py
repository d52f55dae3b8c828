import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raiopt.attacks.rows import select_rows
from raiopt.optim import AdaptiveStepOptim, SteepestProjectedOptim
from raiopt.optim.adaptive import L1_DIVISOR, L1_SMALLEST_ETA, L1_SPARSER, RHO, checkpoints
from tests import reference
from tests.reference import Array, array

SHAPE, STEPS = (4, 3, 5), 50
LOWER, UPPER = -0.8, 0.6
EPSILON = {1: 2.0, 2: 1.2, math.inf: 0.5}


def hills(x: Any, waves: Any) -> Any:
    """Losses (N,) with many local minima."""
    sin = torch.sin if isinstance(x, Tensor) else np.sin
    return sin(2 * waves * x).reshape(len(x), -1).sum(1)


def slopes(x: Array, waves: Array) -> Array:
    return 2 * waves * np.cos(2 * waves * x)


def problem(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A start and the waves of the hills."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.empty(SHAPE, dtype=dtype).uniform_(-0.1, 0.1, generator=generator)
    return start, torch.randn(SHAPE, generator=generator, dtype=dtype)


def walked(optimizer: Any, x: Tensor, waves: Tensor, steps: int) -> list[Tensor]:
    """The parameter after each step."""
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses = hills(x, waves)
        losses.sum().backward()
        optimizer.param_groups[0]["losses"] = losses.detach()
        optimizer.step()
        path.append(x.detach().clone())
    return path


def built(x: Tensor, p: float, **settings: Any) -> AdaptiveStepOptim:
    group = {"params": [x], "lower": torch.full_like(x, LOWER), "upper": torch.full_like(x, UPPER)}
    return AdaptiveStepOptim([group], p=p, epsilon=EPSILON[p], steps=STEPS, **settings)


class Reference:
    """Auto-PGD of one sample as described in the papers, in NumPy."""

    def __init__(self, x: Array, waves: Array, p: float) -> None:
        self.p, self.waves, self.epsilon = p, waves, EPSILON[p]
        self.x, self.length, self.before = x, EPSILON[p] * (1 if p == 1 else 2), None
        self.losses, self.entries, self.moved = [], x.size, (1 - 0.8) * x.size
        self.best, self.lowest, self.lowest_then, self.reduced = x, math.inf, math.inf, True
        self.at, self.last_check = checkpoints(STEPS, p), 0

    def project(self, x: Array) -> Array:
        return reference.PROJECTIONS[self.p](x, self.epsilon, LOWER, UPPER)

    def direction(self, g: Array) -> Array:
        if self.p != 1:
            return reference.steepest(g, self.p)
        flat = np.abs(g).reshape(-1)
        kept = np.argsort(-flat, kind="stable")[: math.ceil(max(self.moved, 1))]
        signs = np.zeros_like(flat)
        signs[kept] = np.sign(g.reshape(-1)[kept])
        return reference.normalize(signs.reshape(g.shape), 1)

    def step(self, turn: int) -> Array:
        loss, gradient = float(hills(self.x, self.waves)[0]), slopes(self.x, self.waves)
        self.losses.append(loss)
        if loss < self.lowest:
            self.best, self.lowest = self.x, loss
        if turn in self.at:
            gradient = self.judge(turn, gradient)
        u = self.project(self.x - self.length * self.direction(gradient))
        new = u
        if self.before is not None and self.p != 1:
            new = self.project(self.x + 0.75 * (u - self.x) + 0.25 * (self.x - self.before))
        self.before, self.x = self.x, new
        return new

    def judge(self, turn: int, gradient: Array) -> Array:
        recent = self.losses[self.last_check :]
        rises = sum(b < a for a, b in pairwise(recent))
        passed, self.last_check = turn - self.last_check, turn
        if self.p == 1:
            count = np.count_nonzero(self.best)
            back = count < L1_SPARSER * self.entries
            shorter = max(self.length / L1_DIVISOR, L1_SMALLEST_ETA * self.epsilon)
            self.length = self.epsilon if back else shorter
            self.entries, self.moved = count, count / L1_DIVISOR
        else:
            back = rises < RHO * passed or (not self.reduced and self.lowest >= self.lowest_then)
            self.lowest_then, self.reduced = self.lowest, back
            self.length = self.length / 2 if back else self.length
        if not back:
            return gradient
        self.x = self.before = self.best
        return slopes(self.best, self.waves)


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auto_pgd_follows_the_papers(p: float, seed: int) -> None:
    start, waves = problem(seed)
    x = start.clone().requires_grad_()
    path = walked(built(x, p), x, waves, STEPS)
    for row in range(len(start)):
        expected = Reference(array(start[row : row + 1]), array(waves[row : row + 1]), p)
        for turn, ours in enumerate(path):
            np.testing.assert_allclose(
                array(ours[row : row + 1]), expected.step(turn), atol=1e-4, err_msg=f"step {turn}"
            )


@pytest.mark.parametrize("steps", [1, 5, 10, 50, 100, 1000])
def test_intervals_between_checkpoints_shrink(steps: int) -> None:
    for p in (1, 2):
        found = checkpoints(steps, p)
        gaps = np.diff([0, *found])
        assert found[-1] <= steps
        assert all(a >= b for a, b in pairwise(gaps))


@pytest.mark.parametrize("p", [1, 2, math.inf])
@given(seed=st.integers(0, 1000))
def test_every_point_lies_in_ball_and_box(p: float, seed: int) -> None:
    start, waves = problem(seed, torch.float32)
    for optimizer in (AdaptiveStepOptim, SteepestProjectedOptim):
        x = start.clone().requires_grad_()
        group = {"params": [x], "lower": torch.full_like(x, LOWER), "upper": torch.full_like(x, UPPER)}
        steps = {"steps": 12} if optimizer is AdaptiveStepOptim else {}
        for point in walked(optimizer([group], p=p, epsilon=EPSILON[p], **steps), x, waves, 12):
            assert (reference.norms(array(point), p) <= EPSILON[p] * (1 + 1e-6)).all()
            assert ((point >= LOWER) & (point <= UPPER)).all()


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_samples_are_independent_and_can_be_removed(p: float) -> None:
    start, waves = problem()
    x = start.clone().requires_grad_()
    together = walked(built(x, p), x, waves, STEPS)[-1]
    for row in range(len(start)):
        one = start[row : row + 1].clone().requires_grad_()
        assert torch.allclose(walked(built(one, p), one, waves[row : row + 1], STEPS)[-1], together[row : row + 1])
    x, stay = start.clone().requires_grad_(), torch.tensor([1, 3])
    optimizer = built(x, p)
    walked(optimizer, x, waves, 20)
    select_rows(optimizer, x, stay)
    assert torch.allclose(walked(optimizer, x, waves[stay], STEPS - 20)[-1], together[stay])


@given(scale=st.floats(0.1, 10))
def test_steps_grow_with_epsilon(scale: float) -> None:
    start = torch.zeros(1, 4, dtype=torch.float64)
    paths = []
    for epsilon in (0.1, 0.1 * scale):
        x = start.clone().requires_grad_()
        optimizer = SteepestProjectedOptim([x], p=2, epsilon=epsilon, lr=0.3)
        for gradient in torch.tensor([[1.0, -2.0, 0.5, 0.0], [1.0, 1.0, -1.0, 0.5], [0.5, -2.0, 0.0, 0.0]]):
            x.grad = gradient[None].double()
            optimizer.step()
        paths.append(x.detach())
    assert torch.allclose(paths[1], paths[0] * scale)


def test_a_restored_optimizer_continues_identically() -> None:
    start, waves = problem()
    x = start.clone().requires_grad_()
    optimizer = built(x, math.inf)
    walked(optimizer, x, waves, 20)
    y = x.detach().clone().requires_grad_()
    other = built(y, math.inf)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(walked(other, y, waves, 30)[-1], walked(optimizer, x, waves, 30)[-1])


def test_the_optimizer_needs_published_losses() -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    x.grad = torch.ones(1, 2)
    with pytest.raises(ValueError, match="AdaptiveStepOptim reads 'losses'"):
        AdaptiveStepOptim([x], p=2, epsilon=1.0, steps=3).step()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"p": 3}, ValueError, "p=3"),
        ({"steps": -1}, ValueError, "steps=-1"),
        ({"steps": 2.5}, TypeError, "steps=2.5"),
        ({"weight": 1.5}, ValueError, "weight=1.5"),
        ({"epsilon": -1.0}, ValueError, "epsilon=-1"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AdaptiveStepOptim([torch.zeros(1, 2, requires_grad=True)], **{"p": 2, "epsilon": 1.0, "steps": 3, **change})
