"""Losses of logits (N, classes) with respect to classes (N,), one value per sample (N,), which an attack maximizes.

`targeted_dlr` is minimized instead, as is every loss in a targeted attack.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the cross entropy of each sample, of shape (N,), in nats.

    >>> cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor([0.6931])
    """
    return F.cross_entropy(logits, target, reduction="none")


def negate(criterion: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a criterion with the negated losses of another one.

    >>> negate(cross_entropy)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor([-0.6931])
    """

    @wraps(criterion)
    def negative(*args: Any, **kwargs: Any) -> Tensor:
        return -criterion(*args, **kwargs)

    return negative


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the best other logit minus the logit of `target`, of shape (N,): positive where misclassified.

    Source: Carlini and Wagner, 2017 (https://arxiv.org/abs/1608.04644), function f6 without its bound.

    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([-1.])
    """
    return logits.scatter(1, target[:, None], float("-inf")).amax(1) - _of(logits, target)


def probability_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the best other probability minus that of `target`, from -1 to 1: positive where misclassified.

    The loss of the probability margin attack (PMA). Where the model is confident, it is as flat as the softmax. Source:
    Xie et al., 2024 (https://arxiv.org/abs/2411.15210).

    >>> probability_margin(torch.tensor([[0.0, 0.0, 100.0]]), torch.tensor([2]))
    tensor([-1.])
    """
    return margin(logits.softmax(1), target)


def dlr(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the difference of logits ratio: the margin divided by the gap of the largest and third largest logit.

    It is invariant to shifting and scaling all logits. With fewer than 3 classes, it is the margin itself.
    Source: Croce and Hein, 2020 (https://arxiv.org/abs/2003.01690).

    >>> dlr(torch.tensor([[30.0, 10.0, 20.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 0]))
    tensor([-0.5000,  0.0000])
    """
    if logits.shape[1] < 3:
        return margin(logits, target)
    top = logits.topk(3).values
    return margin(logits, target) / _gap(top[:, 0], top[:, 2])


def targeted_dlr(logits: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """Returns the label's logit minus the target's, divided by a gap among the four largest logits.

    The gap is z1 - (z3 + z4) / 2. With fewer than 4 classes, it is the plain difference. It decreases towards the
    target, as needed by a targeted attack, so it is the negative of the paper's loss. Source: see `dlr`.

    >>> targeted_dlr(torch.tensor([[9.0, 6.0, 5.0, 3.0]]), target=torch.tensor([1]), labels=torch.tensor([0]))
    tensor([0.6000])
    """
    if target is labels:
        raise ValueError('targeted_dlr needs a target: target="likely", "malt" or "next"; without one take dlr.')
    distance = _of(logits, labels) - _of(logits, target)
    if logits.shape[1] < 4:
        return distance
    top = logits.topk(4).values
    return distance / _gap(top[:, 0], (top[:, 2] + top[:, 3]) / 2)


def kl_divergence(
    logits: Tensor, target: Tensor | None = None, *, clean: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Returns the KL divergence KL(clean || perturbed) of the predicted probabilities, in nats.

    `clean` are the logits (N, classes) of the clean samples, which receive no gradient; labels are not used. At the
    clean sample its gradient is 0, so start from a random point. Source: TRADES, Zhang et al., 2019
    (https://arxiv.org/abs/1901.08573).

    >>> kl_divergence(torch.tensor([[0.0, 100.0], [1.0, 2.0]]), clean=torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
    tensor([49.3069,  0.0000])
    """
    if labels is not None and target is not labels:
        raise ValueError("kl_divergence has no target to move towards: leave out target=..., or take cross_entropy.")
    return F.kl_div(logits.log_softmax(1), clean.detach().log_softmax(1), reduction="none", log_target=True).sum(1)


def _of(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(1, target[:, None]).squeeze(1)


def _gap(top: Tensor, lower: Tensor) -> Tensor:
    """Returns `top - lower`, but at least the rounding unit of `top`, so that ties do not cause a division by zero.

    The paper adds 1e-12, with which the gradient of a tie reaches 1e24.
    """
    least = torch.finfo(top.dtype).eps * top.detach().abs().clamp(min=1.0)
    return torch.maximum(top - lower, least)
