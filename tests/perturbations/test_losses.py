"""Losses against plain NumPy."""

import hypothesis.extra.numpy as hnp
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from raiopt.perturbations import cross_entropy, margin

logits = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=st.floats(-30, 30))


@given(logits, st.integers(0, 10))
def test_losses_agree_with_numpy(values, seed):
    target = np.random.default_rng(seed).integers(0, values.shape[1], len(values))
    rows = np.arange(len(values))
    own = values[rows, target]
    entropy = np.log(np.exp(values - own[:, None]).sum(1))
    others = np.where(np.arange(values.shape[1]) == target[:, None], -np.inf, values).max(1)
    assert_close(cross_entropy(torch.from_numpy(values), torch.from_numpy(target)), torch.from_numpy(entropy))
    assert_close(margin(torch.from_numpy(values), torch.from_numpy(target)), torch.from_numpy(others - own))


def test_margin_has_a_gradient_for_two_logits_only():
    values = torch.tensor([[1.0, 4.0, 2.0]], requires_grad=True)
    margin(values, torch.tensor([0])).sum().backward()
    assert_close(values.grad, torch.tensor([[-1.0, 1.0, 0.0]]))
