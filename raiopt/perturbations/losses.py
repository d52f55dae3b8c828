"""Losses of a batch of logits (N, classes) against classes (N,), one value a sample: what an attack makes large."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the cross entropy of each sample, of shape (N,), in nats.

    >>> import torch
    >>> cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor([0.6931])
    """
    return F.cross_entropy(logits, target, reduction="none")


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the best other logit minus the logit of `target`, of shape (N,): positive where misclassified.

    Source: Carlini and Wagner, 2017 (https://arxiv.org/abs/1608.04644), function f6 without its bound.

    >>> import torch
    >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
    tensor([-1.])
    """
    own = F.one_hot(target, logits.shape[1]).bool()
    return logits.masked_fill(own, float("-inf")).amax(1) - logits[own]
