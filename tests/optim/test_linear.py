"""How much of the strongest perturbation of a linear model each optimizer finds: the cases are in `linear.py`."""

import math

import numpy as np
import pytest
import torch

from tests.optim.linear import CASES, EPSILON, Case, largest_increase, problem
from tests.reference import array


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_search_ends_at_the_strongest_perturbation(case: Case) -> None:
    shares = case.shares()
    assert shares.min() >= 0.99
    assert shares.max() <= 1 + 1e-6


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_without_a_box_the_largest_increase_is_the_dual_norm(p: float) -> None:
    images, weights = problem()
    dual = {1: math.inf, 2: 2, math.inf: 1}[p]
    norms = np.linalg.norm(array(weights).reshape(len(weights), -1), ord=dual, axis=1)
    np.testing.assert_allclose(largest_increase(images, weights, p, EPSILON[p], box=False), EPSILON[p] * norms)


@pytest.mark.parametrize(
    ("p", "epsilon", "pixels", "expected"),
    [
        (math.inf, 0.75, False, 8 * 0.5 + (6 + 4) * 0.75),
        (2, 1.0, False, 8 * 0.5 + math.sqrt(0.75) * math.hypot(6, 4)),
        (2, 9.0, False, 14.0),
        (1, 1.0, False, 8 * 0.5 + 6 * 0.5),
        (0, 1.0, False, 6.0),
        (0, 1.0, True, 8 * 0.5 + 4.0),
    ],
)
def test_with_a_box_the_largest_increase_agrees_with_a_direct_computation(
    p: float, epsilon: float, pixels: bool, expected: float
) -> None:
    weights = torch.tensor([[[8.0, -6.0], [4.0, 0.0]]])
    images = torch.tensor([[[0.5, 1.0], [0.0, 0.0]]])
    found = largest_increase(images, weights, p, epsilon, box=True, pixels=pixels)
    np.testing.assert_allclose(found, [expected])
