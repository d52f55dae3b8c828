"""Reference implementations in NumPy and float64, by other methods than those of the package."""

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
    if p == 0:
        return np.count_nonzero(flat, axis=1).astype(np.float64)
    largest = np.maximum(flat.max(axis=1), np.finfo(np.float64).tiny)
    scaled = np.linalg.norm(flat / largest[:, None], ord=p, axis=1)
    return scaled * largest


def normalize(x: Array, p: float) -> Array:
    size = norms(x, p)
    return x / np.where(size == 0, 1.0, size).reshape(-1, *[1] * (x.ndim - 1))


def dual(p: float) -> float:
    """The q with 1/p + 1/q = 1."""
    return np.inf if p == 1 else 1.0 if p == np.inf else p / (p - 1)


def steepest(x: Array, p: float) -> Array:
    """The point of the unit ball with the largest inner product with x, from the case of equality in Hoelder's."""
    size = np.abs(x).reshape(len(x), -1)
    top = np.maximum(size.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    powers = (size == top) * 1.0 if p == 1 else (size > 0) * 1.0 if p == np.inf else (size / top) ** (dual(p) - 1)
    return normalize(np.sign(x) * powers.reshape(x.shape), p)


def has_view(shape: tuple[int, ...], strides: tuple[int, ...], param_ndim: int | None) -> bool:
    """Whether memory with these strides, in entries, holds the batch as it is: NumPy copies where it does not."""
    x = np.ndarray(shape, np.float64, np.zeros(math.prod(shape)), strides=[8 * stride for stride in strides])
    return np.shares_memory(x, x.reshape(rows(shape, param_ndim)))


def project_linf(x: Array, epsilon: float | Array, lower: Array | float, upper: Array | float) -> Array:
    return np.minimum(np.maximum(x, np.maximum(-epsilon, lower)), np.minimum(epsilon, upper))


def project_l2(x: Array, epsilon: float | Array, lower: Array | float, upper: Array | float) -> Array:
    """The nearest point clip(scale x, lower, upper) of ball and box: the scale in (0, 1] by bisection."""
    size, walls, radius = _parts(x, epsilon, lower, upper)
    near, far = np.zeros((len(x), 1)), np.ones((len(x), 1))
    for _ in range(160):
        scale = (near + far) / 2
        if ((scale == near) | (scale == far)).all():  # there is no number between them
            break
        inside = _l2(np.minimum(size * scale, walls)) <= radius
        near, far = np.where(inside, scale, near), np.where(inside, far, scale)
    whole = np.minimum(size, walls)
    nearest = np.where(_l2(whole) <= radius, whole, np.minimum(size * near, walls))
    return np.sign(x) * nearest.reshape(x.shape)


def project_l1(x: Array, epsilon: float | Array, lower: Array | float, upper: Array | float) -> Array:
    """The nearest point clip(sign(x) max(|x| - level, 0)) of ball and box: the level >= 0 by bisection."""
    size, walls, radius = _parts(x, epsilon, lower, upper)

    def shrunk(level: Array) -> Array:
        return np.minimum(np.maximum(size - level, 0), walls)

    low, high = np.zeros((len(x), 1)), size.max(axis=1, keepdims=True)
    for _ in range(120):
        level = (low + high) / 2
        if ((level == low) | (level == high)).all():
            break
        outside = shrunk(level).sum(axis=1, keepdims=True) > radius
        low, high = np.where(outside, level, low), np.where(outside, high, level)
    whole = shrunk(np.zeros_like(low))
    nearest = np.where(whole.sum(axis=1, keepdims=True) <= radius, whole, shrunk(high))
    return np.sign(x) * nearest.reshape(x.shape)


def _parts(x: Array, epsilon: float | Array, lower: Array | float, upper: Array | float) -> tuple[Array, Array, Array]:
    """The magnitudes (N, d), how large the box lets each become, and the radii (N, 1)."""
    walls = np.broadcast_to(np.where(x > 0, upper, -np.asarray(lower)), x.shape).reshape(len(x), -1)
    radius = np.broadcast_to(np.asarray(epsilon, dtype=np.float64).reshape(-1, 1), (len(x), 1))
    return np.abs(x).reshape(len(x), -1), walls, radius


def _l2(flat: Array) -> Array:
    return np.sqrt(np.square(flat).sum(axis=1, keepdims=True))


def project_l0(x: Array, epsilon: float | Array, lower: Array | float, upper: Array | float) -> Array:
    """A nearest point of the box with at most epsilon entries other than 0: those kept that gain most."""
    count = np.broadcast_to(np.asarray(epsilon, dtype=np.float64).reshape(-1), len(x))
    clipped = np.clip(x, lower, upper)
    gains = (np.square(x) - np.square(x - clipped)).reshape(len(x), -1)
    kept = np.zeros_like(gains)
    for row, number in enumerate(count):
        kept[row, np.argsort(-gains[row], kind="stable")[: int(number)]] = 1
    return clipped * kept.reshape(x.shape)


PROJECTIONS = {0: project_l0, 1: project_l1, 2: project_l2, np.inf: project_linf}


def support(x: Array, p: float, epsilon: float, lower: Array | float, upper: Array | float) -> Array:
    """A point of ball and box that has the largest inner product with x."""
    size, walls, _ = _parts(x, epsilon, lower, upper)
    if p == 2:  # the projection of a point far out
        return project_l2(1e30 * normalize(x, 2), epsilon, lower, upper)
    if p == 1:  # fill by size
        best = np.zeros_like(size)
        for row in range(len(x)):
            left = epsilon
            for i in np.argsort(-size[row]):
                best[row, i] = min(left, walls[row, i])
                left -= best[row, i]
    else:
        best = np.minimum(walls, epsilon)
    return np.sign(x) * best.reshape(x.shape)
