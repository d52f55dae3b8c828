"""Networks in the memory layout channels_last, including those whose code would leave it."""

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def in_channels_last(net: nn.Module) -> nn.Module:
    """Returns a copy of a network with its weights in channels_last, and the same values.

    The channel shuffle of torchvision's ShuffleNets copies its result into the other layout, and each following
    convolution copies it back: their blocks get a shuffle that keeps the layout. It saves 8 to 15 % of a forward and
    backward pass of torchvision's ShuffleNets at 224 by 224 pixels.
    """
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for part in net.modules():
        if (type(part).__module__, type(part).__name__) == ("torchvision.models.shufflenetv2", "InvertedResidual"):
            part.forward = MethodType(_shuffle_block, part)
    return net


def _shuffle_block(block: Any, x: Tensor) -> Tensor:
    """Computes `InvertedResidual.forward` (Ma et al. 2018, https://arxiv.org/abs/1807.11164, figure 3)."""
    kept, changed = x.chunk(2, dim=1) if block.stride == 1 else (block.branch1(x), x)
    joined = torch.cat([kept, block.branch2(changed)], dim=1)
    count, channels, height, width = joined.shape
    pairs = joined.permute(0, 2, 3, 1).reshape(count, height, width, 2, channels // 2)
    return pairs.transpose(3, 4).reshape(count, height, width, channels).permute(0, 3, 1, 2)
