"""Random starts in a ball, and random numbers that depend on the sample, not on its batch."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from raiopt import checks, transforms
from raiopt.batching import as_batch


@torch.no_grad()
def uniform_like_linf_n_ball_(
    x: Tensor, epsilon: float = 1.0, param_ndim: int | None = -1, generator: Generator | None = None
) -> Tensor:
    """Fills `x` with points drawn uniformly from the Linf ball.

    Args:
        x: Any shape; `as_batch` splits it into data.
        epsilon: The radius.
        param_ndim: See `raiopt.as_batch`. It makes no difference to this ball.
        generator: None: the global one of the device.

    >>> uniform_like_linf_n_ball_(torch.zeros(2, 3), epsilon=0.5).abs().max() <= 0.5
    tensor(True)
    """
    as_batch(x, param_ndim)
    radius = checks.number("epsilon", epsilon, low=0)
    return x.uniform_(-radius, radius, generator=generator)


@torch.no_grad()
def uniform_like_l2_n_ball_(
    x: Tensor, epsilon: float = 1.0, param_ndim: int | None = -1, generator: Generator | None = None
) -> Tensor:
    """Fills `x` with data drawn uniformly from the L2 ball.

    The direction is that of a normal vector, and the d-th power of the norm is uniform. The arguments are those of
    `uniform_like_linf_n_ball_`; here each datum of `as_batch` has its own ball.

    >>> x = uniform_like_l2_n_ball_(torch.zeros(2, 3), epsilon=0.5)
    >>> x.norm(dim=1) <= 0.5
    tensor([True, True])
    """
    data, direction = _directions(x, epsilon, param_ndim, generator)
    share = direction.new_empty(len(data), *[1] * (data.ndim - 1)).uniform_(generator=generator)
    data.copy_(direction.mul_(share.pow_(1 / math.prod(data.shape[1:])).mul_(epsilon)))
    transforms.project_l2_(data, epsilon)
    return x


@torch.no_grad()
def uniform_like_l2_n_sphere_(
    x: Tensor, epsilon: float = 1.0, param_ndim: int | None = -1, generator: Generator | None = None
) -> Tensor:
    """Fills `x` with data drawn uniformly from the L2 sphere: random directions with norm `epsilon`.

    The arguments are those of `uniform_like_l2_n_ball_`.

    >>> uniform_like_l2_n_sphere_(torch.zeros(2, 3), epsilon=0.5).norm(dim=1)
    tensor([0.5000, 0.5000])
    """
    data, direction = _directions(x, epsilon, param_ndim, generator)
    data.copy_(direction.mul_(epsilon))
    transforms.project_l2_(data, epsilon)
    return x


def _directions(
    x: Tensor, epsilon: float, param_ndim: int | None, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """Returns `x` as a batch of data, and for each datum a uniformly random unit vector."""
    data = as_batch(x, param_ndim)
    checks.number("epsilon", epsilon, low=0)
    return data, transforms.normalize_(_work(data).normal_(generator=generator), p=2)


def _work(x: Tensor) -> Tensor:
    """Returns an empty tensor like `x`, at least in float32, because radii in half precision are too coarse."""
    return torch.empty(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


@torch.no_grad()
def uniform_like_l1_n_ball_(
    x: Tensor, epsilon: float = 1.0, param_ndim: int | None = -1, generator: Generator | None = None
) -> Tensor:
    """Fills `x` with data drawn uniformly from the L1 ball.

    The magnitudes are the first d of d + 1 exponential variables, divided by the sum of all (Devroye, 1986,
    Non-Uniform Random Variate Generation, chapter V, http://www.nrbook.com/devroye). The arguments are those of
    `uniform_like_l2_n_ball_`.

    >>> x = uniform_like_l1_n_ball_(torch.zeros(2, 3), epsilon=0.5)
    >>> x.abs().sum(dim=1) <= 0.5
    tensor([True, True])
    """
    data = as_batch(x, param_ndim)
    checks.number("epsilon", epsilon, low=0)
    size = _work(data).exponential_(generator=generator)
    rest = size.new_empty(len(data), *[1] * (data.ndim - 1)).exponential_(generator=generator)
    signs = _work(data).uniform_(-1, 1, generator=generator).sign_()
    data.copy_(size.mul_(signs).mul_(epsilon / (transforms.norms(size, 1) + rest)))
    transforms.project_l1_(data, epsilon)
    return x


@torch.no_grad()
def zeros_like_(x: Tensor, generator: Generator | None = None) -> Tensor:
    """Fills `x` with zeros: the clean image, or a black patch.

    >>> zeros_like_(torch.ones(2))
    tensor([0., 0.])
    """
    return x.zero_()


@torch.no_grad()
def gaussian_like_(
    x: Tensor, std: float = 1.0, param_ndim: int | None = -1, generator: Generator | None = None
) -> Tensor:
    """Fills `x` with independent normal numbers of mean 0 and standard deviation `std`; they lie in no ball.

    Args:
        x: As in `uniform_like_linf_n_ball_`, like `generator`.
        std: Standard deviation of each entry.
        param_ndim: Makes no difference here.

    >>> gaussian_like_(torch.empty(2, 3), std=0.0)
    tensor([[0., 0., 0.],
            [0., 0., 0.]])
    """
    as_batch(x, param_ndim)
    return x.normal_(0.0, checks.number("std", std, low=0), generator=generator)


def keyed_generator(seed: int, sample_id: int, restart: int = 0) -> Generator:
    """Returns a generator on the CPU whose stream depends only on the three numbers.

    So a sample draws the same numbers in any batch, order and shard.

    >>> torch.rand(2, generator=keyed_generator(0, 17)) == torch.rand(2, generator=keyed_generator(0, 17))
    tensor([True, True])
    """
    key = [
        checks.number(name, value, integer=True)
        for name, value in (("seed", seed), ("sample_id", sample_id), ("restart", restart))
    ]
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little"))


def uniform_rows(rows: Tensor, shape: Sequence[int], generators: Sequence[Generator] | None = None) -> Tensor:
    """Returns numbers drawn uniformly from [0, 1), of shape (N, *shape), for the N rows of a batch.

    They are drawn on the CPU, so that they are the same on every device; their type is that of the rows, at least
    float32.

    Args:
        rows: The batch, of shape (N, ...).
        shape: The shape of a row.
        generators: One per sample; all draw the same amount of numbers. If a sample has several rows, they share its
            generator; if a row spans several samples, it uses that of the first. None: the global generator.

    >>> generators = [keyed_generator(0, sample_id) for sample_id in (3, 17)]
    >>> uniform_rows(torch.zeros(2, 5), (4,), generators)[1] == torch.rand(4, generator=keyed_generator(0, 17))
    tensor([True, True, True, True])
    """
    drawn = torch.empty(len(rows), *shape)
    sources = [None] if generators is None else generators[: max(1, len(rows))]
    for part, source in zip(drawn.chunk(len(sources)), sources, strict=True):
        part.uniform_(generator=source)
    return drawn.to(rows.device, torch.promote_types(rows.dtype, torch.float32))
