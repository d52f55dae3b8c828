"""Hyperparameters of a parameter group: what they may be, and how a transform sees them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from raiopt import checks
from raiopt.batching import as_batch, merged_dims

_BOUNDS = ("lower", "upper", "clamp_min", "clamp_max")


def check_group(group: dict[str, Any]) -> None:
    """Raises unless the values that every optimizer understands fit together and fit the group's parameters."""
    for name in ("grad_scale", "grad_bias"):
        checks.number(name, group[name])
    if "lr" in group:
        checks.number("lr", group["lr"], low=0)
    radius, bounds = group.get("epsilon"), {name: group[name] for name in _BOUNDS if group.get(name) is not None}
    if radius is not None:
        checks.number("epsilon", radius, low=0)
    for name, bound in bounds.items():
        low, high = 0 if name == "upper" else None, 0 if name == "lower" else None
        checks.number(name, bound, low=low, high=high)
    for param in group["params"]:
        rows = as_batch(param.detach(), group["param_ndim"])
        tensors = {"epsilon": radius, **bounds}
        full = {name: _full(name, value, param, rows) for name, value in tensors.items() if isinstance(value, Tensor)}
        if "epsilon" in full and not _known(full["epsilon"] == full["epsilon"][:, :1]):
            raise ValueError(
                f"epsilon of shape {tuple(group['epsilon'].shape)} must be constant within each datum: with "
                f"param_ndim={group['param_ndim']} the parameter is seen as {tuple(rows.shape)}, one radius per row."
            )
        low, high = (full.get(name, bounds.get(name)) for name in ("clamp_min", "clamp_max"))
        if low is not None and high is not None and not _known(low <= high):
            raise ValueError(f"clamp_min={low} is above clamp_max={high}.")


def _full(name: str, value: Tensor, param: Tensor, rows: Tensor) -> Tensor:
    """Returns `value` for each entry of the parameter, shaped (N, entries of a datum)."""
    try:
        return value.expand(param.shape).reshape(rows.shape).flatten(1)
    except RuntimeError:
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} must broadcast to the parameter's shape {tuple(param.shape)}; "
            f"one value for each of its rows has the shape {(*param.shape[:1], *[1] * (param.ndim - 1))}."
        ) from None


def _known(truth: bool | Tensor) -> bool:
    """Returns whether all entries are true, taking for granted what a tensor without values cannot say."""
    return truth if isinstance(truth, bool) else truth.device.type == "meta" or bool(truth.all())


@contextmanager
def seen_as_batch(group: dict[str, Any], param: Tensor, batch: Tensor, index: int) -> Iterator[None]:
    """Lets the group, for the time of one transform, hold its tensors in the form that broadcasts to `batch`.

    `epsilon` becomes (N, 1, ...), bounds take the shape of `batch`: views where the memory layout allows it. The number
    of the parameter stands there as `index`.
    """
    kept = {name: group[name] for name in ("epsilon", *_BOUNDS) if isinstance(group.get(name), Tensor)}
    merged = merged_dims(param.shape, group["param_ndim"]) if kept else 0
    group["index"] = index
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
        del group["index"]
        group.update(kept)
