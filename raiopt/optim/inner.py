"""The inner optimizer, which owns parameters, groups and state: how it is built, or taken ready made."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from raiopt import checks

#: A class, a partial of one, or an optimizer that exists already.
InnerOptimizer = Optimizer | Callable[..., Optimizer]


def built(InnerOpt: Any, params: ParamsT | None, own: dict[str, Any], kwargs: dict[str, Any]) -> Optimizer:
    """Returns a new inner optimizer, whose groups hold our hyperparameters beside its own."""
    if not callable(InnerOpt):
        raise TypeError(
            f"InnerOpt={InnerOpt!r} must be an optimizer class, a partial of one or a ready-made optimizer: "
            f"pass {_named_like(InnerOpt)} itself."
        )
    if params is None:
        raise TypeError("params=None must be the parameters to optimize, unless InnerOpt is a ready-made optimizer.")
    if "lr" in kwargs:
        checks.number("lr", kwargs["lr"], low=0)
    groups = params
    if not isinstance(params, Tensor):  # a bare tensor is refused by torch
        groups = list(params)
        if groups and not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        groups = [{**own, **group} for group in groups]  # pyright: ignore[reportGeneralTypeIssues]
    inner = InnerOpt(groups, **kwargs)
    if not isinstance(inner, Optimizer):
        raise TypeError(f"InnerOpt={InnerOpt!r} must make a torch optimizer, but makes {type(inner).__name__}.")
    return _differentiable_refused(inner)


def ready_made(inner: Optimizer, params: ParamsT | None, kwargs: dict[str, Any]) -> Optimizer:
    """Returns the inner optimizer if no argument was given that could not reach it any more."""
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
    """Returns the inner optimizer unless its step is meant to be differentiated."""
    if inner.defaults.get("differentiable"):
        raise ValueError("differentiable=True must not be set: the transforms are no part of the autograd graph.")
    return inner


def check_agreement(inner: Optimizer, own: dict[str, Any]) -> None:
    """Raises if an optimizer around the same inner one set a hyperparameter to another value: only one could hold."""
    for name in own.keys() & inner.defaults.keys():
        old, new = inner.defaults[name], own[name]
        if not _same(old, new):
            raise ValueError(
                f"{name}={new!r} would have no effect: optimizers around one {type(inner).__name__}, such as the "
                f"members of a chain, share their hyperparameters, and {name}={old!r} is set already."
            )


def _same(a: Any, b: Any) -> bool:
    """Returns whether two values of a hyperparameter are equal, of which each may be a tensor."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return a == b


def _named_like(word: Any) -> str:
    """Returns the optimizer of torch whose name is most like the word."""
    names = {name.lower(): name for name in vars(torch.optim) if isinstance(getattr(torch.optim, name), type)}
    return f"torch.optim.{names[(checks.near(str(word).lower(), names) or ['adam'])[0]]}"
