"""Minimum-norm attacks: on a linear classifier the smallest perturbation has a closed form, or follows by sorting."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from raiopt import attack
from raiopt.attacks.rows import select_rows
from raiopt.attacks.search import published
from raiopt.fast.view import Inference
from raiopt.optim import ALMAOptim, CWOptim, DDNOptim, FMNOptim
from raiopt.perturbations import cross_entropy, margin
from tests.reference import Array, array, norms

SHAPE, CLASSES, N = (3, 8, 8), 5, 12
WITHIN = 1.01
FMN = {p: partial(FMNOptim, p=p) for p in (0, 1, 2, math.inf)}


def problem(room: float = 0.3) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier, images with this distance to the box in every entry, and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(N, *SHAPE).uniform_(room, 1 - room, generator=generator)
    model = nn.Sequential(nn.Flatten(), layer := nn.Linear(math.prod(SHAPE), CLASSES))
    layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
    layer.bias.data = -layer.weight.data.sum(1) / 2 + torch.randn(CLASSES, generator=generator)
    return model.requires_grad_(False), images, model(images).argmax(1)


def nearest(model: Any, images: Tensor, labels: Tensor, p: float) -> Array:
    """The distance of the nearest class boundary, of shape (N,); with p=0 how many entries must change.

    For p=2 and infinity the box is taken to be wide enough.
    """
    weights, logits, x = array(model[1].weight), array(model(images)), array(images).reshape(N, -1)
    found = np.full(N, np.inf)
    for row, label in enumerate(labels.tolist()):
        for other in set(range(CLASSES)) - {label}:
            gap, slope = logits[row, label] - logits[row, other], weights[other] - weights[label]
            bounds = np.where(slope > 0, 1 - x[row], x[row])
            if p in (0, 1):  # fill the entries up to their bounds, those first that bring most
                order = np.argsort(-(np.abs(slope) * (bounds if p == 0 else 1)))
                reached = np.cumsum(np.abs(slope[order]) * bounds[order])
                whole = int(np.searchsorted(reached, gap, side="right"))
                left = gap - (reached[whole - 1] if whole else 0)
                distance = whole + 1 if p == 0 else bounds[order][:whole].sum() + left / np.abs(slope[order[whole]])
            else:
                distance = gap / np.linalg.norm(slope, {2: 2, math.inf: 1}[p])
            found[row] = min(found[row], distance)
    return found


def found_by(make: Any, p: float, steps: int, case: Any, **settings: Any) -> Array:
    """The norms of what broke each sample, of shape (N,)."""
    model, images, labels = case
    records = attack(
        model, (images, labels), make, criterion=margin, steps=steps, inference=Inference(fold=False), **settings
    )
    assert records["verified"].all()
    return records[f"l{p:g}" if p != math.inf else "linf"].to_numpy()


def falling(optimizer: Any, steps: int) -> Any:
    return ExponentialLR(optimizer, 0.01 ** (1 / steps))


@pytest.mark.parametrize(
    ("make", "p", "steps", "settings"),
    [
        *((partial(FMN[p], steps=100), p, 100, {}) for p in (0, 1, 2, math.inf)),
        (partial(DDNOptim, steps=1000), 2, 1000, {}),
        (partial(ALMAOptim, lr=0.1), 2, 1000, {"schedule": falling}),
        (partial(CWOptim, steps=1000, lr=0.01, c=1.0), 2, 1000, {"schedule": falling}),
    ],
    ids=["FMN 0", "FMN 1", "FMN 2", "FMN inf", "DDN", "ALMA", "C&W"],
)
def test_a_linear_classifier_in_closed_form(make: Any, p: float, steps: int, settings: dict[str, Any]) -> None:
    case = problem()
    expected, norm = nearest(*case, p), found_by(make, p, steps, case, **settings)
    assert (norm >= expected * (1 - 1e-4)).all()
    assert (norm <= expected * WITHIN + (p == 0)).all(), norm / expected


class RoundsByBatch(nn.Module):
    """A classifier whose largest logit is closer to 0 by 3e-6 of itself in batches of any size but N."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        if len(x) == N:
            return logits
        return logits * (1 - 3e-6 * logits.sign() * (logits == logits.amax(1, keepdim=True)))


@pytest.mark.parametrize("p", FMN)
def test_a_success_at_the_boundary_is_confirmed_by_a_model_that_rounds_by_batch_size(p: float) -> None:
    model, images, labels = problem()
    expected = nearest(model, images, labels, p)
    norm = found_by(partial(FMN[p], steps=100), p, 100, (RoundsByBatch(model), images, labels))
    assert (norm <= expected * WITHIN + (p == 0)).all()


