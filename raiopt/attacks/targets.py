"""The rules that choose and order the target classes of each sample."""

from collections.abc import Callable

import torch
from torch import Tensor

from raiopt import checks
from raiopt.transforms import norms

RULES = ("next", "least_likely", "likely", "malt")
MAX_CANDIDATES = 100
"""The number of likely classes that MALT compares: each costs a backward pass."""


def ordered(rule: int | str, count: int, logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the first `count` targets (N, count) of each sample, ordered by a rule on the clean logits (N, C).

    Args:
        rule: A class; "next": the classes after the label; "least_likely": the other classes by increasing logit;
            "likely": by decreasing logit. "malt" needs gradients, so here it gives the same classes as "likely".

    >>> ordered("likely", 2, torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([[2, 1]])
    """
    classes = logits.shape[1]
    if not isinstance(rule, str):
        checks.number("target", rule, low=0, high=classes - 1, integer=True)
        return torch.full_like(labels, int(rule))[:, None]
    if count >= classes:
        raise ValueError(f"num_targets={count} must be below the number of classes, which is {classes}.")
    if rule == "next":
        return (labels[:, None] + 1 + torch.arange(count, device=labels.device)) % classes
    largest_first = rule != "least_likely"
    others = logits.scatter(1, labels[:, None], float("-inf" if largest_first else "inf"))
    return others.argsort(dim=1, descending=largest_first, stable=True)[:, :count]


def candidates(classes: int) -> int:
    """Returns the number of classes that `nearest` compares, with one backward pass each."""
    return min(MAX_CANDIDATES, classes - 1)


def nearest(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, count: int, p: float | None
) -> tuple[Tensor, int]:
    """Returns the `count` classes (N, count) with the nearest linearized boundaries, and the number of backward passes.

    The distance to the boundary between label y and class c is (z_y - z_c) / |grad (z_y - z_c)|, with the norm dual to
    that of the ball: MALT, Melamed et al., 2024 (https://arxiv.org/abs/2407.02240). Only the most likely classes are
    candidates.

    Args:
        p: The order of the ball's norm; 0 is treated as 1, None (no ball) as 2.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(images)
        taken = candidates(logits.shape[1])
        likely = ordered("likely", taken, logits.detach(), labels)
        gaps = logits.gather(1, labels[:, None]) - logits.gather(1, likely)
        dual = {None: 2.0, 2.0: 2.0, float("inf"): 1.0}.get(p, float("inf"))
        sizes = []
        for k in range(taken):  # one by one: all gradients at once would need the memory of `taken` image batches
            slope = torch.autograd.grad(gaps[:, k].sum(), images, retain_graph=k + 1 < taken)[0]
            sizes.append(norms(slope.flatten(1), dual))
    sizes = torch.cat(sizes, dim=1)
    distances = gaps.detach().float() / sizes.clamp_(min=torch.finfo(sizes.dtype).tiny)
    return likely.gather(1, distances.argsort(dim=1, stable=True)[:, :count]), taken
