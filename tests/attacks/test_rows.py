"""Removing rows from a batch: which tensors are selected, and which are not modified."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import LBFGS, SGD, Adam, Adamax, RMSprop

from raiopt.attacks.rows import Rows, any_of_sample, inner_is_elementwise, select_rows, take_rows, with_rows
from raiopt.attacks.verify import Ball
from raiopt.optim import (
    ChainedParamTransformingOptimizer,
    LinfProjectedOptim,
    MomentumGradientOptim,
    ProjectedParameterOptimizer,
    SignedGradientOptim,
)

CHAIN = partial(
    ChainedParamTransformingOptimizer,
    partial(MomentumGradientOptim, mu=0.9),
    SignedGradientOptim,
    partial(ProjectedParameterOptimizer, p=2, epsilon=0.5),
    lr=0.1,
)


def stepped(make, parameter, times=2):
    optimizer = make([parameter])
    for number in range(times):
        parameter.grad = (parameter.detach() + number).cos()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "make", [partial(SGD, lr=0.1, momentum=0.9), partial(Adam, lr=0.1), partial(RMSprop, lr=0.1, centered=True), CHAIN]
)
def test_remaining_rows_do_not_depend_on_removed_rows(make):
    start = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
    parameter, index = start.clone().requires_grad_(), torch.tensor([0, 2, 3])
    optimizer = stepped(make, parameter)
    select_rows(optimizer, parameter, index)
    assert parameter.shape == parameter.grad.shape == (3, 3, 2)
    other = start.clone().requires_grad_()
    whole = stepped(make, other)
    assert torch.equal(parameter.grad, other.grad[index])
    for optim, x in ((optimizer, parameter), (whole, other)):
        for _ in range(3):
            x.grad = x.detach().sin()
            optim.step()
    assert torch.equal(parameter, other[index])
    assert not torch.equal(parameter, start[index])


def test_state_without_rows_is_not_modified():
    parameter = torch.zeros(3, 3, 2, requires_grad=True)
    optimizer = LinfProjectedOptim([parameter], lr=0.1, epsilon=0.5)
    group, wide = optimizer.param_groups[0], torch.arange(3.0).view(1, 3, 1)
    group.update(lower=-torch.ones(3, 3, 2), upper=wide, channels=torch.ones(3), scalar=torch.tensor(2.0), word="x")
    optimizer.state["own"] = torch.arange(6.0).view(3, 2)
    optimizer.state["other"] = torch.zeros(2, 3)
    optimizer.state[parameter] = {"step": torch.tensor(3.0), "sums": torch.arange(3.0), "count": 3}
    select_rows(optimizer, parameter, torch.tensor([2]))
    assert group["lower"].shape == (1, 3, 2)
    assert group["upper"] is wide
    assert (group["channels"].shape, group["scalar"].item(), group["word"], group["epsilon"]) == ((3,), 2.0, "x", 0.5)
    assert optimizer.state["own"].tolist() == [[4.0, 5.0]]
    assert optimizer.state["other"].shape == (2, 3)
    kept = optimizer.state[parameter]
    assert (kept["step"].item(), kept["sums"].tolist(), kept["count"]) == (3.0, [2.0], 3)
    assert optimizer.param_groups[0]["params"][0] is parameter
    assert parameter.grad is None


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (partial(SGD, lr=1), True),
        (partial(LinfProjectedOptim, InnerOpt=Adamax, epsilon=1), True),
        (partial(LinfProjectedOptim, InnerOpt=LBFGS, epsilon=1), False),
        (type("OwnSGD", (SGD,), {}), False),
        (type("OwnSGD", (SGD,), {"elementwise": True}), True),
        (type("Odd", (Adam,), {"elementwise": False}), False),
        (CHAIN, True),
    ],
)
def test_optimizers_known_to_be_elementwise(make, expected):
    assert inner_is_elementwise(make([torch.zeros(2, 2, requires_grad=True)])) is expected


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=20))
def test_flags_of_one_row_apply_to_all_rows_of_the_sample(pairs):
    pairs = sorted(pairs)
    samples, happened = (torch.tensor(values) for values in zip(*pairs, strict=True))
    known = Rows(**dict.fromkeys(Rows.__dataclass_fields__, samples))
    expected = [any(hit for other, hit in pairs if other == sample) for sample in samples.tolist()]
    assert any_of_sample(known, happened).tolist() == expected


@dataclass(frozen=True)
class Held:
    values: torch.Tensor
    table: torch.Tensor
    ball: Ball
    none: torch.Tensor | None = None
    number: int = 3


@given(st.integers(1, 8), st.randoms(use_true_random=False))
def test_rows_of_a_dataclass_are_taken_and_put_back(n, random):
    index = torch.tensor(random.sample(range(n), random.randint(1, n)))
    held = Held(torch.arange(n), torch.arange(2 * n).view(n, 2), Ball(2, torch.arange(n) / 1.0))
    part = take_rows(held, index)
    assert part.values.tolist() == index.tolist()
    assert part.table.tolist() == [[2 * i, 2 * i + 1] for i in index.tolist()]
    assert torch.as_tensor(part.ball.epsilon).tolist() == index.tolist()
    assert (part.none, part.number) == (None, 3)
    new = Held(-1 - part.values, -1 - part.table, Ball(2, -1 - index / 1.0))
    put = with_rows(held, index, new)
    expected = np.arange(n)
    expected[index.numpy()] = -1 - index.numpy()
    assert put.values.tolist() == torch.as_tensor(put.ball.epsilon).tolist() == expected.tolist()
    assert held.values.tolist() == list(range(n))


def test_goals_keep_the_identity_of_the_labels():
    x = torch.arange(4)
    same = Rows(x, x, x, x, x, x, x, x, None)
    assert (taken := same.take(torch.tensor([1, 3]))).goals is taken.labels
    other = Rows(x, x, x, x.clone(), x, x, x, x, None)
    assert (taken := other.take(torch.tensor([1, 3]))).goals is not taken.labels
    assert len(taken) == 2
