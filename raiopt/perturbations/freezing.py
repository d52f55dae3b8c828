"""Contexts in which weights receive no gradient and a module evaluates; both restore what was there."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def frozen(*items: nn.Module | Tensor) -> Iterator[None]:
    """Turns off `requires_grad` of tensors and of modules' parameters, and restores each flag on leaving.

    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> with frozen(net):
    ...     net.weight.requires_grad
    False
    >>> net.weight.requires_grad
    True
    """
    tensors = [t for item in items for t in (item.parameters() if isinstance(item, nn.Module) else [item])]
    flags = [t.requires_grad for t in tensors]
    try:
        for tensor in tensors:
            tensor.requires_grad_(False)
        yield
    finally:
        for tensor, flag in zip(tensors, flags, strict=True):
            tensor.requires_grad_(flag)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Sets modules to eval mode, and restores the mode of each of their submodules on leaving."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training
