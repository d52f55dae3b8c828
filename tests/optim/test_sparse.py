import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from raiopt.optim import L1ProjectedOptim, L1qFrankWolfe, L1qNormedGradientOptim, TopQGradientOptimizer
from tests.strategies import tensors

SPARSE = [TopQGradientOptimizer, L1qNormedGradientOptim]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def stepped(optimizer: torch.optim.Optimizer, gradient: Tensor) -> Tensor:
    (param,) = optimizer.param_groups[0]["params"]
    param.grad = gradient.clone()
    optimizer.step()
    return param.grad


@given(gradient=tensors(low=1, high=100), q=st.floats(0, 1))
def test_exactly_the_documented_number_of_entries_is_kept(gradient: Tensor, q: float) -> None:  # ties among them
    optimizer = TopQGradientOptimizer([torch.zeros_like(gradient, requires_grad=True)], q=q, lr=1.0)
    left = stepped(optimizer, gradient).flatten(1)
    assert (left.count_nonzero(1) == max(round((1 - q) * left.shape[1]), int(q < 1))).all()
    for row, before in zip(left, gradient.flatten(1), strict=True):
        assert torch.equal(
            row[row != 0].sort().values, before.sort(descending=True).values[: row.count_nonzero()].flip(0)
        )


@pytest.mark.parametrize("Optim", SPARSE)
@pytest.mark.parametrize(("name", "value"), [("q", -0.1), ("q", 1.1), ("dq", -0.1), ("dq", math.nan)])
def test_shares_lie_between_0_and_1(Optim: type[TopQGradientOptimizer], name: str, value: float) -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    with pytest.raises(ValueError, match=f"{name}={value} must be a finite number, at least 0, at most 1"):
        Optim([x], lr=1.0, **{"q": 0.5, name: value})
    optimizer = Optim([x], q=0.5, lr=1.0)
    with pytest.raises(ValueError, match=name):
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], name: value})


@pytest.mark.parametrize("Optim", [*SPARSE, L1ProjectedOptim, L1qFrankWolfe])
def test_q_has_no_default(Optim: type[TopQGradientOptimizer]) -> None:
    with pytest.raises(TypeError, match="'q'"):
        Optim([torch.zeros(1, 2, requires_grad=True)], **({"epsilon": 1.0} if Optim not in SPARSE else {}), lr=1.0)


def test_dq_draws_each_q_uniformly_within_its_limits() -> None:
    x = torch.zeros(1, 1000, requires_grad=True)
    optimizer = TopQGradientOptimizer([x], q=0.9, dq=0.2, generator=seeded(), lr=1.0)
    gradient = torch.rand(1, 1000, generator=seeded(1)) + 1
    shares = torch.tensor([1 - stepped(optimizer, gradient).count_nonzero() / 1000 for _ in range(400)]).sort().values
    assert shares[0] >= 0.7
    assert shares[-1] <= 1.0
    expected = torch.linspace(0.7, 1.0, 400)
    assert (shares - expected).abs().max() < 0.3 * 1.63 / math.sqrt(400)  # Kolmogorov and Smirnov, 1 %


def test_draws_come_from_the_generator_alone() -> None:
    gradient = torch.rand(1, 100, generator=seeded(1))
    before = torch.random.get_rng_state()

    def run() -> list[Tensor]:
        x = torch.zeros(1, 100, requires_grad=True)
        optimizer = L1ProjectedOptim([x], epsilon=1.0, q=0.5, dq=0.5, generator=seeded(), lr=1.0)
        return [stepped(optimizer, gradient).clone() for _ in range(5)]

    assert all(torch.equal(*pair) for pair in zip(run(), run(), strict=True))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_draws_the_same_numbers(copied: type) -> None:
    optimizer = TopQGradientOptimizer(
        [torch.zeros(1, 100, requires_grad=True)], q=0.5, dq=0.5, generator=seeded(), lr=1.0
    )
    gradient = torch.rand(1, 100, generator=seeded(1))
    stepped(optimizer, gradient)
    other = copied(optimizer)
    for _ in range(3):
        assert torch.equal(stepped(optimizer, gradient), stepped(other, gradient))


def test_a_generator_on_another_device_is_refused() -> None:
    class Elsewhere(Generator):
        device = torch.device("cuda")

    x = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match="generator must be on the CPU, not on cuda"):
        TopQGradientOptimizer([x], q=0.5, generator=Elsewhere(), lr=1.0)
    with pytest.raises(TypeError, match=r"generator=3 must be a torch.Generator or None"):
        TopQGradientOptimizer([x], q=0.5, generator=3, lr=1.0)
