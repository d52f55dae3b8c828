"""Measures the time per attack step on this machine."""

import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from raiopt import zoo
from raiopt.attacks import default_batch_size, gradient_ascent
from raiopt.fast import Inference, ModelView
from raiopt.fast.device import choose_device
from raiopt.optim import LinfProjectedOptim
from raiopt.perturbations import cross_entropy
from raiopt.zoo.pretrained import WITH_AUXILIARY_HEADS

IMAGES, STEPS = 8, 5
"""Images and steps of a timing; the built-in network is timed with a whole batch."""


@dataclass(frozen=True)
class Timed:
    """The time per step of the default attack for one image of `size` by `size` pixels."""

    model: str
    device: str
    size: int
    seconds: float


def time_step(name: str | None = None) -> Timed:
    """Times the built-in network, or one of torchvision with random weights, on the best device."""
    torch.set_flush_denormal(True)  # as in a run
    device = choose_device("auto")
    if name is None:
        model, (images, _) = zoo.load_model("digits_robust"), zoo.load_data("digits")
        images = images[: default_batch_size(images.shape[1:])]
    else:
        model, size = _random(name)
        images = torch.rand(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    seconds = _seconds_per_step(model.to(device), images.to(device))
    return Timed(model.name, str(device), images.shape[-1], seconds / len(images))


def _random(name: str) -> tuple[zoo.Classifier, int]:
    """Returns a network of torchvision with random weights, and its image size."""
    from raiopt.zoo.vision import models

    size = next(iter(models.get_model_weights(name))).transforms().crop_size[0]
    options: dict[str, Any] = {"init_weights": False} if name in WITH_AUXILIARY_HEADS else {}
    with torch.random.fork_rng():
        net = models.get_model(name, weights=None, **options)
    return zoo.Classifier(net, name=f"{name} (random weights)").frozen(), size


def _seconds_per_step(model: zoo.Classifier, images: Tensor) -> float:
    """Returns the median time of a step for the whole batch (N, C, H, W), with the model as a search runs it."""
    view, ticks = ModelView(model, Inference()), []
    view.prepare(images)

    def ticking(logits: Tensor, target: Tensor) -> Tensor:
        losses = cross_entropy(logits, target)
        losses.sum().item()  # synchronizes with the device
        ticks.append(time.perf_counter())
        return losses

    gradient_ascent(
        model=view.fast,
        data=images,
        target=torch.zeros(len(images), dtype=torch.int64, device=images.device),
        optimizer=LinfProjectedOptim,
        epsilon=0.1,
        lr=0.025,
        criterion=ticking,
        steps=STEPS + 1,
    )
    return median(later - earlier for earlier, later in pairwise(ticks[1:]))  # the first step is slower
