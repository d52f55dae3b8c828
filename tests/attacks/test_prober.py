"""One trial: unconfirmed successes of the faster model are searched again with the plain one; rounding to 8 bits."""

import logging
from functools import partial

import pytest
import torch
from torch.optim import SGD
from torch.testing import assert_close

from raiopt.attacks.verify import TOLERANCE, verify
from raiopt.optim import L2ProjectedOptim, LinfProjectedOptim, ParamTransformingOptimizer, Traits
from raiopt.perturbations import random_places
from raiopt.results.metrics import metrics
from raiopt.sampling import keyed_generator
from tests import attack_functions as attacks
from tests.attacks.parts import Counting, Linear, images, net, question, random_start, run, table, tried


class Eager(Linear):
    """A wrong fold: assigns samples to the other class long before the model does."""

    def forward(self, x):
        plain = super().forward(x)
        return plain + torch.where(plain.argmax(1)[:, None] == torch.tensor([0, 1]), -0.6, 0.6)


@pytest.mark.parametrize("change", [{}, {"restarts": 3, "init": random_start}, {"epsilons": [1 / 256, 1 / 64]}])
def test_successes_of_only_the_faster_model_are_searched_again(caplog, change):
    attack = question(optimizer=partial(LinfProjectedOptim, epsilon=1 / 64, lr=1 / 256), steps=8, **change)
    x = images(20)
    labels = Linear()(x).argmax(1)
    with caplog.at_level(logging.INFO, "raiopt"):
        doubted = table(x, labels, attack, fast=Eager())
    plain = table(x, labels, attack)
    assert 0 < plain["verified"].sum() < 20
    assert "samples fooled only the faster model: they are attacked again" in caplog.text
    assert doubted["claimed"].sum() > doubted["verified"].sum()
    names = ["verified", "adversarial_prediction", "undecided", "epsilon"]
    assert doubted.select(names).equals(plain.select(names))
    robust = [metrics(frame.lazy()).robust_accuracy for frame in (doubted, plain)]
    assert robust[0] == robust[1] == plain["verified"].not_().mean()
    assert (doubted["forward_passes"] > plain["forward_passes"]).sum() > 0


def test_without_a_difference_nothing_is_searched_again(caplog):
    x = images(20)
    with caplog.at_level(logging.INFO, "raiopt"):
        table(x, fast=Linear())
    assert not caplog.text


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("passes", [None, 13, 20])
@pytest.mark.parametrize("epsilons", [None, [1 / 64, 1 / 32, 1 / 16]])
def test_passes_of_both_models_are_counted_and_limited(monkeypatch, restarts, passes, epsilons):
    monkeypatch.setattr("raiopt.attacks.prober.verify", lambda model, *rest: verify(model.model, *rest))
    x, n = images(24), 24
    fast, plain = Counting(Eager()), Counting(Linear())
    attack = question(steps=4, max_passes=passes, epsilons=epsilons, restarts=restarts, init=random_start)
    found = table(x, Linear()(x).argmax(1), attack, plain, fast=fast)
    forward = sum(fast.sizes) + sum(plain.sizes) - 1 - n  # a look at the classes, and the clean predictions
    assert (found["forward_passes"].sum(), found["backward_passes"].sum()) == (forward, fast.backward + plain.backward)
    assert plain.backward > 0 or passes == 13
    if passes is not None:
        assert max(found["forward_passes"] + found["backward_passes"]) <= passes


class Leaving(ParamTransformingOptimizer):
    """Claims to project onto an Linf ball, but does not."""

    traits = Traits(ball=float("inf"))


@pytest.mark.parametrize(
    ("optimizer", "leaves"),
    [
        (partial(Leaving, defaults={"epsilon": 1 / 64}, lr=1 / 16), True),
        (partial(Leaving, defaults={"epsilon": 1.0}, lr=1 / 16), False),
        (partial(SGD, lr=2.0), True),
        (partial(SGD, lr=1 / 16), False),
    ],
)
def test_results_outside_of_ball_or_box_are_not_successes(optimizer, leaves):
    x = images(spread=0.125)
    found = table(x, Linear()(x).argmax(1), question(optimizer=optimizer, steps=3))
    assert found["claimed"].all()
    assert (~found["verified"]).all() if leaves else found["verified"].all()


