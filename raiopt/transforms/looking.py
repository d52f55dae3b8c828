"""Checks of tensor values that are only evaluated where it is cheap: on the CPU, outside torch.compile."""

import torch
from torch import Tensor


def can_read_cheaply(x: Tensor) -> bool:
    """Returns whether a value of `x` can be read without device synchronization or a graph break."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def all_between(x: Tensor, low: float, high: float) -> bool:
    """Returns whether all entries lie strictly between two numbers; False if checking would be expensive."""
    if not can_read_cheaply(x):
        return False
    if x.numel() == 0:
        return True
    least, most = torch.aminmax(x)
    return low < least.item() and most.item() < high  # False for NaN
