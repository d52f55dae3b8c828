import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raiopt import as_batch
from raiopt.sampling import keyed_generator, uniform_like_l2_n_ball_, uniform_like_linf_n_ball_
from tests import reference
from tests.reference import array
from tests.strategies import split

BALLS = {2: uniform_like_l2_n_ball_, math.inf: uniform_like_linf_n_ball_}
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


@pytest.mark.parametrize(("p", "d"), [(2, 1), (2, 5), (2, 40), (math.inf, 5)])
def test_the_radius_is_that_of_a_uniform_point(p: float, d: int) -> None:
    """In a ball of d dimensions the d-th power of the radius is uniform in [0, 1]."""
    x = BALLS[p](torch.zeros(4000, d), 2.0, generator=torch.Generator().manual_seed(0))
    share = torch.sort(torch.linalg.vector_norm(x.double() / 2, p, dim=1) ** d).values
    gap = (share - (torch.arange(4000) + 0.5) / 4000).abs().max()
    assert gap < 1.95 / math.sqrt(4000)  # Kolmogorov-Smirnov at the level of 0.1 %


@pytest.mark.parametrize("p", BALLS)
def test_no_direction_is_preferred(p: float) -> None:
    x = BALLS[p](torch.zeros(20000, 3), generator=torch.Generator().manual_seed(0))
    assert x.mean(0).abs().max() < 5 * x.std() / math.sqrt(20000)
    variance = x.var(0)
    assert (variance / variance.mean() - 1).abs().max() < 0.05


@pytest.mark.parametrize("sample", BALLS.values())
def test_the_generator_alone_decides(sample: Callable[..., Tensor]) -> None:
    before = torch.get_rng_state()
    a, b, c = (sample(torch.zeros(2, 3), generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sample", BALLS.values())
def test_bad_arguments_are_named(sample: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="epsilon=-1 must"):
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


def test_a_key_that_is_no_integer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"sample_id=1\.5 must be an integer"):
        keyed_generator(0, 1.5)  # pyright: ignore[reportArgumentType]
