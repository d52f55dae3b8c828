"""Temporarily freezes weights and sets modules to eval mode, and restores the previous state."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def freeze(*items: Tensor | nn.Module | Optimizer | Iterable[Any]) -> Callable[[], None]:
    """Turns off `requires_grad` of tensors, and returns a function that restores each flag.

    Args:
        items: Tensors, modules, optimizers, or iterables of tensors or parameter groups.

    Raises:
        TypeError: If an item is anything else.

    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> unfreeze = freeze(net)
    >>> net.weight.requires_grad
    False
    >>> unfreeze()
    >>> net.weight.requires_grad
    True
    """
    flags = [(tensor, tensor.requires_grad) for tensor in _tensors(items)]
    for tensor, _ in flags:
        tensor.requires_grad_(False)

    def unfreeze() -> None:
        for tensor, flag in flags:
            tensor.requires_grad_(flag)

    return unfreeze


def _tensors(items: Iterable[Any]) -> Iterator[Tensor]:
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, nn.Module):
            yield from item.parameters()
        elif isinstance(item, Optimizer):
            yield from _tensors(item.param_groups)
        elif isinstance(item, Mapping) and "params" in item:
            yield from _tensors([item["params"]])
        elif isinstance(item, Iterable) and not isinstance(item, str | bytes | Mapping):
            yield from _tensors(item)
        else:
            raise TypeError(f"{item!r} must be a tensor, a module, an optimizer, or an iterable of them.")


@contextmanager
def frozen(*items: Tensor | nn.Module | Optimizer | Iterable[Any]) -> Iterator[None]:
    """Freezes the same items as `freeze` within a context, or during each call of a decorated function.

    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> with frozen(net):
    ...     net.weight.requires_grad
    False
    >>> net.weight.requires_grad
    True
    """
    unfreeze = freeze(*items)
    try:
        yield
    finally:
        unfreeze()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Sets modules to eval mode within the context, and restores the mode of each submodule on exit."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training
