"""The meaning of `param_ndim`: how a parameter is viewed as a batch of data."""

import math

from torch import Tensor, strided


def merged_dims(shape: tuple[int, ...], param_ndim: int | None) -> int:
    """Returns the number of leading dimensions that index the data; the remaining ones form each datum.

    Args:
        shape: The shape of a parameter.
        param_ndim: The number of trailing dimensions that form one datum. Negative: the number of leading dimensions
            that index the data. None: the whole tensor is one datum.
    """
    if param_ndim is None:
        return 0
    if isinstance(param_ndim, bool) or not isinstance(param_ndim, int):
        raise TypeError(f"param_ndim={param_ndim!r} must be an integer or None.")
    ndim = max(1, len(shape))  # a single number is one datum
    if abs(param_ndim) > ndim:
        raise ValueError(
            f"param_ndim={param_ndim} is out of range for a tensor of shape {tuple(shape)}: "
            f"it must lie between {-ndim} and {ndim}, or be None."
        )
    return -param_ndim if param_ndim < 0 else ndim - param_ndim


def as_batch(x: Tensor, param_ndim: int | None) -> Tensor:
    """Returns `x` or a view of it, of shape (N, d0, ...), in which (d0, ...) has `param_ndim` dimensions.

    Transforms treat each of the N data independently, so `param_ndim` chooses between one datum per image, per row or
    per entry, and a single datum for everything.

    Args:
        x: The tensor to view; the view shares its memory.
        param_ndim: See `merged_dims`. With 0 each entry is a datum of shape (1,).

    >>> import torch
    >>> images = torch.zeros(8, 3, 4, 5)
    >>> for param_ndim in (-1, 3, 1, 0, None):
    ...     print(param_ndim, tuple(as_batch(images, param_ndim).shape))
    -1 (8, 3, 4, 5)
    3 (8, 3, 4, 5)
    1 (96, 5)
    0 (480, 1)
    None (1, 8, 3, 4, 5)
    """
    if x.layout is not strided:
        raise TypeError(f"x must be dense, but its layout is {x.layout}: call .to_dense() first.")
    merged = merged_dims(x.shape, param_ndim)
    if merged == 1 < x.ndim:
        return x
    try:
        return x.view(math.prod(x.shape[:merged]), *(x.shape[merged:] or (1,)))
    except RuntimeError:
        raise ValueError(
            f"A tensor of shape {tuple(x.shape)} and strides {x.stride()} has no view for param_ndim={param_ndim}: "
            "make it contiguous, or choose param_ndim=-1 or None."
        ) from None
