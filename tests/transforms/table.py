"""Every transform, one row each, with the properties of its result. A new transform is one new row."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from raiopt import transforms
from tests import reference
from tests.reference import Array

#: How far each type may be off, relative to the radius or the largest entry: a few units in its last place.
PRECISION = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 4e-6, torch.float64: 1e-11}
NUMBERS = [1, 1.5, 2, 3, 10, math.inf]


@contextmanager
def seen(look: bool) -> Iterator[None]:
    """Without a look at the values a transform takes its fixed number of steps, as on a GPU and when compiled."""
    with patch.object(torch.compiler, "is_compiling", lambda: not look):
        yield


@dataclass(frozen=True)
class Case:
    """The input of a transform, in float64."""

    x: Array
    epsilon: float
    lower: Array | float
    upper: Array | float
    precision: float


@dataclass(frozen=True)
class Row:
    """A transform, called with (x, epsilon, lower, upper), of which it takes what it knows, and its law."""

    name: str
    call: Callable[[Tensor, float | Tensor, Any, Any], Tensor]
    law: Callable[[Case, Array], None]
    #: The ball that the result lies in.
    ball: float | None = None
    #: The result lies in the box.
    box: bool = False
    #: The number of dimensions that x needs.
    min_ndim: int = 2

    def __str__(self) -> str:
        return self.name


def _agrees(expected: Callable[[Case], Array]) -> Callable[[Case, Array], None]:
    def law(case: Case, found: Array) -> None:
        nearest = expected(case)
        largest = max(1e-4, np.abs(nearest).max(initial=0.0))
        np.testing.assert_allclose(found, nearest, rtol=0, atol=case.precision * largest)

    return law


def _keeps(q: float) -> Callable[[Case, Array], None]:
    def law(case: Case, found: Array) -> None:
        before, after = np.abs(case.x).reshape(len(found), -1), np.abs(found).reshape(len(found), -1)
        count = max(round((1 - q) * before.shape[1]), int(q < 1))
        order = np.sort(before, axis=1)[:, ::-1]
        order[:, count:] = 0
        np.testing.assert_array_equal(np.sort(after, axis=1)[:, ::-1], order)
        np.testing.assert_array_equal(found[found != 0], case.x[found != 0])

    return law


def _nearest_l0(case: Case, found: Array, pixels: bool) -> None:
    """No other choice of entries is nearer: there may be several that are as near."""
    x, size = case.x, len(case.x)
    clipped = np.clip(x, case.lower, case.upper)
    gains = np.square(x) - np.square(x - clipped)
    channels = -3
    gains = gains.sum(axis=channels) if pixels else gains
    best = np.sort(gains.reshape(size, -1), axis=1)[:, ::-1][:, : int(case.epsilon)].sum(axis=1)
    distance = np.square(x - found).reshape(size, -1).sum(axis=1)
    whole = np.square(x).reshape(size, -1).sum(axis=1)
    np.testing.assert_allclose(whole - distance, best, rtol=0, atol=case.precision * max(1e-4, whole.max()))
    assert ((found == 0) | (found == clipped)).all()
    used = (found != 0).any(axis=channels) if pixels else found != 0
    assert (used.reshape(size, -1).sum(axis=1) <= int(case.epsilon)).all()


def _supports(p: float) -> Callable[[Case, Array], None]:
    def law(case: Case, found: Array) -> None:
        best = reference.support(case.x, p, case.epsilon, case.lower, case.upper)
        products = [(case.x * z).reshape(len(found), -1).sum(axis=1) for z in (found, best)]
        np.testing.assert_allclose(*products, rtol=case.precision, atol=case.precision * 1e-4)

    return law


def _without_box(row: Row) -> Row:
    call = row.call
    return Row(
        f"{row.name}_without_box", lambda x, epsilon, _, __: call(x, epsilon, None, None), row.law, row.ball, False
    )


def _normalize(p: float) -> Row:
    return Row(
        f"normalize_{p}",
        lambda x, *_: transforms.normalize_(x, p),
        _agrees(lambda case: reference.normalize(case.x, p)),
    )


def _steepest(p: float) -> Row:
    return Row(
        f"steepest_{p}",
        lambda x, *_: transforms.steepest_(x, p),
        _agrees(lambda case: reference.steepest(case.x, p)),
    )


def _keep_top(q: float) -> Row:
    return Row(f"keep_top_{q}", lambda x, *_: transforms.keep_top_(x, q), _keeps(q))


def _project(p: float, project_: Callable[..., Tensor]) -> Row:
    def expected(case: Case) -> Array:
        return reference.PROJECTIONS[p](case.x, case.epsilon, case.lower, case.upper)

    return Row(f"project_{p}", project_, _agrees(expected), p, True)


PROJECTIONS = {1: transforms.project_l1_, 2: transforms.project_l2_, math.inf: transforms.project_linf_}
SUPPORTS = {1: transforms.support_l1_, 2: transforms.support_l2_, math.inf: transforms.support_linf_}

_CLAMP = Row(
    "clamp",
    lambda x, _, lower, upper: transforms.clamp_(x, lower, upper),
    _agrees(lambda case: np.clip(case.x, case.lower, case.upper)),
    box=True,
)
_IN_BALL = [
    *(_project(p, project_) for p, project_ in PROJECTIONS.items()),
    *(Row(f"support_{p}", support_, _supports(p), p, True) for p, support_ in SUPPORTS.items()),
    Row("project_0", transforms.project_l0_, partial(_nearest_l0, pixels=False), 0, True),
]
_PIXELS = Row(
    "project_0_pixels", partial(transforms.project_l0_, pixels=True), partial(_nearest_l0, pixels=True), None, True, 4
)
TABLE = [
    *map(_normalize, (1, 2, 3, math.inf)),
    *map(_steepest, (1, 1.5, 2, math.inf)),
    *map(_keep_top, (0.0, 0.3, 0.9)),
    _CLAMP,
    *_IN_BALL,
    *map(_without_box, _IN_BALL),
    _PIXELS,
]


def check(row: Row, x: Array, found: Array, epsilon: float, box: tuple[Array, Array], dtype: torch.dtype) -> None:
    """Asserts the row's law, its ball, its box, and that zero stays zero."""
    with_box = row.box or row.ball is None
    lower, upper = box if with_box else (-np.inf, np.inf)
    row.law(Case(x, epsilon, lower, upper, PRECISION[dtype]), found)
    if row.ball is not None:
        assert (reference.norms(found, row.ball) <= epsilon * (1 + 1e-6)).all()
    if row.box:
        assert ((box[0] <= found) & (found <= box[1])).all()
    assert not found[x == 0].any()
