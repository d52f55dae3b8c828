"""Networks in channels_last give the same logits and gradients, and stay in that layout."""

import pytest
import torch
from torch.testing import assert_close

from raiopt.fast.layout import in_channels_last
from raiopt.zoo.vision import models


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "resnet18"])
def test_the_values_are_the_same(name):
    torch.manual_seed(0)
    net = models.get_model(name, weights=None).double().eval()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    logits = net(images)
    (expected,) = torch.autograd.grad(logits.square().sum(), images)
    output = in_channels_last(net)(images.contiguous(memory_format=torch.channels_last))
    (gradient,) = torch.autograd.grad(output.square().sum(), images)
    assert_close(output, logits)
    assert_close(gradient, expected)


def test_blocks_of_a_shufflenet_stay_in_the_layout():
    net = models.shufflenet_v2_x0_5(weights=None).eval()
    layouts = []
    for block in (net.stage2[0], net.stage2[1]):
        block.register_forward_hook(
            lambda *call: layouts.append(call[2].is_contiguous(memory_format=torch.channels_last))
        )
    images = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    net(images)
    assert layouts == [False, False]  # torchvision's own; if this fails, the replacement is no longer needed
    in_channels_last(net)(images)
    assert layouts[2:] == [True, True]
