"""A replacement of a model has the same outputs and gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raiopt.fast import equivalence
from raiopt.fast.equivalence import EquivalenceCheck, answer, off_by, seconds

IMAGES = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def plain(x: Tensor) -> Tensor:
    return x.flatten(1).square()


def test_answer_is_logits_and_gradient_of_their_weighted_sum():
    logits, gradient = answer(plain, IMAGES)
    assert torch.equal(logits, plain(IMAGES))
    torch.testing.assert_close(gradient.flatten(1), 2 * IMAGES.flatten(1) * torch.linspace(-1, 1, 9))


@pytest.mark.parametrize("model", [lambda x: x.flatten(1).detach(), lambda x: torch.ones(len(x), 2)])
def test_answer_without_a_gradient_is_zeros(model):
    assert torch.equal(answer(model, IMAGES)[1], torch.zeros_like(IMAGES))


def raising(x):
    raise KeyError("lost\nand more")


@pytest.mark.parametrize(
    ("candidate", "why_not"),
    [
        (lambda x: plain(x) * (1 + 1e-5), ""),
        (lambda x: plain(x) * 1.01, "logits differ by 0.0099 of the largest"),
        (lambda x: plain(x)[:, :5], "logits differ by 1 of the largest"),
        (lambda x: plain(x) / (x.flatten(1) > 0.5), "logits differ by 1 of the largest"),
        (lambda x: plain(x).detach(), "gradients differ by 1 of their norm"),
        (
            lambda x: plain(x) - plain(x).detach() * 0.0 + 0.1 * (plain(x) - plain(x).detach()),
            "gradients differ by 0.1",
        ),
        (raising, "KeyError: 'lost\\nand more'"),
    ],
)
def test_differences_are_detected(candidate, why_not):
    found = EquivalenceCheck(plain, IMAGES).differs(candidate)
    assert found.startswith(why_not) if why_not else found == ""
    assert EquivalenceCheck(plain, IMAGES, accepts_all=True).differs(candidate) == ""


def test_a_gradient_where_there_is_none_differs():
    assert EquivalenceCheck(lambda x: plain(x).detach(), IMAGES).differs(plain).startswith("gradients differ")


@given(scale=st.floats(-1e3, 1e3), offset=st.floats(-1e3, 1e3))
def test_off_by_is_a_share_of_the_largest(scale, offset):
    expected = torch.tensor([[1.0, -2.0]], dtype=torch.float64) * scale
    largest = max(2 * abs(scale), abs(scale + offset), abs(-2 * scale + offset))
    assert off_by(expected + offset, expected) == pytest.approx(abs(offset) / largest if offset else 0, abs=1e-9)


def test_off_by_with_entries_that_are_not_finite():
    sick = torch.tensor([[math.nan, 1.0], [math.inf, 2.0]])
    assert off_by(sick, sick) == 0
    assert off_by(sick.nan_to_num(), sick) == 1


def test_a_tie_decided_by_rounding_is_not_a_difference():
    def largest(x, tilt=0.0):
        return (x.flatten(1) + tilt * torch.arange(9)).max(1).values[:, None]

    even = torch.ones(4, 1, 3, 3)
    assert not torch.equal(answer(largest, even)[1], answer(lambda x: largest(x, 1e-6), even)[1])
    assert EquivalenceCheck(largest, even).differs(lambda x: largest(x, 1e-6)) == ""


def test_seconds_alternates_and_returns_the_best(monkeypatch):
    clock, calls = [0.0], []

    def taking(name, durations):
        def model(x):
            calls.append(name)
            clock[0] += next(durations)
            return plain(x)

        return model

    monkeypatch.setattr(equivalence.time, "perf_counter", lambda: clock[0])
    models = [taking("a", iter([3.0, 4.0])), taking("b", iter([7.0, 5.0]))]
    assert seconds(models, IMAGES) == [3.0, 5.0]
    assert calls == ["a", "b"] * 2
