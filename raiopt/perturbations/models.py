"""Perturbation models: modules whose parameters are what an attack optimizes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class PerturbationModel(Protocol):
    """What the solver asks of a perturbation: to perturb data without writing into it, and to show its parameters."""

    def __call__(self, data: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class AdditivePerturbation(nn.Module):
    """Adds a parameter `delta` to the data: one perturbation a sample, or one that all samples share.

    Args:
        data_or_shape: The data (N, ...) to be perturbed, or its shape. `delta` takes the data's dtype and device.
        init_fn: Called as `init_fn(delta, **init_fn_kwargs)`, fills `delta` in place. None: zeros.
        device: Of `delta`, in place of the data's.
        dtype: Of `delta`, in place of the data's; a floating type.
        delta_ndim: The number of trailing dimensions of the data that `delta` has: None for all of them, a negative
            number counts from the data's; -1 gives one universal perturbation, which is broadcast over the samples.

    Raises:
        TypeError: If `dtype`, or that of the data, is no floating type.
        ValueError: If `delta_ndim` does not fit the data.

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

    def __init__(
        self,
        data_or_shape: Tensor | Sequence[int],
        init_fn: Callable[..., Any] | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        delta_ndim: int | None = None,
        **init_fn_kwargs: Any,
    ) -> None:
        super().__init__()
        if init_fn is None and init_fn_kwargs:
            raise TypeError(f"{', '.join(init_fn_kwargs)} would have no effect: give init_fn too.")
        if isinstance(data_or_shape, Tensor):
            device, dtype = device or data_or_shape.device, dtype or data_or_shape.dtype
            shape = data_or_shape.shape
        else:
            shape = torch.Size(data_or_shape)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype={dtype} must be a floating type; pass dtype=torch.float32 or convert the data.")
        self.delta = nn.Parameter(torch.zeros(_trailing(shape, delta_ndim), device=device, dtype=dtype))
        if init_fn is not None:
            with torch.no_grad():
                init_fn(self.delta, **init_fn_kwargs)

    def forward(self, data: Tensor) -> Tensor:
        """Returns the perturbed data, of the data's shape."""
        return data + self.delta

    def is_shared(self, data: Tensor) -> bool:
        """Says whether several samples of `data` (N, ...) share `delta`."""
        return self.delta.shape != data.shape

    def bounds(self, data: Tensor, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor] | None:
        """Returns `lower` and `upper` for `delta` such that the perturbed data stay in [low, high].

        None if samples share `delta`: no single bound suits them all, so the perturbed data must be clamped instead.
        """
        return None if self.is_shared(data) else (low - data, high - data)


def _trailing(shape: torch.Size, ndim: int | None) -> torch.Size:
    if ndim is None:
        return shape
    if not -len(shape) <= ndim <= len(shape):
        raise ValueError(f"delta_ndim={ndim} must lie between {-len(shape)} and {len(shape)} for shape {tuple(shape)}.")
    return shape[-ndim if ndim < 0 else len(shape) - ndim :]
