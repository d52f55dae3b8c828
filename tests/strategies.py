"""Hypothesis strategies: shapes, tensors, and how to split them into data."""

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from tests import reference

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def shapes(min_ndim: int = 1, max_ndim: int = 4, max_side: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    return hnp.array_shapes(min_dims=min_ndim, max_dims=max_ndim, max_side=max_side)


def tensors(
    shape: tuple[int, ...] | st.SearchStrategy[tuple[int, ...]] | None = None,
    *,
    low: float = -100.0,
    high: float = 100.0,
    dtype: torch.dtype = torch.float32,
) -> st.SearchStrategy[Tensor]:
    """Tensors of ordinary magnitudes, zeros and repeated entries among them. Without a shape: (N, d0, ...)."""
    width = 64 if dtype is torch.float64 else 32
    elements = st.floats(low, high, width=width, allow_subnormal=False)
    arrays = hnp.arrays(
        np.float64 if width == 64 else np.float32, shapes(min_ndim=2) if shape is None else shape, elements=elements
    )
    return arrays.map(lambda array: torch.from_numpy(array).to(dtype))


def scales(exponent: int = 6) -> st.SearchStrategy[float]:
    """Powers of ten: to spread magnitudes."""
    return st.integers(-exponent, exponent).map(lambda e: 10.0**e)


@st.composite
def boxed(draw: st.DrawFn, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A tensor x of shape (N, d0, ...) with bounds lower <= 0 <= upper of its shape."""
    x = draw(tensors(**kwargs))
    walls = draw(tensors((2, *x.shape), low=0.0, high=2.0, dtype=x.dtype))  # one array is drawn sooner than two
    return x, -walls[0], walls[1]


@st.composite
def split(draw: st.DrawFn) -> tuple[tuple[int, ...], int | None]:
    """A shape, and a `param_ndim` that it allows."""
    shape = draw(shapes())
    return shape, draw(st.none() | st.integers(-len(shape), len(shape)))


def param_ndims(x: Tensor) -> list[int | None]:
    """Every `param_ndim` for which x has a view."""
    options = [None, *range(-x.ndim, x.ndim + 1)]
    return [n for n in options if reference.has_view(tuple(x.shape), x.stride(), n)]


@st.composite
def parameters(draw: st.DrawFn, **kwargs: Any) -> tuple[Tensor, int | None]:
    """A parameter of 0 to 5 dimensions, contiguous or with its channels last, and a `param_ndim` that it allows."""
    ndim = draw(st.integers(0, 5))
    x = draw(tensors(shapes(min_ndim=ndim, max_ndim=ndim, max_side=3), **kwargs))
    if x.ndim in LAYOUTS and draw(st.booleans()):
        x = x.to(memory_format=LAYOUTS[x.ndim])
    return x, draw(st.sampled_from(param_ndims(x)))
