"""Random starts in a ball, and randomness that belongs to a sample instead of a batch."""

import hashlib
import math

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

    The direction is that of a normal vector, the d-th power of the radius is uniform. The arguments are those of
    `uniform_like_linf_n_ball_`; here each datum of `as_batch` has its own ball.

    >>> x = uniform_like_l2_n_ball_(torch.zeros(2, 3), epsilon=0.5)
    >>> x.norm(dim=1) <= 0.5
    tensor([True, True])
    """
    data = as_batch(x, param_ndim)
    checks.number("epsilon", epsilon, low=0)
    work = torch.promote_types(x.dtype, torch.float32)  # half precision draws too coarse radii
    direction = torch.empty(data.shape, dtype=work, device=x.device).normal_(generator=generator)
    share = torch.empty(len(data), *[1] * (data.ndim - 1), dtype=work, device=x.device).uniform_(generator=generator)
    radius = share.pow_(1 / math.prod(data.shape[1:])).mul_(epsilon)
    data.copy_(transforms.normalize_(direction, p=2).mul_(radius))
    transforms.project_l2_(data, epsilon)
    return x


def keyed_generator(seed: int, sample_id: int, restart: int = 0) -> Generator:
    """Returns a generator on the CPU whose stream depends on nothing but the three numbers.

    So a sample draws the same numbers whatever the batch, its order or the shard it is part of.

    >>> torch.rand(2, generator=keyed_generator(0, 17)) == torch.rand(2, generator=keyed_generator(0, 17))
    tensor([True, True])
    """
    key = [
        checks.number(name, value, integer=True)
        for name, value in (("seed", seed), ("sample_id", sample_id), ("restart", restart))
    ]
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little"))
