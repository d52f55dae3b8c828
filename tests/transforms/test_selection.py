import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raiopt import transforms
from tests.reference import array
from tests.strategies import FLOATS, tensors

TIED = tensors(low=-2, high=2).map(torch.round)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@given(x=tensors() | TIED, q=st.floats(0, 1))
def test_exactly_the_largest_survive(x: Tensor, q: float, dtype: torch.dtype) -> None:
    x = x.to(dtype)
    before, found = array(x).reshape(len(x), -1), transforms.keep_top_(x, q)
    assert found is x
    after, count = array(found).reshape(len(x), -1), max(round((1 - q) * before.shape[1]), int(q < 1))
    nonzero = (before != 0).sum(axis=1)
    assert ((after != 0).sum(axis=1) == np.minimum(count, nonzero)).all()
    assert (after[after != 0] == before[after != 0]).all()
    largest = -np.sort(-np.abs(before), axis=1)
    largest[:, count:] = 0
    np.testing.assert_array_equal(-np.sort(-np.abs(after), axis=1), largest)


@given(x=tensors())
def test_the_ends_keep_all_and_nothing(x: Tensor) -> None:
    assert torch.equal(transforms.keep_top_(x.clone(), 0.0), x)
    assert not transforms.keep_top_(x, 1.0).any()


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, math.inf])
def test_other_shares_are_refused(q: float) -> None:
    with pytest.raises(ValueError, match=rf"q={q} must be a finite number, at least 0, at most 1"):
        transforms.keep_top_(torch.ones(1, 2), q)


@given(x=tensors((4, 3, 2)) | tensors((4, 3, 2), low=-2, high=2).map(torch.round), data=st.data())
def test_a_count_for_each_datum_is_that_of_each_alone(x: Tensor, data: st.DataObject) -> None:
    counts = torch.tensor(data.draw(st.lists(st.integers(0, 8), min_size=4, max_size=4))).view(4, 1, 1)
    together = transforms.top_mask(x, counts.float())
    assert together.shape == x.shape
    assert ((together == 0) | (together == 1)).all()
    for i, count in enumerate(counts.flatten().tolist()):
        row = x[i : i + 1]
        assert torch.equal(together[i : i + 1], transforms.top_mask(row, counts[i : i + 1]))
        alone = transforms.top_mask(row, count)
        assert alone.sum() == together[i].sum() == min(count, 6)
        # of equal entries either may be chosen, but the chosen values are the same
        assert torch.equal(row[alone > 0].sort().values, x[i][together[i] > 0].sort().values)
        if len(row.unique()) == 6:
            assert torch.equal(alone[0], together[i])


@given(x=tensors(), count=st.integers(0, 70))
def test_chosen_entries_are_no_smaller_than_others(x: Tensor, count: int) -> None:
    mask = transforms.top_mask(x, count).flatten(1)
    for row, chosen in zip(x.flatten(1), mask > 0, strict=True):
        assert chosen.sum() == min(count, len(row))
        if chosen.any() and not chosen.all():
            assert row[chosen].min() >= row[~chosen].max()
