import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raiopt import as_batch
from raiopt.sampling import (
    gaussian_like_,
    keyed_generator,
    uniform_like_l1_n_ball_,
    uniform_like_l2_n_ball_,
    uniform_like_l2_n_sphere_,
    uniform_like_linf_n_ball_,
)
from tests import reference
from tests.reference import array
from tests.strategies import split

BALLS = {1: uniform_like_l1_n_ball_, 2: uniform_like_l2_n_ball_, math.inf: uniform_like_linf_n_ball_}
SAMPLERS = [*BALLS.values(), uniform_like_l2_n_sphere_, gaussian_like_]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("p", BALLS)
@pytest.mark.parametrize("dtype", FLOATS)
@given(case=split(), epsilon=st.floats(0.01, 100), seed=st.integers(0, 2**32))
def test_each_datum_lies_in_its_ball(
    p: float, dtype: torch.dtype, case: tuple[tuple[int, ...], int | None], epsilon: float, seed: int
) -> None:
    shape, param_ndim = case
    x = torch.full(shape, math.nan, dtype=dtype, requires_grad=True)
    assert BALLS[p](x, epsilon, param_ndim, generator=torch.Generator().manual_seed(seed)) is x
    slack = 1e-6 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps
    assert (reference.norms(array(as_batch(x.detach(), param_ndim)), p) <= epsilon * (1 + slack)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@given(case=split(), epsilon=st.floats(0.01, 100), seed=st.integers(0, 2**32))
def test_each_datum_lies_on_its_sphere(
    dtype: torch.dtype, case: tuple[tuple[int, ...], int | None], epsilon: float, seed: int
) -> None:
    shape, param_ndim = case
    x = torch.full(shape, math.nan, dtype=dtype, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)
    assert uniform_like_l2_n_sphere_(x, epsilon, param_ndim, generator=generator) is x
    size = reference.norms(array(as_batch(x.detach(), param_ndim)), 2)
    slack = max(1e-6, torch.finfo(dtype).eps)
    assert (abs(size - epsilon) <= 3 * epsilon * slack).all()
    assert (size <= epsilon * (1 + slack)).all()


@pytest.mark.parametrize(("sample", "p"), [(BALLS[1], 1), (BALLS[2], 2), (uniform_like_l2_n_sphere_, 2)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_rounding_moves_no_point_out_of_the_ball(sample: Callable[..., Tensor], p: float, dtype: torch.dtype) -> None:
    x = sample(torch.zeros(5000, 2, dtype=dtype), 1 / 3, generator=torch.Generator().manual_seed(0))
    assert (reference.norms(array(x), p) <= 1 / 3 * (1 + 1e-6)).all()


def assert_uniform(share: Tensor) -> None:
    """Fails if numbers are not drawn uniformly from [0, 1]: Kolmogorov-Smirnov at the level of 0.1 %."""
    gap = (torch.sort(share.double()).values - (torch.arange(len(share)) + 0.5) / len(share)).abs().max()
    assert gap < 1.95 / math.sqrt(len(share))


@pytest.mark.parametrize(("p", "d"), [(1, 1), (1, 5), (1, 40), (2, 1), (2, 5), (2, 40), (math.inf, 5)])
def test_the_radius_is_that_of_a_uniform_point(p: float, d: int) -> None:
    """In a ball of d dimensions the d-th power of the radius is uniform in [0, 1]."""
    x = BALLS[p](torch.zeros(4000, d), 2.0, generator=torch.Generator().manual_seed(0))
    assert_uniform(torch.linalg.vector_norm(x.double() / 2, p, dim=1) ** d)


@pytest.mark.parametrize("d", [1, 2, 7])
def test_an_entry_is_that_of_a_uniform_point_of_the_l1_ball(d: int) -> None:
    """The share of the ball in which an entry's magnitude is above t is (1 - t)^d; its sign is a coin."""
    x = uniform_like_l1_n_ball_(torch.zeros(4000, d), 3.0, generator=torch.Generator().manual_seed(1)).double() / 3
    for entry in x.T:
        tail = (1 - entry.abs()) ** d
        assert_uniform(tail)
        assert_uniform(torch.where(entry > 0, 1 - tail / 2, tail / 2))


def test_an_entry_is_that_of_a_uniform_point_of_the_l2_sphere() -> None:
    """On a circle the angle is uniform; on a sphere each coordinate is (Archimedes)."""
    circle, sphere = (
        uniform_like_l2_n_sphere_(torch.zeros(4000, d), 2.0, generator=torch.Generator().manual_seed(2)) for d in (2, 3)
    )
    assert_uniform(torch.atan2(*circle.T) / (2 * math.pi) + 0.5)
    for entry in sphere.T:
        assert_uniform(entry / 4 + 0.5)
    assert set(uniform_like_l2_n_sphere_(torch.zeros(64, 1)).flatten().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("dtype", FLOATS)
def test_gaussian_entries_are_normal_and_independent(dtype: torch.dtype) -> None:
    x = torch.full((2000, 2), math.nan, dtype=dtype)
    assert gaussian_like_(x, 3.0, generator=torch.Generator().manual_seed(0)) is x
    share = torch.special.ndtr(x.double() / 3)
    assert_uniform(share.flatten())
    assert abs(torch.corrcoef(share.T)[0, 1].item()) < 4 / math.sqrt(2000)


@pytest.mark.parametrize("p", BALLS)
def test_no_direction_is_preferred(p: float) -> None:
    x = BALLS[p](torch.zeros(20000, 3), generator=torch.Generator().manual_seed(0))
    assert x.mean(0).abs().max() < 5 * x.std() / math.sqrt(20000)
    variance = x.var(0)
    assert (variance / variance.mean() - 1).abs().max() < 0.05


@pytest.mark.parametrize("sample", SAMPLERS)
def test_the_generator_alone_decides(sample: Callable[..., Tensor]) -> None:
    before = torch.get_rng_state()
    a, b, c = (sample(torch.zeros(2, 3), generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sample", SAMPLERS)
def test_bad_arguments_are_named(sample: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"(epsilon|std)=-1 must"):
        sample(torch.zeros(2, 3), -1)
    with pytest.raises(ValueError, match="param_ndim=3"):
        sample(torch.zeros(2, 3), 1.0, 3)
    assert sample(torch.ones(2, 3), 0).abs().max() == 0


@given(key=st.tuples(*[st.integers(0, 10**6)] * 3), other=st.tuples(*[st.integers(0, 10**6)] * 3))
def test_the_key_decides_the_stream(key: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    before = torch.get_rng_state()
    draw = torch.rand(4, generator=keyed_generator(*key))
    assert torch.equal(torch.rand(4, generator=keyed_generator(*key)), draw)
    assert torch.equal(torch.rand(4, generator=keyed_generator(*other)), draw) == (key == other)
    assert torch.equal(torch.get_rng_state(), before)


def test_neighbouring_keys_are_unrelated_and_never_change() -> None:
    draws = torch.stack([torch.rand(8, generator=keyed_generator(0, i)) for i in range(500)])
    assert len(draws.unique(dim=0)) == 500
    assert abs(draws.mean().item() - 0.5) < 0.02
    assert keyed_generator(0, 17).initial_seed() == keyed_generator(0, 17, 0).initial_seed()
    assert len({keyed_generator(*key).initial_seed() for key in [(1, 2, 3), (1, 3, 2), (12, 3, 0), (1, 23, 0)]}) == 4


def test_a_key_that_is_not_an_integer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"sample_id=1\.5 must be an integer"):
        keyed_generator(0, 1.5)  # pyright: ignore[reportArgumentType]
