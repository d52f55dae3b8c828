"""Hyperparameters of a parameter group: checks, and the shapes in which transforms receive them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from raiopt import checks
from raiopt.batching import as_batch, merged_dims
from raiopt.optim.traits import Traits

_BOUNDS = ("lower", "upper", "clamp_min", "clamp_max")


def check_group(group: dict[str, Any]) -> None:
    """Raises unless the hyperparameters of all optimizers are valid and fit the group's parameters."""
    for name in ("grad_scale", "grad_bias"):
        checks.number(name, group[name])
    check_lr(group.get("lr"))
    radius, bounds = group.get("epsilon"), {name: group[name] for name in _BOUNDS if group.get(name) is not None}
    if radius is not None:
        checks.number("epsilon", radius, low=0)
    for name, bound in bounds.items():
        low, high = 0 if name == "upper" else None, 0 if name == "lower" else None
        checks.number(name, bound, low=low, high=high)
    for param in group["params"]:
        rows = as_batch(param.detach(), group["param_ndim"])
        tensors = {"epsilon": radius, **bounds, **{name: group[name] for name in ("grad_scale", "grad_bias")}}
        full = {name: _full(name, value, param, rows) for name, value in tensors.items() if isinstance(value, Tensor)}
        if "epsilon" in full and not _known(full["epsilon"] == full["epsilon"][:, :1]):
            raise ValueError(
                f"epsilon of shape {tuple(group['epsilon'].shape)} must be constant within each datum: with "
                f"param_ndim={group['param_ndim']} the parameter is seen as {tuple(rows.shape)}, one radius per row."
            )
        low, high = (full.get(name, bounds.get(name)) for name in ("clamp_min", "clamp_max"))
        if low is not None and high is not None and not _known(low <= high):
            raise ValueError(f"clamp_min={low} is above clamp_max={high}.")


def check_ball(group: dict[str, Any], traits: Traits) -> None:
    """Raises unless the radius and the shape of the data fit the ball given by the traits."""
    if traits.ball is not None:
        low, remedy = (1, "In an L0 ball it is a number of entries.") if traits.ball == 0 else (0, "")
        checks.number("epsilon", group["epsilon"], low=low, remedy=remedy)
    for param in group["params"] if traits.pixels else []:
        rows = as_batch(param.detach(), group["param_ndim"])
        if rows.ndim < 4:
            raise ValueError(
                f"pixels=True needs data (C, H, W), but with param_ndim={group['param_ndim']} a parameter of shape "
                f"{tuple(param.shape)} is seen as {tuple(rows.shape)}: one datum would hold no channels."
            )


def check_lr(lr: Any) -> None:
    """Raises unless `lr` is a valid learning rate; None and functions are left to the inner optimizer."""
    if lr is not None and not callable(lr):
        checks.number("lr", lr, low=0)


def _full(name: str, value: Tensor, param: Tensor, rows: Tensor) -> Tensor:
    """Returns `value` broadcast to the parameter, with shape (N, entries per datum)."""
    try:
        return value.expand(param.shape).reshape(rows.shape).flatten(1)
    except RuntimeError:
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} must broadcast to the parameter's shape {tuple(param.shape)}; "
            f"one value for each of its rows has the shape {(*param.shape[:1], *[1] * (param.ndim - 1))}."
        ) from None


def _known(truth: bool | Tensor) -> bool:
    """Returns whether all entries are true; a tensor without values (on the meta device) counts as true."""
    return truth if isinstance(truth, bool) else truth.device.type == "meta" or bool(truth.all())


@contextmanager
def seen_as_batch(group: dict[str, Any], param: Tensor, batch: Tensor) -> Iterator[None]:
    """Reshapes the group's tensors so that they broadcast to `batch` while one transform runs.

    `epsilon` becomes (N, 1, ...), bounds take the shape of `batch`: views where the memory layout allows it.
    """
    kept = {name: group[name] for name in ("epsilon", *_BOUNDS) if isinstance(group.get(name), Tensor)}
    merged = min(merged_dims(param.shape, group["param_ndim"]), param.ndim) if kept else 0
    try:
        for name, value in kept.items():
            full = value.expand(param.shape)
            if name == "epsilon":
                first = full[(slice(None),) * merged + (0,) * (param.ndim - merged)]
                group[name] = first.reshape(len(batch), *[1] * (batch.ndim - 1))
            else:
                group[name] = full.reshape(batch.shape)
        yield
    finally:
        group.update(kept)
