"""Networks with batch norms that change their inputs."""

import torch
from torch import nn

from raiopt.zoo.vision import models


def lively(net):
    """Gives every batch norm its own random statistics, scales and shifts, some of them negative or small."""
    generator = torch.Generator().manual_seed(1)
    for norm in (part for part in net.modules() if isinstance(part, nn.BatchNorm2d)):
        for tensor, low, high in [(norm.running_mean, -0.3, 0.3), (norm.running_var, 0.2, 2.0)]:
            tensor.uniform_(low, high, generator=generator)
        if norm.affine:
            norm.weight.data.uniform_(-0.5, 1.5, generator=generator)
            norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return net.eval().requires_grad_(False)


def small():
    """Returns a network for images (N, 3, 12, 12), with five classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5)]
        return lively(nn.Sequential(*layers))


def network(name):
    """Returns a network of torchvision with ten classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(getattr(models, name)(num_classes=10))
