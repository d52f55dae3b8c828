"""Losses against plain NumPy in float64, their laws, and their limits."""

from functools import partial

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from raiopt.perturbations import cross_entropy, dlr, kl_divergence, margin, probability_margin, targeted_dlr

LOSSES = {
    "cross_entropy": cross_entropy,
    "margin": margin,
    "probability_margin": probability_margin,
    "dlr": dlr,
    "targeted_dlr": lambda logits, target: targeted_dlr(logits, target, (target + 1) % logits.shape[1]),
    "kl_divergence": lambda logits, target: kl_divergence(logits, clean=logits.detach().roll(1, 1)),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@st.composite
def batches(draw, least=2):
    """Logits (N, classes) of which no two are equal, and classes (N,)."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(least, 7)))
    tenths = draw(hnp.arrays(np.int64, shape, elements=st.integers(-300, 300), unique=True))
    target = draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))
    return tenths / 10, target


def softmax(z):
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def gap_to(z, target):
    """The best other entry minus the target's."""
    return np.array([max(np.delete(row, t)) - row[t] for row, t in zip(z, target, strict=True)])


def call(loss, z, *classes):
    return loss(torch.from_numpy(z), *map(torch.from_numpy, classes)).numpy()


@given(batches())
def test_losses_of_one_class_agree_with_numpy(batch):
    z, target = batch
    rows, falling = np.arange(len(z)), -np.sort(-z, axis=1)
    assert_close(call(cross_entropy, z, target), -np.log(softmax(z)[rows, target]), rtol=1e-6, atol=1e-9)
    assert_close(call(margin, z, target), gap_to(z, target))
    assert_close(call(probability_margin, z, target), gap_to(softmax(z), target))
    scale = falling[:, 0] - falling[:, 2] + 1e-12 if z.shape[1] > 2 else 1.0
    assert_close(call(dlr, z, target), gap_to(z, target) / scale)


@given(batches(), st.integers(0, 10))
def test_targeted_dlr_agrees_with_numpy(batch, seed):
    z, target = batch
    label = np.random.default_rng(seed).integers(0, z.shape[1], len(z))
    rows, falling = np.arange(len(z)), -np.sort(-z, axis=1)
    scale = falling[:, 0] - (falling[:, 2] + falling[:, 3]) / 2 + 1e-12 if z.shape[1] > 3 else 1.0
    assert_close(call(targeted_dlr, z, target, label), (z[rows, label] - z[rows, target]) / scale)


@given(batches(), st.integers(0, 10))
def test_kl_divergence_agrees_with_numpy(batch, seed):
    z, _ = batch
    clean = np.random.default_rng(seed).normal(0, 3, z.shape)
    p, q = softmax(clean), softmax(z)
    assert_close(
        call(lambda logits, known: kl_divergence(logits, clean=known), z, clean),
        (p * np.log(p / q)).sum(1),
        rtol=1e-6,
        atol=1e-9,
    )


@given(batches(least=4), st.floats(-50, 50), st.floats(0.1, 20))
def test_dlr_is_invariant_to_scale_and_shift_and_bounded(batch, shift, scale):
    z, target = batch
    changed = z * scale + shift
    assert_close(call(dlr, changed, target), call(dlr, z, target))
    label = np.argmax(z, axis=1)
    assert_close(call(targeted_dlr, changed, target, label), call(targeted_dlr, z, target, label))
    right = target == label
    assert (call(dlr, z, target)[right] >= -1).all()
    assert (call(dlr, z, target)[right] < 0).all()
    assert (call(dlr, z, target)[~right] > 0).all()
    assert (call(probability_margin, z, target)[~right] >= 0).all()


def test_targeted_dlr_falls_on_the_way_to_the_target():
    label, target = torch.tensor([0]), torch.tensor([2])
    start, end = torch.tensor([5.0, 3, 1, 0, -1]), torch.tensor([1.0, 0, 5, 3, -1])
    losses = [targeted_dlr(torch.lerp(start, end, s)[None], target, label).item() for s in (0, 0.25, 0.5, 0.75, 1)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0 > losses[-1]


@every_loss
def test_the_gradient_is_that_of_differences(loss):
    torch.manual_seed(0)
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    still = partial(kl_divergence, clean=torch.randn(4, 6).double())
    compared = (
        (lambda z: still(z)) if loss is LOSSES["kl_divergence"] else lambda z: loss(z, torch.tensor([0, 1, 2, 3]))
    )
    assert torch.autograd.gradcheck(compared, [logits])


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(1, 4), st.integers(2, 7)), elements=st.sampled_from([0, 1, 1e4, -1e4, 9999])
    ),
    st.integers(0, 10),
)
def test_ties_and_large_logits_give_finite_losses_and_gradients(loss, dtype, values, seed):
    target = torch.from_numpy(np.random.default_rng(seed).integers(0, values.shape[1], len(values)))
    logits = torch.from_numpy(values).to(dtype).requires_grad_()
    before = logits.detach().clone()
    losses = loss(logits, target)
    (gradient,) = torch.autograd.grad(losses.sum(), [logits])
    assert losses.shape == (len(values),)
    assert losses.dtype == dtype
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    assert torch.equal(logits.detach(), before)


def test_the_gradient_of_a_tie_divides_by_rounding_once():
    logits = torch.tensor([[1.0, 1.0, 1.0, 0.0]], requires_grad=True)
    dlr(logits, torch.tensor([3])).sum().backward()
    assert logits.grad.abs().max() <= 1 / torch.finfo(torch.float32).eps


def test_margin_has_a_gradient_for_two_logits_only():
    values = torch.tensor([[1.0, 4.0, 2.0]], requires_grad=True)
    margin(values, torch.tensor([0])).sum().backward()
    assert_close(values.grad, torch.tensor([[-1.0, 1.0, 0.0]]))


def test_kl_divergence_has_no_gradient_at_the_clean_logits_nor_for_them():
    clean = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = clean.detach().clone().requires_grad_()
    losses = kl_divergence(logits, clean=clean)
    losses.sum().backward()
    assert_close(losses.detach(), torch.zeros(3))
    assert_close(logits.grad, torch.zeros(3, 5))
    assert clean.grad is None
