"""Compiled, a transform is one graph, and its fixed number of steps gives the result of the adaptive one."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.reference import array
from tests.transforms.table import TABLE, Row, check


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 3, 4, 2, generator=generator) * 3
    low, high = torch.rand(2, *x.shape, generator=generator)
    return x, -low, high


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_each_transform_is_one_graph_with_the_same_result(row: Row) -> None:
    x, lower, upper = batch()
    compiled = torch.compile(row.call, fullgraph=True, backend="eager")
    epsilon = torch.full((3, 1, 1, 1), 2.0) if row.box else 2.0
    found = x.clone()
    compiled(found, epsilon, lower, upper)
    check(row, array(x), array(found), 2.0, (array(lower), array(upper)), x.dtype)
    torch.testing.assert_close(found, row.call(x.clone(), epsilon, lower, upper), rtol=2e-6, atol=1e-6)
