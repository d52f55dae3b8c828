"""Perturbation models: modules whose parameters are what an attack optimizes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class PerturbationModel(Protocol):
    """The interface of a perturbation: a call that returns perturbed data without modifying its input, and parameters.

    An attack on a whole data set requires exactly one parameter, and uses these optional methods:

    - `is_shared(data) -> bool`: whether the samples of `data` (N, ...) share the parameter. If not, it has one row for
      each sample. Without the method: True.
    - `bounds(data) -> tuple[Tensor, Tensor] | None`: the limits of the parameter, shaped like it, that keep the
      perturbed data in [0, 1] for data in [0, 1]. None, or no method: there are no such limits, and the perturbed data
      are clamped.
    - `select(index)`: keeps these rows (a tensor of indices, (n,)) of every tensor with one row per sample, except the
      parameter, whose rows are selected by the attack. Without the method, all samples stay until the batch is done.
    """

    def __call__(self, data: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class AdditivePerturbation(nn.Module):
    """Adds a parameter `delta` to the data: one perturbation per sample, or one shared by all samples.

    Args:
        data_or_shape: The data (N, ...) to be perturbed, or its shape. The parameter takes the data's dtype and device.
        init_fn: Called as `init_fn(parameter, **init_fn_kwargs)`, fills the parameter in place. None: zeros.
        device: The device of the parameter. None: that of the data.
        dtype: The floating type of the parameter. None: that of the data.
        delta_ndim: The number of trailing dimensions of the data that `delta` has: None for all of them, a negative
            number counts from the data's; -1 gives one universal perturbation, which is broadcast over the samples.
        mask: Broadcasts to the data; `delta` is added only where it is not zero. None: everywhere.

    Raises:
        TypeError: If `dtype`, or that of the data, is not a floating type.
        ValueError: If `delta_ndim` or `mask` does not fit the data.

    >>> data = torch.ones(3, 2, 2)
    >>> AdditivePerturbation(data).delta.shape
    torch.Size([3, 2, 2])
    >>> universal = AdditivePerturbation(data, delta_ndim=-1, init_fn=torch.nn.init.constant_, val=0.5)
    >>> universal.delta
    Parameter containing:
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]], requires_grad=True)
    >>> universal(data)[2]
    tensor([[1.5000, 1.5000],
            [1.5000, 1.5000]], grad_fn=<SelectBackward0>)
    """

    mask: Tensor | None

    def __init__(
        self,
        data_or_shape: Tensor | Sequence[int],
        init_fn: Callable[..., Any] | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        delta_ndim: int | None = None,
        mask: Tensor | None = None,
        **init_fn_kwargs: Any,
    ) -> None:
        super().__init__()
        like = template(data_or_shape, device, dtype)
        self.delta = started(like.new_zeros(_trailing(like.shape, delta_ndim)), init_fn, init_fn_kwargs)
        self.register_buffer("mask", None if mask is None else _fitting(mask, like))
        if self.mask is not None:  # zero, because norms must not count entries that are never added
            used = self.mask.expand(like.shape).sum_to_size(self.delta.shape) > 0
            self.delta.detach().mul_(used)

    def forward(self, data: Tensor) -> Tensor:
        """Returns the perturbed data, in the data's shape."""
        return data + (self.delta if self.mask is None else self.delta * self.mask)

    def is_shared(self, data: Tensor) -> bool:
        """Returns whether several samples of `data` (N, ...) share `delta`."""
        return self.delta.shape != data.shape

    def select(self, index: Tensor) -> None:
        """Keeps these rows of a mask that has one row per sample."""
        if self.mask is not None and self.mask.ndim == self.delta.ndim and len(self.mask) > 1:
            self.mask = self.mask.index_select(0, index)

    def bounds(self, data: Tensor, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor] | None:
        """Returns `lower` and `upper` for `delta` such that the perturbed data stay in [low, high]; 0 off the mask.

        None if samples share `delta`: no single limit fits all of them, so the perturbed data must be clamped instead.
        """
        if self.is_shared(data):
            return None
        lower, upper = low - data, high - data
        return (lower, upper) if self.mask is None else (lower * self.mask, upper * self.mask)


def template(data_or_shape: Tensor | Sequence[int], device: torch.device | str | None, dtype: Any) -> Tensor:
    """Returns a tensor that uses no memory, with the shape, device and floating type of the data."""
    if isinstance(data_or_shape, Tensor):
        device, dtype = device or data_or_shape.device, dtype or data_or_shape.dtype
        data_or_shape = data_or_shape.shape
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype={dtype} must be a floating type; pass dtype=torch.float32 or convert the data.")
    try:
        shape = torch.Size(data_or_shape)
    except TypeError:
        raise TypeError(f"data_or_shape={data_or_shape!r} must be a tensor or a shape, as in (8, 3, 32, 32).") from None
    return torch.empty((), device=device, dtype=dtype).expand(shape)


def started(zeros: Tensor, init_fn: Callable[..., Any] | None, init_fn_kwargs: dict[str, Any]) -> nn.Parameter:
    """Returns `zeros` as a parameter that `init_fn` has filled."""
    if init_fn is None and init_fn_kwargs:
        raise TypeError(f"{', '.join(init_fn_kwargs)} would have no effect: give init_fn too.")
    parameter = nn.Parameter(zeros)
    if init_fn is not None:
        with torch.no_grad():
            init_fn(parameter, **init_fn_kwargs)
    return parameter


def _fitting(mask: Tensor, like: Tensor) -> Tensor:
    try:
        mask.expand(like.shape)
    except RuntimeError:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} must broadcast to the data's shape {tuple(like.shape)}."
        ) from None
    return mask.to(like.device) != 0


def _trailing(shape: torch.Size, ndim: int | None) -> torch.Size:
    if ndim is None:
        return shape
    if not -len(shape) <= ndim <= len(shape):
        raise ValueError(f"delta_ndim={ndim} must lie between {-len(shape)} and {len(shape)} for shape {tuple(shape)}.")
    return shape[-ndim if ndim < 0 else len(shape) - ndim :]
