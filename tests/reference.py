"""The mathematics once more, in NumPy and float64, by other means than the package uses."""

import math
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float64]]


def array(x: Tensor | float) -> Array:
    return np.asarray(x.detach().double().cpu().numpy() if isinstance(x, Tensor) else x, dtype=np.float64)


def rows(shape: tuple[int, ...], param_ndim: int | None) -> tuple[int, ...]:
    """The shape of the batch, from the table of `param_ndim` in words: how many dimensions belong to a datum."""
    ndim = len(shape)
    own = ndim if param_ndim is None else param_ndim if param_ndim >= 0 else ndim + param_ndim
    datum = tuple(shape[ndim - own :])
    return (math.prod(shape) // max(1, math.prod(datum)), *(datum or (1,)))


def norms(x: Array, p: float) -> Array:
    flat = np.abs(x.reshape(len(x), -1))
    largest = np.maximum(flat.max(axis=1), np.finfo(np.float64).tiny)
    scaled = np.linalg.norm(flat / largest[:, None], ord=p, axis=1)
    return scaled * largest


def normalize(x: Array, p: float) -> Array:
    size = norms(x, p)
    return x / np.where(size == 0, 1.0, size).reshape(-1, *[1] * (x.ndim - 1))


def project_linf(x: Array, epsilon: float | Array, lower: Array | float, upper: Array | float) -> Array:
    return np.minimum(np.maximum(x, np.maximum(-epsilon, lower)), np.minimum(epsilon, upper))


def project_l2(x: Array, epsilon: float | Array, lower: Array | float, upper: Array | float) -> Array:
    """The nearest point z = clip(x / (1 + mu)) of ball and box: the multiplier mu >= 0 by bisection."""
    radius = np.broadcast_to(np.asarray(epsilon, dtype=np.float64).reshape(-1), len(x))
    ones = [1] * (x.ndim - 1)
    near, far = np.zeros(len(x)), np.ones(len(x))
    for _ in range(160):
        scale = (near + far) / 2
        inside = norms(np.clip(x * scale.reshape(-1, *ones), lower, upper), 2) <= radius
        near, far = np.where(inside, scale, near), np.where(inside, far, scale)
    whole = np.clip(x, lower, upper)
    fits = (norms(whole, 2) <= radius).reshape(-1, *ones)
    return np.where(fits, whole, np.clip(x * near.reshape(-1, *ones), lower, upper))
