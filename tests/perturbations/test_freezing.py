"""Freezing and eval mode restore what was there; criteria can be negated."""

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.testing import assert_close

from raiopt.perturbations import cross_entropy, evaluating, freeze, frozen, negate


def parts():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    net[0].bias.requires_grad_(False)
    return net, list(net.parameters())


@pytest.mark.parametrize(
    "of",
    [
        lambda net, tensors: net,
        lambda net, tensors: tensors,
        lambda net, tensors: iter(tensors),
        lambda net, tensors: SGD(tensors, lr=1.0),
        lambda net, tensors: [{"params": tensors[:2]}, {"params": iter(tensors[2:])}],
        lambda net, tensors: [net, tensors],
    ],
)
def test_what_is_frozen_and_restored(of):
    net, tensors = parts()
    flags = [tensor.requires_grad for tensor in tensors]
    unfreeze = freeze(of(net, tensors))
    assert not any(tensor.requires_grad for tensor in tensors)
    unfreeze()
    assert [tensor.requires_grad for tensor in tensors] == flags == [True, False, True, True]
    with frozen(of(net, tensors)):
        assert not any(tensor.requires_grad for tensor in tensors)
    assert [tensor.requires_grad for tensor in tensors] == flags


def test_a_decorated_function_is_frozen_at_each_call():
    net, tensors = parts()

    @frozen(tensors)
    @evaluating(net)
    def state():
        return net.training, any(tensor.requires_grad for tensor in tensors)

    assert state() == state() == (False, False)
    assert net.training
    assert tensors[0].requires_grad


def test_negated_losses():
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert_close(negate(cross_entropy)(logits, target), -cross_entropy(logits, target))
    assert negate(cross_entropy).__name__ == "cross_entropy"


@pytest.mark.parametrize("item", ["weights", 1, None, {"lr": 1.0}, [["weights"]]])
def test_other_items_are_refused_by_name(item):
    with pytest.raises(TypeError, match="must be a tensor, a module, an optimizer, or an iterable of them"):
        freeze(item)
