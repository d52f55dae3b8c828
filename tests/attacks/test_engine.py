"""The attack on a batch: who is attacked, what is kept, and that samples do not disturb each other."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.testing import assert_close

from raiopt.attacks import Attack, attack_batch
from raiopt.builders import attacks
from raiopt.optim import L2ProjectedOptim, LinfProjectedOptim, SignedGradientOptim
from raiopt.sampling import keyed_generator, uniform_like_linf_n_ball_

SHAPE = (3, 4, 4)


class Linear(nn.Module):
    """Two classes, decided by the sign of <weight, x> - offset."""

    def __init__(self, offset=24.0):
        super().__init__()
        self.weight, self.offset = torch.linspace(0.5, 1.5, 48).view(SHAPE), offset

    def forward(self, x):
        score = (x * self.weight).flatten(1).sum(1) - self.offset
        return torch.stack([-score, score], 1)


def images(n=6, seed=0):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.25


def question(optimizer=None, **changes):
    usual = {
        "optimizer": optimizer or partial(LinfProjectedOptim, epsilon=0.05, lr=0.02),
        "perturbation": attacks.additive,
        "init": lambda rows, generator: rows,
        "criterion": attacks.cross_entropy,
        "steps": 5,
    }
    return Attack(**{**usual, **changes})


def run(x, labels=None, attack=None, model=None, ids=None):
    ids = list(range(len(x))) if ids is None else ids
    return attack_batch(model or Linear(), ids, [str(i) for i in ids], x, labels, attack or question())


def test_reaches_the_corner_of_the_ball_that_is_worst_for_a_linear_model():
    x, model = images(), Linear()
    labels = model(x).argmax(1)
    search = run(x, labels, question(criterion=lambda z, t, **_: -z.gather(1, t[:, None])[:, 0])).search
    away = torch.where(labels.bool(), -0.05, 0.05).view(-1, 1, 1, 1)
    assert_close(search.claim.parameter, away.expand_as(x))


@pytest.mark.parametrize("optimizer", [partial(L2ProjectedOptim, epsilon=0.4, lr=0.2), None])
def test_perturbed_images_stay_in_the_box(optimizer):
    x = images().round()  # every pixel at a wall
    search = run(x, attack=question(optimizer)).search
    assert ((x + search.claim.parameter >= 0) & (x + search.claim.parameter <= 1)).all()
    assert search.claim.parameter.abs().max() > 0


def test_only_samples_that_are_predicted_right_are_attacked():
    x, model = images(), Linear()
    labels = model(x).argmax(1)
    labels[1] = 1 - labels[1]
    outcome = run(x, labels)
    assert outcome.attacked.tolist() == [True, False, True, True, True, True]
    assert len(outcome.search.claim.parameter) == 5
    assert run(x[1:2], labels[1:2]).search is None


def test_without_labels_the_prediction_is_the_label():
    x, model = images(), Linear()
    outcome = run(x)
    assert_close(outcome.labels, model(x).argmax(1))
    assert outcome.attacked.all()


def start(rows, generator):
    return uniform_like_linf_n_ball_(rows, 0.05, generator=generator)


def test_start_depends_on_seed_and_id_alone():
    x, attack = images(), question(init=start, steps=0)
    deltas = run(x, attack=attack).search.claim.parameter
    backwards = run(x.flip(0), attack=attack, ids=[5, 4, 3, 2, 1, 0]).search.claim.parameter
    alone = torch.cat([run(x[i : i + 1], attack=attack, ids=[i]).search.claim.parameter for i in range(6)])
    assert torch.equal(deltas, backwards.flip(0))
    assert torch.equal(deltas, alone)
    assert not torch.equal(deltas, run(x, attack=question(init=start, steps=0, seed=1)).search.claim.parameter)
    assert 0 < deltas.abs().max() <= 0.05
    drawn = [uniform_like_linf_n_ball_(torch.empty(SHAPE), 0.05, generator=keyed_generator(0, i)) for i in range(6)]
    for delta, expected, image in zip(deltas, drawn, x, strict=True):
        assert torch.equal(delta, expected.clamp(-image, 1 - image))


@pytest.mark.parametrize("inner", [SGD, partial(SGD, momentum=0.9), Adam])
def test_samples_are_independent_and_the_global_generator_is_left_alone(inner):
    x, state = images(), torch.random.get_rng_state()
    attack = question(partial(LinfProjectedOptim, InnerOpt=inner, epsilon=0.05, lr=0.02), init=start)
    together = run(x, attack=attack).search
    alone = [run(x[i : i + 1], attack=attack, ids=[i]).search for i in range(6)]
    assert_close(together.claim.parameter, torch.cat([s.claim.parameter for s in alone]))
    assert_close(together.losses, torch.cat([s.losses for s in alone], 1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_keeps_the_fooled_iterate_with_the_largest_loss_rather_than_the_largest_loss():
    class Wave(nn.Module):
        def forward(self, x):
            t = x.mean((1, 2, 3)) - 0.5
            return torch.stack([torch.full_like(t, 0.1), torch.sin(40 * t), t - 10], 1)

    attack = question(partial(SignedGradientOptim, lr=0.02), criterion=lambda z, t, **_: z[:, 2], steps=6)
    search = run(torch.full((1, *SHAPE), 0.5), torch.tensor([0]), attack, Wave()).search
    assert search.fooled_at[:, 0].tolist() == [False, True, True, True, False, False, False]
    assert search.losses[:, 0].argmax().item() == 6
    assert (search.best_step.item(), search.first_fooled.item()) == (3, 1)
    assert search.fooled.item()


@pytest.mark.parametrize("use_best", [True, False])
def test_use_best_false_keeps_the_last_iterate(use_best):
    x = images(1)
    attack = question(
        partial(SignedGradientOptim, lr=1.0), criterion=lambda z, t, **_: (z[:, 0] / 50).sin(), use_best=use_best
    )
    search = run(x, attack=attack).search
    assert use_best or search.best_step.item() == 5
    kept = search.losses[search.best_step.item(), 0]
    assert_close(search.loss[0], kept)


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


@pytest.mark.parametrize("at_output", [True, False])
def test_a_sample_that_is_not_finite_is_marked_and_the_others_are_as_if_alone(at_output):
    x = images()
    x[2, 0, 0, 0] = 0.95
    model = Sick(at_output)
    healthy = [0, 1, 3, 4, 5]
    outcome, others = run(x, model=model), run(x[healthy], model=model, ids=healthy)
    rows = healthy if outcome.search.claim.parameter.shape == x.shape else list(range(5))
    assert_close(outcome.search.claim.parameter[rows], others.search.claim.parameter)
    if at_output:  # known before the search: not attacked
        assert outcome.finite.tolist() == [True, True, False, True, True, True]
        assert outcome.attacked.sum() == 5
    else:
        assert outcome.search.not_finite.tolist() == [-1, -1, 0, -1, -1, -1]
    assert outcome.search.claim.parameter.isfinite().all()


def test_the_step_at_which_an_output_stops_to_be_finite_is_noted():
    x = images(2)
    x[:, 0, 0, 0] = torch.tensor([0.5, 0.25])
    model = Sick(at_output=True, bound=0.53)
    attack = question(partial(SignedGradientOptim, lr=0.02), criterion=lambda z, t, **_: z[:, 1], steps=4)
    search = run(x, torch.ones(2).long() if model(x)[0, 1] > 0 else None, attack, model).search
    assert search.not_finite.tolist() == [2, -1]  # 0.5, 0.52, 0.54


def test_a_ball_over_the_batch_keeps_one_iterate_for_all():
    x = images()
    attack = question(partial(L2ProjectedOptim, epsilon=0.3, lr=0.2, param_ndim=None))
    search = run(x, attack=attack).search
    assert search.coupled
    assert search.claim.parameter.norm() <= 0.3 * (1 + 1e-6)
    assert len(set(search.best_step.expand(6).tolist())) == 1
    assert not run(x).search.coupled


def test_a_universal_perturbation_is_one_for_all_and_fools_with_clamped_images():
    x = images().round()
    labels = torch.ones(6).long()
    attack = question(
        partial(LinfProjectedOptim, epsilon=0.5, lr=0.2, param_ndim=None),
        perturbation=attacks.universal,
        criterion=lambda z, t, **_: -z[:, 1],
    )
    model = Linear(offset=10.0)
    search = run(x, labels, attack, model).search
    assert search.claim.parameter.shape == SHAPE
    assert search.coupled
    assert_close(search.claim.parameter, torch.full(SHAPE, -0.5))
    assert_close(search.loss, -model((x + search.claim.parameter).clamp(0, 1))[:, 1])


class Classes(nn.Module):
    """Five classes: the logit of a class is the mean of its own part of the image."""

    def forward(self, x):
        return x.flatten(1)[:, :45].view(-1, 5, 9).mean(2)


@pytest.mark.parametrize("rule", ["next", "least_likely", 3])
def test_targets(rule):
    x = images(8, seed=4)
    logits = Classes()(x)
    labels = logits.argmax(1)
    outcome = run(x, labels, question(targeted=True, target=rule, steps=20), Classes())
    expected = {"next": (labels + 1) % 5, "least_likely": logits.argmin(1), 3: torch.full_like(labels, 3)}[rule]
    assert torch.equal(outcome.goals, expected)
    assert torch.equal(outcome.attacked, labels != expected)
    search, goals = outcome.search, expected[labels != expected]
    assert search.fooled.any()
    assert torch.equal(search.prediction[search.fooled], goals[search.fooled])
    assert (search.loss <= search.losses[0]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "solver.steps=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"targeted": True}, "solver.targeted=true needs solver.target"),
        ({"target": 1}, "no effect without solver.targeted=true"),
        ({"targeted": True, "target": "nxt"}, "(?s)nxt.*Did you mean 'next'"),
        ({"targeted": True, "target": -2}, "solver.target=-2"),
    ],
)
def test_settings_without_meaning_are_told(change, message):
    with pytest.raises(ValueError, match=message):
        question(**change)


def test_a_target_beyond_the_classes_is_told():
    with pytest.raises(ValueError, match=r"solver.target=7 .*at most 4"):
        run(images(), attack=question(targeted=True, target=7), model=Classes())


@pytest.mark.parametrize("targeted", [True, False])
def test_the_criterion_sees_goals_labels_and_clean_logits(targeted):
    x, seen = images(8, seed=4), []
    labels = Classes()(x).argmax(1)

    def noted(logits, goals, *, labels, clean):
        seen.append((logits, goals, labels, clean))
        return attacks.cross_entropy(logits, goals, labels=labels, clean=clean)

    run(x, labels, question(criterion=noted, targeted=targeted, target="next" if targeted else None), Classes())
    assert len(seen) == 1 + 6
    for logits, goals, own, clean in seen:
        assert torch.equal(own, labels)
        assert torch.equal(clean, Classes()(x))
        assert torch.equal(goals, (labels + 1) % 5 if targeted else labels)
        assert (goals is own) != targeted
        assert len(logits) == 8


def test_samples_that_never_had_a_gradient_are_told():
    class Flat(Linear):
        def forward(self, x):
            return super().forward(torch.where(x[:, :1, :1, :1] > 0.5, x.detach(), x))

    x = images()
    expected = x[:, 0, 0, 0] > 0.5
    assert 0 < expected.sum() < 6
    assert run(x, model=Flat()).search.stuck.equal(expected)
    assert not run(x, model=Flat(), attack=question(steps=0)).search.stuck.any()
    assert not run(x, attack=question(criterion=attacks.kl, init=start)).search.stuck.any()
