"""Every kind of perturbation, built in or user-defined: where a search starts and what it claims at the end."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.testing import assert_close

from raiopt.attacks import try_parts
from raiopt.attacks.search_state import search_rows as search
from raiopt.attacks.start import prepare
from raiopt.optim import L2NormedGradientOptim, L2ProjectedOptim, LinfProjectedOptim
from raiopt.sampling import keyed_generator, uniform_like_linf_n_ball_
from tests import attack_functions as attacks
from tests.attacks.parts import SHAPE, Linear, images, question, random_start, rows, run, tried


def start(rows, generator):
    return uniform_like_linf_n_ball_(rows, 0.05, generator=generator)


def brighter(images, generators, rows=1):
    """Adds one number to every pixel; declares neither sharing, nor bounds, nor row selection."""

    class Brighter(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.zeros(rows))

        def forward(self, data):
            return data + self.by.view(-1, 1, 1, 1)

    return Brighter()


def brighter_each(images, generators):
    made = brighter(images, generators, rows=len(images))
    made.is_shared = lambda data: False
    made.bounds = lambda data: (-data.flatten(1).amin(1), 1 - data.flatten(1).amax(1))
    return made


KINDS = {
    "additive": attacks.additive,
    "universal": attacks.universal,
    "masked": partial(attacks.masked, region=[0, 1, 2, 3]),
    "shared patch": partial(attacks.patch, size=2),
    "patches": partial(attacks.patch, size=[2, 3], shared=False),
    "affine": attacks.affine,
    "brighter": brighter,
    "brighter each": brighter_each,
}
SHARED, CLAMPED = {"universal", "shared patch", "brighter"}, {"universal", "brighter"}
WIDE = partial(LinfProjectedOptim, epsilon=0.3, lr=0.1)


class Positive(Linear):
    """Brighter images are misclassified: a black patch is not the best."""

    def __init__(self):
        super().__init__()
        self.weight = self.weight.abs()
        self.offset = float(self.weight.sum()) * 0.55


@pytest.mark.parametrize("init", [attacks.zero, start])
@pytest.mark.parametrize("kind", KINDS)
def test_the_claim_of_every_kind_of_perturbation_holds(kind, init):
    x, model = images(), Positive()
    labels = torch.zeros(6).long()
    attack = question(
        optimizer=WIDE, perturbation=KINDS[kind], init=init, criterion=attacks.cross_entropy, stop="never"
    )
    found, parameter, began = search(model, attack, rows(x, labels, attack, model), lambda: None)
    claim = began.claim(parameter, torch.arange(6))
    perturbed = claim.perturbed(x)
    assert claim.is_valid().all()
    assert ((perturbed >= 0) & (perturbed <= 1)).all()
    assert_close(found.loss, nn.functional.cross_entropy(model(perturbed), labels, reduction="none"))
    assert found.prediction.equal(model(perturbed).argmax(1))
    assert_close(x + claim.delta(x), perturbed)
    assert claim.shared == began.coupled == (kind in SHARED)
    assert (claim.bounds is None) == (kind in CLAMPED)
    assert began.independent == (kind not in SHARED and kind != "brighter each")
    assert 0.09 < claim.parameter.abs().max() <= 0.3
    assert found.loss.sum() > found.gains[:, 0].sum()


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - SHARED))
def test_samples_that_do_not_share_a_parameter_are_independent(kind):
    x = images()
    attack = question(optimizer=WIDE, perturbation=KINDS[kind], init=start, criterion=attacks.cross_entropy)
    together = tried(x, attack=attack).bounded
    alone = torch.cat([tried(x[i : i + 1], attack=attack, ids=[i]).bounded for i in range(6)])
    assert together.abs().max() > 0
    assert_close(together, alone)


def test_only_the_region_of_a_mask_is_perturbed():
    delta = tried(images(), attack=question(perturbation=KINDS["masked"], init=start)).delta
    region = torch.zeros(4, 4).bool()
    region[:2, 1:] = True
    assert (delta != 0).any(0).any(0).equal(region)


def test_places_of_patches_belong_to_the_sample():
    x, attack = images(), question(perturbation=KINDS["shared patch"], steps=0)
    places = tried(x, attack=attack).places
    assert torch.equal(tried(x[[4, 2]], attack=attack, ids=[4, 2]).places, places[[4, 2]])
    assert len(places.unique(dim=0)) > 1
    own = KINDS["shared patch"](x[:1], [keyed_generator(0, 0)])
    assert torch.equal(own.places, places[:1])


def test_start_depends_on_seed_id_and_restart_alone():
    x = images()
    attack = question(init=start, steps=0, stop="never", restarts=2, attack_misclassified=True)
    labels = Linear()(x).argmax(1)
    began = prepare(attack, rows(x, labels, attack, Linear())).parameter.detach()
    for row, delta in enumerate(began):
        i, restart = divmod(row, 2)
        drawn = uniform_like_linf_n_ball_(torch.empty(SHAPE), 0.05, generator=keyed_generator(0, i, restart))
        assert torch.equal(delta, drawn.clamp(-x[i], 1 - x[i]))
    alone = prepare(attack, rows(x, labels, attack, Linear()).take(torch.tensor([7, 2]))).parameter
    assert torch.equal(alone, began[[7, 2]])
    other = prepare(question(init=start, steps=0, seed=1), rows(x, labels, question(), Linear())).parameter
    assert not (other == began[::2]).flatten(1).any()


def test_a_shared_start_is_that_of_the_first_sample():
    attack = question(perturbation=brighter, init=start, steps=0)
    parameter = tried(images(), attack=attack, ids=[3, 1, 4, 0, 5, 2]).bounded
    assert torch.equal(parameter, start(torch.empty(1), keyed_generator(0, 3)).clamp(-0.05, 0.05))


def test_a_start_is_sized_by_the_radius_of_its_row_and_held_in_its_ball():
    sizes = []

    def sized(rows, generator, *, epsilon):
        sizes.append(epsilon)
        return rows.fill_(2 * epsilon)

    x = images(3)
    attack = question(init=sized, epsilons=[1 / 64, 1 / 16])
    epsilon = torch.tensor([1 / 16, 1 / 64, 1 / 32])
    parameter = prepare(attack, rows(x, torch.zeros(3).long(), attack, Linear(), epsilon)).parameter
    assert sizes == epsilon.tolist()
    assert torch.equal(parameter, epsilon.view(-1, 1, 1, 1).expand_as(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: nn.Linear(2, 2), "perturbation: Linear must have exactly one parameter, but has 2"),
        (
            lambda x, generators: brighter_each(x[:1], generators),
            "must then have 2 rows, one a sample, but has the shape",
        ),
        (partial(attacks.masked, region=[0, 0, 5, 1]), "perturbation: region=.* must lie within the images, .* 4 by 4"),
    ],
)
def test_a_perturbation_that_does_not_fit_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        run(images(), attack=question(perturbation=make))


class Own(nn.Module):
    """A perturbation that does what `wrong` says."""

    def __init__(self, images, wrong):
        super().__init__()
        dtype = torch.int64 if wrong == "integers" else images.dtype
        self.shift = nn.Parameter(torch.zeros(len(images), 3, 1, 1, dtype=dtype), requires_grad=dtype.is_floating_point)
        self.wrong = wrong

    def forward(self, images):
        if self.wrong == "writes":
            images.add_(0.1)
        if self.wrong == "shape":
            return images[:1] + self.shift[:1]
        return images + (0 if self.wrong == "unused" else self.shift)

    def bounds(self, images):
        ones = torch.ones_like(self.shift)
        return {"three": 3, "bounds": (ones[0], ones[0]), "origin": (ones / 2, ones)}.get(self.wrong, (-ones, ones))

    def is_shared(self, images):
        return False


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("writes", ValueError, "it wrote into the images"),
        ("shape", ValueError, r"must return images of the shape \(2, 3, 4, 4\), got a tensor of shape \(1, 3, 4, 4\)"),
        ("unused", ValueError, "do not depend on its parameter"),
        ("three", ValueError, "must return None or two tensors"),
        ("bounds", ValueError, r"two tensors of the parameter's shape \(2, 3, 1, 1\)"),
        ("origin", ValueError, "optim: lower"),
        ("integers", TypeError, "perturbation: its parameter must be of a floating type, not torch.int64"),
    ],
)
def test_errors_of_a_user_defined_perturbation_are_reported(wrong, error, message):
    with pytest.raises(error, match=message):
        try_parts(question(perturbation=lambda images, generators: Own(images, wrong)), SHAPE, 2)


COUPLED = [
    {"perturbation": attacks.universal},
    {"perturbation": KINDS["shared patch"]},
    {"optimizer": partial(L2ProjectedOptim, epsilon=0.5, lr=0.1, param_ndim=None)},
]


@pytest.mark.parametrize("parts", COUPLED)
@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"restarts": 2}, "restarts=2"),
        ({"targeted": True, "target": [0, 1]}, "several targets,"),
        ({"epsilons": [0.1, 0.2]}, "epsilons"),
    ],
)
def test_coupled_samples_have_one_start_goal_and_radius(parts, setting, name):
    assert try_parts(question(**parts), SHAPE, 2).coupled
    with pytest.raises(ValueError, match=f"(?s){name}.*needs samples that are independent.*param_ndim=-1"):
        try_parts(question(**parts, **setting), SHAPE, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"restarts": 2, "perturbation": brighter_each}, r"needs a perturbation with a method select\(index\)"),
        ({"epsilons": [0.1], "optimizer": partial(L2NormedGradientOptim, lr=1)}, "needs an optimizer with a ball"),
        ({"epsilons": [0.1], "optimizer": partial(SGD, lr=1)}, "needs an optimizer with a ball"),
        ({"quantize": True, "perturbation": attacks.affine}, "quantize=True needs an additive perturbation"),
        ({"quantize": True, "perturbation": attacks.universal}, "quantize=True needs an additive perturbation"),
        ({"optimizer": partial(LinfProjectedOptim, epsilon=-1, lr=1)}, "optim: epsilon=-1"),
        ({"init": lambda rows, generator: rows.new_zeros(2).fill_("x")}, "init: "),
        ({"criterion": lambda z, t, **_: z.mean()}, r"criterion: it must return one loss per sample.*shape \(\)"),
        ({"criterion": lambda z, t, **_: 3.0}, r"criterion: it must return one loss per sample.*got 3.0"),
        ({"criterion": attacks.targeted_dlr}, "criterion: targeted_dlr needs a target"),
        ({"criterion": attacks.kl, "targeted": True, "target": 1}, "criterion: kl_divergence has no target"),
    ],
)
def test_incompatible_parts_are_an_error_before_the_search(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        try_parts(question(**change), SHAPE, 2)


@pytest.mark.parametrize("optimizer", [partial(L2ProjectedOptim, epsilon=0.4, lr=0.2), WIDE])
def test_perturbed_images_stay_in_the_box(optimizer):
    x = images(spread=0.5).round()  # every pixel at a wall
    delta = tried(x, attack=question(optimizer=optimizer, init=random_start)).delta
    assert ((x + delta >= 0) & (x + delta <= 1)).all()
    assert delta.abs().max() > 0