def walked(optimizer: Any, x: Tensor, weights: Tensor, steps: int) -> list[tuple[Tensor, Tensor]]:
    """The parameter after each step for the losses 1 - <w, x> - sin of it, and whether each row was fooled before."""
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        inner = (weights * x).flatten(1).sum(1)
        losses = 1 - inner - 0.3 * torch.sin(3 * inner)
        losses.sum().backward()
        fooled = losses.detach() < 0
        with published(optimizer, losses=losses.detach(), fooled=fooled):
            optimizer.step()
        path.append((x.detach().clone(), fooled))
    return path


def rows(optimizer: Any, seed: int, count: int = 4, **settings: Any) -> tuple[Any, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(count, 3, 4, generator=generator, dtype=torch.float64)
    x = torch.zeros_like(weights, requires_grad=True)
    group = {"params": [x], "lower": torch.full_like(x, -0.6), "upper": torch.full_like(x, 0.5)}
    return optimizer([group], **settings), x, weights


MAKE = {
    **{f"FMN {p:g}": (make, {"steps": 30}) for p, make in FMN.items()},
    "DDN": (DDNOptim, {"steps": 30}),
    "ALMA": (ALMAOptim, {"lr": 0.1}),
    "C&W": (CWOptim, {"steps": 30, "lr": 0.1}),
}


@pytest.mark.parametrize("name", MAKE)
@given(seed=st.integers(0, 1000))
def test_every_point_lies_in_the_box(name: str, seed: int) -> None:
    make, settings = MAKE[name]
    optimizer, x, weights = rows(make, seed, **settings)
    for point, _ in walked(optimizer, x, weights, 12):
        assert ((point >= -0.6) & (point <= 0.5)).all()


@pytest.mark.parametrize("name", MAKE)
def test_successes_outside_of_the_ball_do_not_count(name: str) -> None:
    model, images, labels = problem()
    make, settings = MAKE[name]
    p = make([torch.zeros(1, 2, requires_grad=True)], **settings).traits.ball
    smallest = nearest(model, images, labels, p)
    epsilon = float(np.median(smallest))
    found = attack(
        model,
        (images, labels),
        partial(make, epsilon=epsilon, **settings),
        criterion=margin,
        steps=30,
        inference=Inference(fold=False),
    )
    column = found[f"l{p:g}" if p != math.inf else "linf"].to_numpy()
    assert not found["verified"].to_numpy()[smallest > epsilon * 1.001].any()
    assert (found["claimed"] == found["verified"]).all()
    assert (column[found["verified"].to_numpy()] <= epsilon * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", [f"FMN {p:g}" for p in FMN] + ["DDN"])
@given(seed=st.integers(0, 1000))
def test_a_radius_shrinks_if_fooled_and_holds_the_point(name: str, seed: int) -> None:
    make, settings = MAKE[name]
    optimizer, x, weights = rows(make, seed, **settings)
    walked(optimizer, x, weights, 3)
    for _ in range(10):
        own = optimizer.state[f"{type(optimizer).__name__}.0"]
        before = own["epsilon"].clone()
        ((point, fooled),) = walked(optimizer, x, weights, 1)
        radius = own["epsilon"]
        assert (torch.where(fooled.view_as(radius), radius <= before, radius >= before)).all()
        assert (norms(array(point), optimizer.traits.ball) <= array(radius).reshape(-1) * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", MAKE)
def test_samples_are_independent_and_can_be_removed(name: str) -> None:
    make, settings = MAKE[name]
    optimizer, x, weights = rows(make, 0, **settings)
    together = walked(optimizer, x, weights, 20)[-1][0]
    for row in range(len(x)):
        optimizer, one, _ = rows(make, 0, count=1, **settings)
        assert torch.allclose(walked(optimizer, one, weights[row : row + 1], 20)[-1][0], together[row : row + 1])
    optimizer, x, _ = rows(make, 0, **settings)
    walked(optimizer, x, weights, 10)
    select_rows(optimizer, x, stay := torch.tensor([1, 3]))
    assert torch.allclose(walked(optimizer, x, weights[stay], 10)[-1][0], together[stay])


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_a_gradient_of_rounding_errors_moves_nothing(p: float) -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    optimizer = FMNOptim([x], p=p, steps=5)
    optimizer.param_groups[0].update(losses=torch.tensor([1.0]), fooled=torch.tensor([False]))
    x.grad = torch.tensor([[-1.0, 1e-37]])
    optimizer.step()
    assert x[0, 0] > 0
    assert x[0, 1] == 0


def test_one_run_gives_the_whole_curve() -> None:
    model, images, labels = problem()
    radii = [0.2, 0.5, 1.0, 2.0]
    make = partial(FMNOptim, p=2, steps=100)
    curve = attack(model, (images, labels), make, criterion=margin, steps=100, epsilons=radii)
    smallest = nearest(model, images, labels, 2)
    for number, radius in enumerate(radii):
        broken = curve["broken_at"].list.get(number).to_numpy()
        clear = np.abs(smallest / radius - 1) > 0.01
        assert (broken == (smallest <= radius))[clear].all()
    assert (curve["forward_passes"] == 101).all()


def test_alma_refuses_a_loss_that_is_negative_before_success() -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    x.grad, optimizer = torch.ones(1, 2), ALMAOptim([x], lr=0.1)
    optimizer.param_groups[0].update(losses=torch.tensor([-1.0]), fooled=torch.tensor([False]))
    with pytest.raises(ValueError, match="ALMAOptim needs losses of at least 0 until a sample is fooled, and got -"):
        optimizer.step()


@pytest.mark.parametrize("settings", [{}, {"target": "likely"}])
def test_alma_refuses_a_loss_that_is_not_zero_at_the_boundary(settings: dict[str, Any]) -> None:
    model, images, labels = problem()
    with pytest.raises(ValueError, match=r"where all classes are equally likely, .*ALMAOptim.* criterion=margin"):
        attack(model, (images, labels), partial(ALMAOptim, lr=0.1), criterion=cross_entropy, steps=5, **settings)


@pytest.mark.parametrize("name", MAKE)
def test_a_datum_without_a_gradient_stays_and_moves_when_it_has_one(name: str) -> None:
    make, settings = MAKE[name]
    optimizer, x, _ = rows(make, 0, **settings)
    for turn in range(4):
        x.grad = torch.zeros_like(x)
        x.grad[1] = 1.0 if turn == 3 else 0.0
        with published(optimizer, losses=torch.full((4,), 20.0), fooled=torch.zeros(4, dtype=torch.bool)):
            optimizer.step()
        assert x.isfinite().all()
        assert not x[[0, 2, 3]].any()
    assert (x[1] < 0).all()


def test_a_sample_that_is_never_fooled_keeps_a_radius_within_the_box() -> None:
    optimizer, x, weights = rows(DDNOptim, 0, steps=300, gamma=0.5)
    for _ in range(300):
        x.grad = weights.clone()
        with published(optimizer, losses=torch.ones(4), fooled=torch.zeros(4, dtype=torch.bool)):
            optimizer.step()
    assert torch.allclose(
        optimizer.state["DDNOptim.0"]["epsilon"], torch.tensor(0.6 * math.sqrt(12), dtype=torch.float64)
    )
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (FMNOptim, {"p": 3, "steps": 5}, "p=3"),
        (partial(FMNOptim, p=2), {"steps": 0}, "steps=0"),
        (partial(FMNOptim, p=2), {"steps": 5, "gamma": 0.0}, "gamma=0.0"),
        (DDNOptim, {"steps": 5, "gamma": 0.9}, "gamma=0.9"),
        (CWOptim, {"steps": 5, "searches": 0}, "searches=0"),
        (CWOptim, {"steps": 9, "c": 0.0}, "c=0.0"),
        (ALMAOptim, {"mu": 1.5}, "mu=1.5"),
    ],
)
def test_wrong_settings_are_refused(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([torch.zeros(1, 2, requires_grad=True)], **settings)


def fmn_of_the_paper(weights: Array, p: float, steps: int, gamma: float = 0.05) -> Array:
    """The points after each step of Algorithm 1 of Pintor et al. 2021 without a box, for the losses of `walked`."""

    def falling(k: int, last: float) -> float:
        return last + (1 - last) * (1 + math.cos(math.pi * k / steps)) / 2

    delta, epsilon, least = np.zeros_like(weights), np.zeros(len(weights)), np.full(len(weights), np.inf)
    path = []
    for k in range(steps):
        inner = (weights * delta).sum(1)
        loss, slope = 1 - inner - 0.3 * np.sin(3 * inner), -1 - 0.9 * np.cos(3 * inner)
        gradient = slope[:, None] * weights
        size, change = np.linalg.norm(delta, p, axis=1), gamma * falling(k, 0.02)
        to_boundary = size + loss / np.linalg.norm(gradient, 2 if p == 2 else 1, axis=1)
        least = np.where(loss < 0, np.minimum(least, size), least)
        # Before the first success the radius grows in each step, also where the paper's estimate is less.
        grown = np.where(np.isinf(least), np.maximum(to_boundary, epsilon * (1 + change)), epsilon * (1 + change))
        epsilon = np.where(loss < 0, np.minimum(epsilon * (1 - change), least), grown)
        delta = delta - falling(k, 0.01) * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
        if p == 2:
            delta = delta * np.minimum(1, epsilon / np.linalg.norm(delta, axis=1))[:, None]
        else:
            delta = np.clip(delta, -epsilon[:, None], epsilon[:, None])
        path.append(delta)
    return np.stack(path)


@pytest.mark.parametrize("p", [2, math.inf])
def test_the_step_of_the_paper(p: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    x = torch.zeros_like(weights, requires_grad=True)
    path = walked(FMNOptim([x], p=p, steps=25, update="paper"), x, weights, 25)
    found = np.stack([array(point) for point, _ in path])
    np.testing.assert_allclose(found, fmn_of_the_paper(array(weights), p, 25), rtol=1e-5, atol=1e-7)
    assert torch.stack([fooled for _, fooled in path]).any(0).all()
