"""The state of a search: best iterate, why a row stopped, values that are not finite, zero gradients."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.testing import assert_close

from raiopt.attacks.search_result import STOPPED
from raiopt.attacks.search_state import search_rows as search
from raiopt.optim import L2ProjectedOptim, LinfProjectedOptim, SignedGradientOptim
from tests import attack_functions as attacks
from tests.attacks.parts import SHAPE, Counting, Linear, images, net, question, random_start, rows


def searched(x, labels, attack, model):
    found, parameter, _ = search(model, attack, rows(x, labels, attack, model), lambda: None)
    return found, parameter


class Wave(nn.Module):
    """The logit of class 2 grows with brightness; class 1 is predicted in the crests of a wave."""

    def forward(self, x):
        t = x.mean((1, 2, 3)) - 0.5
        return torch.stack([torch.full_like(t, 0.1), torch.sin(40 * t), t - 10], 1)


GREY = torch.full((1, *SHAPE), 0.5)
CLIMB = partial(
    question,
    optimizer=partial(SignedGradientOptim, lr=0.02),
    criterion=lambda z, t, **_: z[:, 2],
    steps=6,
    stop="never",
)


@pytest.mark.parametrize(
    ("change", "best"), [({}, 3), ({"best_by": "norm"}, 1), ({"use_best": False}, 6), ({"stop": "fooled"}, 1)]
)
def test_the_kept_iterate_follows_best_by(change, best):
    found, parameter = searched(GREY, torch.tensor([0]), CLIMB(**change), Wave())
    if "stop" not in change:
        assert found.fooled_at[0].tolist() == [False, True, True, True, False, False, False]
        assert found.gains[0].argmax() == 6
    assert (found.best_step.item(), found.first_fooled.item()) == (best, 1)
    assert found.fooled.item() == found.claimed.item() == (best != 6)
    assert_close(parameter, torch.full_like(GREY, 0.02 * best))
    assert_close(found.loss, Wave()(GREY + parameter)[:, 2])
    assert found.prediction.item() == (1 if best != 6 else 0)
    assert STOPPED[int(found.stopped)] == ("fooled" if "stop" in change else "steps")


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("p", [2.0, float("inf")])
def test_the_best_by_norm_is_the_smallest_that_fools(p, targeted):
    x, model = images(12, seed=3, spread=0.4).double(), net()
    labels = model(x).argmax(1)
    make = {2.0: L2ProjectedOptim, float("inf"): LinfProjectedOptim}[p]
    attack = question(
        optimizer=partial(make, epsilon=0.8 if p == 2 else 0.1, lr=0.15 if p == 2 else 0.02),
        init=partial(attacks.uniform_l2, epsilon=0.5),
        criterion=attacks.cross_entropy,
        targeted=targeted,
        target="next" if targeted else None,
        stop="never",
        best_by="norm",
        steps=10,
    )
    seen = []

    class Watching(nn.Module):
        def forward(self, images):
            seen.append((images - x).detach())
            return model(images)

    found, parameter = searched(x, labels, attack, Watching())
    deltas = torch.stack(seen[1:], 1)  # the first is the clean one
    norms = torch.linalg.vector_norm(deltas.flatten(2), p, dim=2)
    fooled = found.fooled_at
    assert 2 < fooled.any(1).sum() < 12
    kept, every = found.best_step, torch.arange(12)
    assert kept.ne(fooled.int().argmax(1)).any()
    assert found.fooled.equal(fooled.any(1))
    least = torch.where(fooled, norms, torch.inf).amin(1)
    assert_close(torch.where(fooled.any(1), norms[every, kept], torch.inf), least, rtol=1e-6, atol=0)
    assert kept[~found.fooled].equal(found.gains.argmax(1)[~found.fooled])
    assert_close(parameter, deltas[every, kept])


@pytest.mark.parametrize("targeted", [False, True])
def test_losses_and_iterates_of_every_step(targeted):
    x, model = images(12, seed=3, spread=0.4).double(), net()
    labels = model(x).argmax(1)
    attack = question(
        optimizer=partial(L2ProjectedOptim, epsilon=1.5, lr=0.3),
        criterion=attacks.cross_entropy,
        targeted=targeted,
        target=3 if targeted else None,
        steps=6,
    )
    goals = torch.full_like(labels, 3) if targeted else labels
    keep = goals != labels if targeted else torch.ones(12).bool()
    x, labels, goals = x[keep], labels[keep], goals[keep]
    found, parameter = searched(x, labels, attack, model)
    logits = model(x + parameter)
    loss = nn.functional.cross_entropy(logits, goals, reduction="none")
    assert_close(found.loss, loss.float())
    assert found.prediction.equal(logits.argmax(1))
    assert found.fooled.equal((found.prediction == goals) if targeted else (found.prediction != labels))
    assert found.claimed.equal(found.prediction != labels)
    assert found.goal.equal(goals)
    sign = -1 if targeted else 1
    assert_close(found.gains[torch.arange(len(x)), found.best_step], sign * loss.float())
    after = torch.arange(7) > found.steps[:, None]
    last = found.gains.gather(1, found.steps[:, None]).expand_as(found.gains)
    assert after.any()
    assert found.gains[after].equal(last[after])
    assert found.gains.isfinite().all()
    assert found.first_fooled.equal(torch.where(found.fooled_at.any(1), found.fooled_at.int().argmax(1), -1))


class Sick(Linear):
    """Returns NaN for images whose first pixel is above a bound, or gives them a gradient that is NaN."""

    def __init__(self, at_output, bound=0.9):
        super().__init__()
        self.at_output, self.bound = at_output, bound

    def forward(self, x):
        ill = (x[:, 0, 0, 0] > self.bound)[:, None]
        if self.at_output:
            return torch.where(ill, torch.nan, super().forward(x))
        first = x.flatten(1)[:, :1]
        root = torch.where(ill, (first - first.detach()).abs(), 1.0).sqrt()  # its derivative at 0 is infinite
        return super().forward(x) + torch.where(ill, root, 0.0)


@pytest.mark.parametrize("spare", [0.0, 2.0])
@pytest.mark.parametrize("at_output", [True, False])
@pytest.mark.parametrize("stop", ["never", "fooled"])
def test_a_sample_that_is_not_finite_is_marked_and_does_not_affect_others(monkeypatch, at_output, stop, spare):
    monkeypatch.setattr("raiopt.attacks.search_state.MIN_LEAVING_SHARE", spare)
    x = images()
    x[2, 0, 0, 0], x[4, 0, 0, 0] = 0.9375, 0.875
    model = Sick(at_output, 0.9)
    labels = Linear()(x).argmax(1)
    healthy = [0, 1, 3, 5]
    attack = question(optimizer=partial(SignedGradientOptim, lr=1 / 64), criterion=lambda z, t, **_: z[:, 0], stop=stop)
    up = -1 if Linear().weight[0] > 0 else 1  # class 0 grows against the weight
    found, parameter = searched(x, labels, attack, model)
    others, alone = searched(x[healthy], labels[healthy], attack, model)
    assert torch.equal(parameter[healthy], alone)
    assert torch.equal(found.gains[healthy], others.gains)
    assert found.not_finite[2] == 0
    assert up == 1
    assert found.not_finite[4] in ([2] if stop == "never" else [2, -1])  # 0.875, 0.8906, 0.9063
    assert (found.not_finite[healthy] == -1).all()
    assert [STOPPED[found.stopped[i]] for i in (2,)] == ["not_finite"]
    assert parameter.isfinite().all()
    assert found.steps[2] == 0
    assert found.best_step[4] < 2 or not at_output


def test_in_a_coupled_batch_samples_that_are_not_finite_move_nothing():
    x = images()
    x[2, 0, 0, 0] = 0.9375
    attack = question(optimizer=partial(L2ProjectedOptim, epsilon=0.3, lr=0.2, param_ndim=None))
    found, parameter = searched(x, Linear()(x).argmax(1), attack, Sick(at_output=False))
    assert parameter.isfinite().all()
    assert (parameter[2] == 0).all()
    assert (parameter[[0, 1, 3, 4, 5]] != 0).flatten(1).any(1).all()
    assert found.not_finite.tolist() == [-1, -1, 0, -1, -1, -1]


@pytest.mark.parametrize("kind", ["ball over the batch", "universal"])
@pytest.mark.parametrize("best_by", ["loss", "norm"])
def test_coupled_samples_keep_one_iterate(kind, best_by):
    x, model = images(12, seed=3, spread=0.4).double(), net()
    optimizer = partial(L2ProjectedOptim, epsilon=2.0, lr=0.3, param_ndim=None)
    perturbation = attacks.additive
    if kind == "universal":
        optimizer, perturbation = partial(LinfProjectedOptim, epsilon=0.3, lr=0.1), attacks.universal
    attack = question(
        optimizer=optimizer,
        perturbation=perturbation,
        criterion=attacks.cross_entropy,
        steps=8,
        stop="never",
        best_by=best_by,
    )
    labels = model(x).argmax(1)
    found, parameter = searched(x, labels, attack, model)
    step = found.best_step.unique()
    assert len(step) == 1
    assert found.fooled_at.sum(0)[step] == found.fooled_at.sum(0).max() > 0
    assert found.fooled.equal(found.fooled_at[:, step.item()])
    perturbed = (x + parameter).clamp(0, 1)
    assert found.prediction.equal(model(perturbed).argmax(1))
    assert_close(found.loss, nn.functional.cross_entropy(model(perturbed), labels, reduction="none").float())


def test_coupled_samples_stop_when_all_are_fooled():
    x, model = images(4), Counting(Linear())
    optimizer = partial(L2ProjectedOptim, epsilon=50.0, lr=0.2, param_ndim=None)
    labels = Linear()(x).argmax(1)
    found, _ = searched(x, labels, question(optimizer=optimizer, steps=40), model)
    last = int(found.steps[0])
    assert 0 < last < 40
    assert (found.steps == last).all()
    assert found.fooled_at[:, last].all()
    assert not found.fooled_at[:, last - 1].all()
    assert {STOPPED[i] for i in found.stopped} == {"fooled"}
    assert len(model.sizes) == last + 2


class Flat(Linear):
    """Has no gradient for images with a bright first pixel."""

    def forward(self, x):
        return super().forward(torch.where(x[:, :1, :1, :1] > 0.5, x.detach(), x))


def test_zero_gradients_are_counted():
    x = images()
    flat = x[:, 0, 0, 0] > 0.5
    assert 0 < flat.sum() < 6
    labels = Linear()(x).argmax(1)
    attack = partial(question, stop="never", steps=4)
    found, _ = searched(x, labels, attack(), Flat())
    assert found.zero_at_start.equal(flat)
    assert found.zero_gradients[flat].eq(4).all()
    assert found.zero_gradients[~flat].lt(4).all()
    assert not searched(x, labels, attack(steps=0), Flat())[0].zero_at_start.any()
    usual, _ = searched(x, labels, attack(init=random_start), Linear())
    assert not usual.zero_gradients.any()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_last_iterate_is_evaluated_too(steps):
    x = images()
    attack = question(
        steps=steps, stop="never", use_best=False, optimizer=partial(LinfProjectedOptim, epsilon=1, lr=1 / 64)
    )
    model = Counting(Linear())
    found, parameter = searched(x, Linear()(x).argmax(1), attack, model)
    assert model.total == ((steps + 2) * 6, steps * 6)  # the clean ones too
    assert (found.best_step == steps).all()
    assert (parameter.abs() == steps / 64).all()
    assert found.prediction.equal(Linear()(x + parameter).argmax(1))


@pytest.mark.parametrize("limits", [[1, 2, 4, 1, 3, 4], [1, *[4] * 41]])
def test_rows_with_fewer_steps_are_removed_at_once(limits):
    limits = torch.tensor(limits)
    x = images(len(limits), spread=0.1) + Linear().weight.sign().view(1, *SHAPE) * 0.25
    attack = question(steps=4, stop="never", max_passes=9)
    batch = rows(x, Linear()(x).argmax(1), attack, Linear(), steps=limits)
    found, *_ = search(Linear(), attack, batch, lambda: None)
    assert found.steps.equal(limits)
    assert [STOPPED[i] for i in found.stopped] == ["passes" if limit < 4 else "steps" for limit in limits]
    assert found.forward_passes.equal(limits + 1)
    assert found.backward_passes.equal(limits + (limits < 4))


def test_in_a_coupled_batch_the_fewest_steps_end_the_search():
    x = images(spread=0.1) + Linear().weight.sign().view(1, *SHAPE) * 0.25
    inner = type("Own", (SGD,), {})
    attack = question(optimizer=partial(LinfProjectedOptim, InnerOpt=inner, epsilon=1, lr=1 / 64), steps=4)
    limits = torch.tensor([2, 3, 4, 4, 4, 4])
    found, *_ = search(Linear(), attack, rows(x, Linear()(x).argmax(1), attack, Linear(), steps=limits), lambda: None)
    assert found.forward_passes.tolist() == [3] * 6
    assert {STOPPED[i] for i in found.stopped} == {"passes"}
