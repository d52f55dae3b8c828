"""The inner optimizer, which owns parameters, groups and state: constructed here, or ready-made."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from raiopt import checks
from raiopt.optim.groups import check_lr

#: Parameters or parameter groups; None if a ready-made inner optimizer already has them.
Params = ParamsT | None
#: A class, a partial of one, or a ready-made optimizer.
InnerOptimizer = Optimizer | Callable[..., Optimizer]


def built(InnerOpt: Any, params: Params, own: dict[str, Any], kwargs: dict[str, Any]) -> Optimizer:
    """Returns a new inner optimizer whose groups hold the wrapper's hyperparameters in addition to its own."""
    if not callable(InnerOpt):
        raise TypeError(
            f"InnerOpt={InnerOpt!r} must be an optimizer class, a partial of one or a ready-made optimizer: "
            f"pass {_named_like(InnerOpt)} itself."
        )
    if params is None:
        raise TypeError("params=None must be the parameters to optimize, unless InnerOpt is a ready-made optimizer.")
    check_lr(lr := kwargs.get("lr"))
    groups = params
    if not isinstance(params, Tensor):  # a bare tensor is refused by torch
        groups = list(params)
        if groups and not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        groups = [{**own, **group} for group in groups]  # pyright: ignore[reportGeneralTypeIssues]
    try:
        inner = InnerOpt(groups, **kwargs)
    except TypeError as error:
        if "lr" in kwargs and (lr is None or callable(lr)):
            raise TypeError(f"lr={lr!r} must be a number: InnerOpt={InnerOpt!r} takes nothing else.") from error
        raise
    if not isinstance(inner, Optimizer):
        raise TypeError(f"InnerOpt={InnerOpt!r} must make a torch optimizer, but makes {type(inner).__name__}.")
    return _differentiable_refused(inner)


def ready_made(inner: Optimizer, params: Params, kwargs: dict[str, Any]) -> Optimizer:
    """Returns a ready-made inner optimizer; raises if arguments were given that it would ignore."""
    if kwargs:
        raise TypeError(
            f"{', '.join(kwargs)} would have no effect: InnerOpt is a ready-made {type(inner).__name__}. "
            "Set it there, or pass the class."
        )
    owned = [id(param) for group in inner.param_groups for param in group["params"]]
    if params is not None and [id(param) for param in params] != owned:
        raise ValueError("params must be None: InnerOpt is a ready-made optimizer, which brings its own parameters.")
    return _differentiable_refused(inner)


def _differentiable_refused(inner: Optimizer) -> Optimizer:
    """Returns the inner optimizer; raises if its steps are part of the autograd graph."""
    if inner.defaults.get("differentiable"):
        raise ValueError("differentiable=True must not be set: the transforms are not part of the autograd graph.")
    return inner


def check_agreement(inner: Optimizer, own: dict[str, Any]) -> None:
    """Raises if an optimizer around the same inner one already set a hyperparameter to a different value."""
    for name in own.keys() & inner.defaults.keys():
        old, new = inner.defaults[name], own[name]
        if not _same(old, new):
            raise ValueError(
                f"{name}={new!r} would have no effect: {name}={old!r} is set already, and optimizers around one "
                f"{type(inner).__name__}, such as the members of a chain, share their hyperparameters."
            )


def _same(a: Any, b: Any) -> bool:
    """Returns whether two values of a hyperparameter, numbers or tensors, are equal."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return a == b


def _named_like(word: Any) -> str:
    """Returns the torch optimizer with the most similar name."""
    names = {name.lower(): name for name in vars(torch.optim) if isinstance(getattr(torch.optim, name), type)}
    return f"torch.optim.{names[(checks.near(str(word).lower(), names) or ['adam'])[0]]}"
