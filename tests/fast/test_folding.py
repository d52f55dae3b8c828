"""Folding against the plain network in float64, where only rounding near 1e-16 may differ."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from raiopt.fast.equivalence import answer
from raiopt.fast.folding import fold_
from tests.attacks.networks import lively, network

NETWORKS = {  # torchvision's name: batch norms that follow a convolution, of all
    "resnet18": (20, 20),
    "mobilenet_v3_small": (34, 34),
    "shufflenet_v2_x0_5": (56, 56),
    "densenet121": (59, 121),
    "efficientnet_b0": (49, 49),
    "squeezenet1_1": (0, 0),
}


def count(net):
    return sum(isinstance(part, nn.BatchNorm2d) for part in net.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_stay_the_same(name):
    folds, norms = NETWORKS[name]
    net = network(name).double()
    images = torch.rand(3, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    folded = copy.deepcopy(net)
    assert fold_(folded) == (folds, "")
    assert (count(net), count(folded)) == (norms, norms - folds)
    assert answer(net, images)[1].abs().max() > 0
    for found, expected in zip(answer(folded, images), answer(net, images), strict=True):
        assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_each_kind_of_convolution(bias, affine, padding):
    conv = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2, bias=bias, padding_mode=padding)
    net = lively(nn.Sequential(conv, nn.BatchNorm2d(6, affine=affine, eps=0.1), nn.Flatten())).double()
    folded = copy.deepcopy(net)
    images = torch.rand(2, 4, 5, 5, dtype=torch.float64)
    assert fold_(folded) == (1, "")
    assert_close(answer(folded, images), answer(net, images), rtol=1e-11, atol=1e-11)


class Branches(nn.Module):
    """A forward pass that cannot be traced, over parts that can."""

    def __init__(self, part):
        super().__init__()
        self.parts = nn.ModuleList([part, nn.Flatten()])

    def forward(self, x):
        if x.max() > 0:
            x = self.parts[0](x)
        return self.parts[1](x)


def test_parts_of_a_model_that_cannot_be_traced_are_folded():
    net = lively(Branches(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))).double()
    folded = copy.deepcopy(net)
    folds, untraced = fold_(folded)
    assert folds == 1
    assert untraced.startswith("Branches: TraceError")
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    assert_close(answer(folded, images), answer(net, images), rtol=1e-11, atol=1e-11)


class Twice(nn.Module):
    """One convolution with one or two batch norms behind it."""

    def __init__(self, *, norms):
        super().__init__()
        self.conv, self.first = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second = nn.BatchNorm2d(3) if norms == 2 else self.first

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x)).relu())).flatten(1)


class Both(nn.Sequential):
    """The convolution's own output is used as well."""

    def forward(self, x):
        x = self[0](x)
        return (x + self[1](x)).flatten(1)


def hooked():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    net[0].register_forward_hook(lambda *args: args[-1] * 2)
    return net


def training():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)).eval()
    net[1].train()
    return net


@pytest.mark.parametrize(
    "net",
    [
        Twice(norms=2).eval(),
        Twice(norms=1).eval(),
        Both(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)).eval(),
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)).eval(),
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.BatchNorm2d(3)).eval(),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3)), nn.BatchNorm2d(3)).eval(),
        hooked().eval(),
        training(),
    ],
)
def test_modules_that_are_not_a_pair_are_kept(net):
    before = str(net)
    assert fold_(net)[0] == 0
    assert str(net) == before
