"""Models, images and attack settings for the tests of the attack."""

from functools import partial

import polars as pl
import torch
from torch import nn

from raiopt.attacks import Attack, Engine
from raiopt.attacks.prober import rows_of
from raiopt.attacks.rows import Samples
from raiopt.fast import ModelView
from raiopt.optim import LinfProjectedOptim
from raiopt.results.samples import samples_frame
from raiopt.sampling import uniform_like_linf_n_ball_
from tests import attack_functions as attacks

SHAPE = (3, 4, 4)


class Linear(nn.Module):
    """Two classes: the sign of <weight, x> - offset.

    Pixels that are multiples of 1/64 give scores without rounding, in every order of the sum.
    """

    weight: torch.Tensor

    def __init__(self, offset=None):
        super().__init__()
        number = torch.arange(48)
        self.register_buffer("weight", (number % 8 + 4) / 8 * torch.where(number % 3 == 0, -1, 1))
        self.offset = float(self.weight.sum() / 2) if offset is None else offset

    def score(self, x):
        return (x.flatten(1) * self.weight).sum(1) - self.offset

    def forward(self, x):
        score = self.score(x)
        return torch.stack([-score, score], 1)


class Classes(nn.Module):
    """Five classes: the logit of a class is the mean of its own part of the image."""

    def forward(self, x):
        return x.flatten(1)[:, :45].view(-1, 5, 9).mean(2)


def net():
    """Returns a smooth network with five classes, in float64, where rounding changes no verdict."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 5))
    return layers.double().eval().requires_grad_(False)


def images(n=6, seed=0, spread=0.25):
    """Returns images within `spread` of grey, their pixels multiples of 1/64."""
    drawn = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return ((drawn * 2 - 1) * spread * 64).round() / 64 + 0.5


def question(**changes):
    """Returns the settings of a short attack; its arithmetic is exact on images of `images` and a linear model."""
    usual = {
        "optimizer": partial(LinfProjectedOptim, epsilon=1 / 16, lr=1 / 64),
        "perturbation": attacks.additive,
        "init": attacks.zero,
        "criterion": attacks.margin,
        "steps": 5,
        "verify_8bit": False,
    }
    return Attack(**{**usual, **changes})


def random_start(rows, generator):
    """Starts on multiples of 1/64 in the Linf ball of radius 1/16."""
    return rows.copy_((uniform_like_linf_n_ball_(rows, 1 / 16, generator=generator) * 64).round() / 64)


def run(x, labels=None, attack=None, model=None, *, fast=None, ids=None, batch_size=100, stages=()):
    """Returns the outcomes of an attack, or of its stages; `fast` is the model of the search."""
    model, ids = model or Linear(), list(range(len(x))) if ids is None else ids
    view = ModelView(model)
    view.fast = fast or model
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    shape = x.shape[1:]
    engine = Engine(view, attack or question(), stages=stages, shape=shape, classes=classes, batch_size=batch_size)
    return list(engine.run(ids, [""] * len(ids), x, labels))


def tried(*args, **options):
    """Returns the trial of an attack on one batch."""
    (outcome,) = run(*args, **options)
    return outcome.result


def table(*args, **options):
    """Returns the records of an attack, in the order of the ids."""
    return pl.concat([samples_frame(outcome) for outcome in run(*args, **options)]).sort("id")


def rows(x, labels, attack, model, epsilon=None, steps=None):
    """Returns the rows of a search over all samples."""
    every = torch.arange(len(x))
    clean = model(x)
    samples = Samples(every, x, labels, attack.goals(clean, labels), clean)
    return rows_of(samples, attack, every, epsilon, torch.full_like(every, attack.steps) if steps is None else steps)


class Counting(nn.Module):
    """Counts the rows that pass forward and backward, and the size of each batch."""

    def __init__(self, model):
        super().__init__()
        self.model, self.sizes, self.backward = model, [], 0

    def forward(self, x):
        self.sizes.append(len(x))
        if x.requires_grad:
            x.register_hook(self._returned)
        return self.model(x)

    def _returned(self, gradient):
        self.backward += len(gradient)

    @property
    def total(self):
        return sum(self.sizes), self.backward
