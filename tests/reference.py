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
    if p == 0:
        return np.count_nonzero(flat, axis=1).astype(np.float64)
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


def project_l1(x: Array, epsilon: float | Array, lower: Array | float, upper: Array | float) -> Array:
    """The nearest point clip(sign(x) max(|x| - level, 0)) of ball and box: the level >= 0 by bisection."""
    radius = np.broadcast_to(np.asarray(epsilon, dtype=np.float64).reshape(-1), len(x))
    ones = [1] * (x.ndim - 1)

    def shrunk(level: Array) -> Array:
        return np.clip(np.sign(x) * np.maximum(np.abs(x) - level.reshape(-1, *ones), 0), lower, upper)

    low, high = np.zeros(len(x)), norms(x, np.inf)
    for _ in range(200):
        level = (low + high) / 2
        outside = norms(shrunk(level), 1) > radius
        low, high = np.where(outside, level, low), np.where(outside, high, level)
    return shrunk(np.where(norms(shrunk(np.zeros(len(x))), 1) <= radius, 0.0, high))


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


def support(x: Array, p: float, epsilon: float, lower: Array, upper: Array) -> Array:
    """The point of ball and box that has the largest inner product with x."""
    room = np.where(x > 0, upper, np.where(x < 0, -lower, 0.0))
    if p == np.inf:
        return np.sign(x) * np.minimum(room, epsilon)
    if p == 1:  # fill by size
        best = np.zeros_like(x).reshape(len(x), -1)
        for row, (size, walls) in enumerate(zip(np.abs(x).reshape(best.shape), room.reshape(best.shape), strict=True)):
            left = epsilon
            for i in np.argsort(-size):
                best[row, i] = min(left, walls[i])
                left -= best[row, i]
        return np.sign(x) * best.reshape(x.shape)
    return project_l2(1e9 * normalize(x, 2), epsilon, lower, upper)  # p == 2: the projection of a point far out