@pytest.mark.parametrize("fixed", [True, False])
def test_a_trial_says_whether_samples_could_leave(fixed):
    inner = type("Own", (SGD,), {}) if fixed else SGD
    trial = tried(images(), attack=question(optimizer=partial(LinfProjectedOptim, InnerOpt=inner, epsilon=0.1, lr=0.1)))
    assert (trial.fixed_batch, trial.coupled, trial.shared) == (fixed, False, False)


def test_broken_samples_are_judged_once_more_on_the_grid():
    x = (images(30, spread=0.1) * 255).round() / 255
    labels = Linear()(x).argmax(1)
    attack = question(
        optimizer=partial(L2ProjectedOptim, epsilon=0.12, lr=0.01), steps=30, criterion=attacks.cross_entropy
    )
    attack = question(**{**vars(attack), "verify_8bit": True})
    (outcome,) = run(x, labels, attack)
    verification = outcome.result.verification
    rounded = verification.broken_8bit
    assert 0 < rounded.sum() < verification.broken.sum()
    assert verification.broken[rounded].all()
    assert tried(x, labels, question(**{**vars(attack), "verify_8bit": False})).verification.broken_8bit is None
    universal = question(perturbation=attacks.universal, verify_8bit=True)
    assert tried(x, labels, universal).verification.broken_8bit is None


@pytest.mark.parametrize("init", [attacks.zero, random_start])
@pytest.mark.parametrize(
    "optimizer",
    [
        partial(LinfProjectedOptim, epsilon=6.5 / 255, lr=2 / 255),
        partial(LinfProjectedOptim, epsilon=1e-3, lr=2 / 255),
        partial(L2ProjectedOptim, epsilon=0.3, lr=0.1),
    ],
)
def test_a_quantized_search_keeps_images_on_the_grid(optimizer, init):
    x = (images(20, spread=0.2) * 255).round() / 255
    labels = Linear()(x).argmax(1)
    attack = question(optimizer=optimizer, init=init, quantize=True, verify_8bit=True, steps=8)
    for use_best in (True, False):
        trial = tried(x, labels, question(**{**vars(attack), "use_best": use_best}))
        kept = (x + trial.delta).double() * 255
        assert_close(kept, kept.round(), rtol=0, atol=1e-4)
        assert torch.equal(trial.verification.broken, trial.verification.broken_8bit)
        assert torch.equal(trial.verification.broken, trial.search.claimed)
        radius = optimizer.keywords["epsilon"]
        order = float("inf") if radius < 0.1 else 2.0
        norms = torch.linalg.vector_norm(trial.delta.double().flatten(1), order, dim=1)
        assert (norms <= radius * (1 + TOLERANCE)).all()
        assert trial.verification.broken.any() or radius == 1e-3


PATCHES = {
    "perturbation": partial(attacks.patch, size=3, shared=False),
    "optimizer": partial(LinfProjectedOptim, epsilon=0.9, lr=0.1),
}


@pytest.mark.parametrize("change", [{}, {"criterion": attacks.margin}, PATCHES, {"stop": "fooled", **PATCHES}])
def test_the_best_of_several_rows_is_what_is_verified(change):
    x, model = images(12, seed=3, spread=0.4), net().float()
    usual = {
        "optimizer": partial(L2ProjectedOptim, epsilon=0.7, lr=0.1),
        "restarts": 3,
        "init": partial(attacks.uniform_l2, epsilon=0.7),
        "stop": "never",
        "criterion": attacks.cross_entropy,
    }
    attack = question(**{**usual, **change})
    labels = model(x).argmax(1)
    trial = tried(x, labels, attack, model)
    assert len(trial.search.restart.unique()) > 1
    logits = model(x + trial.delta)
    assert torch.equal(logits.argmax(1), trial.verification.prediction)
    assert_close(attack.criterion(logits, labels, labels=labels, clean=logits), trial.search.loss)
    assert torch.equal(trial.verification.broken, trial.search.claimed)
    for row, restart in enumerate(trial.search.restart.tolist() if trial.places is not None else []):
        drawn = random_places((1, *x.shape[1:]), 3, [keyed_generator(0, row, restart)])
        assert torch.equal(trial.places[row], drawn[0])
