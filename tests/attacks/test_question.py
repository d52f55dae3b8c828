"""Every kind of perturbation, the library's and one's own: what a search starts from and what it claims in the end."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from raiopt.attacks import Attack, check_perturbed, prepare
from raiopt.builders import attacks
from raiopt.optim import LinfProjectedOptim
from raiopt.sampling import keyed_generator
from tests.attacks.test_engine import Linear, images, question, run, start


def brighter(images, generators, rows=1):
    """Adds one number to every pixel; says nothing about sharing and bounds."""

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


@pytest.mark.parametrize("init", [attacks.zero, start])
@pytest.mark.parametrize("kind", KINDS)
def test_the_claim_of_every_kind_of_perturbation_holds(kind, init):
    x, model = images(), Linear(offset=27.0)  # what is brighter breaks: a black patch is not the best
    labels = torch.zeros(6).long()
    attack = question(partial(LinfProjectedOptim, epsilon=0.3, lr=0.1), perturbation=KINDS[kind], init=init)
    search = run(x, labels, attack, model).search
    claim, perturbed = search.claim, search.claim.perturbed(x)
    assert claim.holds().all()
    assert ((perturbed >= 0) & (perturbed <= 1)).all()
    assert_close(search.loss, nn.functional.cross_entropy(model(perturbed), labels, reduction="none"))
    assert_close(x + claim.delta(x), perturbed)
    assert claim.shared == search.coupled == (kind in SHARED)
    assert (claim.bounds is None) == (kind in CLAMPED)
    assert 0.09 < claim.parameter.abs().max() <= 0.3
    assert search.loss.sum() > search.losses[0].sum()


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - SHARED))
def test_samples_that_do_not_share_a_parameter_are_independent(kind):
    x = images()
    attack = question(partial(LinfProjectedOptim, epsilon=0.3, lr=0.1), perturbation=KINDS[kind], init=start)
    together = run(x, attack=attack).search
    alone = torch.cat([run(x[i : i + 1], attack=attack, ids=[i]).search.claim.parameter for i in range(6)])
    assert_close(together.claim.parameter, alone)


def test_only_the_region_of_a_mask_is_perturbed():
    delta = run(images(), attack=question(perturbation=KINDS["masked"], init=start)).search.claim.parameter
    region = torch.zeros(4, 4).bool()
    region[:2, 1:] = True
    assert (delta != 0).any((0, 1)).equal(region)


def test_places_of_patches_belong_to_the_sample():
    x, attack = images(), question(perturbation=KINDS["shared patch"], steps=0)
    places = run(x, attack=attack).search.claim.places
    assert torch.equal(run(x[[4, 2]], attack=attack, ids=[4, 2]).search.claim.places, places[[4, 2]])
    assert len(places.unique(dim=0)) > 1
    own = KINDS["shared patch"](x[:1], [keyed_generator(0, 0)])
    assert torch.equal(own.places, places[:1])


def test_a_shared_start_is_that_of_the_first_sample():
    attack = question(perturbation=brighter, init=start, steps=0)
    parameter = run(images(), attack=attack, ids=[3, 1, 4, 0, 5, 2]).search.claim.parameter
    assert torch.equal(parameter, start(torch.empty(1), keyed_generator(0, 3)).clamp(-0.05, 0.05))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, _: nn.Linear(2, 2), "perturbation: Linear must have exactly one parameter, but has 2"),
        (lambda x, _: brighter_each(x[:2], _), "must then have 6 rows, one a sample, but has the shape"),
        (partial(attacks.masked, region=[0, 0, 5, 1]), "perturbation: region=.* must lie within the images, .* 4 by 4"),
    ],
)
def test_a_perturbation_that_does_not_fit_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        run(images(), attack=question(perturbation=make))


class Own(nn.Module):
    """A perturbation that does what `wrong` says."""

    def __init__(self, images, wrong):
        super().__init__()
        self.wrong, self.shift = wrong, nn.Parameter(torch.zeros(len(images), 3, 1, 1))

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
    ("wrong", "message"),
    [
        ("writes", "it wrote into the images"),
        ("shape", r"must return images of the shape \(2, 3, 4, 4\), got a tensor of shape \(1, 3, 4, 4\)"),
        ("unused", "do not depend on its parameter"),
        ("three", "must return None or two tensors"),
        ("bounds", r"two tensors of the parameter's shape \(2, 3, 1, 1\)"),
        ("origin", "lower"),
    ],
)
def test_what_an_own_perturbation_does_wrong_is_told(wrong, message):
    images = torch.zeros(2, 3, 4, 4)
    attack = Attack(
        optimizer=partial(LinfProjectedOptim, epsilon=0.1, lr=0.1),
        perturbation=lambda images, generators: Own(images, wrong),
        init=lambda rows, generator: rows,
        criterion=lambda logits, goals, **_: logits.sum(1),
        steps=1,
    )
    with pytest.raises(ValueError, match=message):
        check_perturbed(prepare(attack, images, [0, 1]).perturbation(images), images)
