"""The state that a transforming optimizer keeps per parameter between steps."""

from typing import Any

import torch
from torch import Tensor

from raiopt.batching import as_batch


class State:
    """The values returned by `_init_state`, as attributes: tensors broadcast to the batch that the transforms receive.

    Assigning to a tensor, as in `state.radius = radius / 2`, writes into it in place; a plain number is replaced.
    """

    def __init__(self, kept: dict[str, Any], views: dict[str, Any]) -> None:
        vars(self).update(views, _kept=kept)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"The state has no {name!r}: _init_state must name it. It has {', '.join(self._kept)}.")

    def __setattr__(self, name: str, value: Any) -> None:
        now = getattr(self, name)
        if isinstance(now, Tensor):
            if value is not now:
                now.copy_(value) if isinstance(value, Tensor) else now.fill_(value)
        elif isinstance(value, Tensor):
            raise TypeError(f"state.{name} is one number: let _init_state return a float for one number per datum.")
        else:
            vars(self)[name] = self._kept[name] = value


def laid_out(initial: Any, param: Tensor, rows: Tensor) -> Any:
    """Returns an initial value in the layout in which it is stored, with the same rows as the parameter.

    Args:
        initial: See `ParamTransformingOptimizer._init_state`.
        param: The parameter in its group.
        rows: The parameter in the shape that the transforms receive.
    """
    if isinstance(initial, float):
        dtype = torch.promote_types(rows.dtype, torch.float32)
        initial = torch.full((len(rows),), initial, dtype=dtype, device=rows.device)
    elif not isinstance(initial, Tensor):
        return initial
    elif initial.shape == rows.shape and initial.dtype == rows.dtype:
        return initial.view(param.shape)
    count = min(len(rows), len(param)) if param.ndim else 1
    return initial.reshape(count, -1, *[1] * (param.ndim - 1))  # one more dimension than the parameter


def seen(kept: dict[str, Any], param: Tensor, rows: Tensor, param_ndim: int | None) -> State:
    """Returns stored values in the shape that the transforms receive, on the parameter's device and in its types."""
    views = dict(kept)
    for name, value in kept.items():
        if isinstance(value, Tensor):
            like_param = value.ndim == param.ndim
            dtype = param.dtype if like_param else torch.promote_types(param.dtype, torch.float32)
            kept[name] = value = value.to(param.device, dtype)  # torch casts only states whose key is a parameter
            views[name] = as_batch(value, param_ndim) if like_param else value.view(-1, *[1] * (rows.ndim - 1))
    return State(kept, views)
