"""What the options of an attack build, and what their wrong settings are answered with."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from raiopt.builders import attacks
from raiopt.perturbations import AffinePerturbation, PatchPerturbation
from raiopt.sampling import keyed_generator

X = torch.rand(3, 2, 6, 8, generator=torch.Generator().manual_seed(0))
GENERATORS = [keyed_generator(0, i) for i in range(3)]
LABELS = torch.tensor([0, 1, 2])
LOGITS = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_mask_leaves_all_but_its_region():
    made = attacks.masked(X, GENERATORS, region=[1, 2, 3, 4])
    nn.init.ones_(made.delta)
    expected = X.numpy().copy()
    expected[:, :, 1:4, 2:6] += 1
    np.testing.assert_allclose(made(X).detach(), expected)


@pytest.mark.parametrize(("place", "corners"), [("center", [[2, 2]] * 3), ([1, 3], [[1, 3]] * 3), ("random", None)])
@pytest.mark.parametrize("size", [2, [2, 3]])
@pytest.mark.parametrize("shared", [True, False])
def test_a_patch_lies_where_it_was_put(place, corners, size, shared):
    made = attacks.patch(X, [keyed_generator(0, i) for i in range(3)], size=size, place=place, shared=shared)
    assert isinstance(made, PatchPerturbation)
    height, width = (2, 2) if size == 2 else (2, 3)
    assert made.patch.shape == (1 if shared else 3, 2, height, width)
    if place == "center":
        corners = [[(6 - height) // 2, (8 - width) // 2]] * 3
    if corners is not None:
        assert made.places.tolist() == corners
    expected = X.numpy().copy()
    for image, (row, column) in zip(expected, made.places.tolist(), strict=True):
        image[:, row : row + height, column : column + width] = 0
    np.testing.assert_array_equal(made(X).detach(), expected)


def test_affine_takes_its_largest_values():
    made = attacks.affine(X, GENERATORS, rotation=10.0, translation=0.2, scale=0.3)
    assert isinstance(made, AffinePerturbation)
    assert (made.rotation, made.translation, made.scale) == (10.0, 0.2, 0.3)


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (attacks.masked, {"region": [1, 2, 3]}, r"region=\[1, 2, 3\] must be \[top,left,height,width\]"),
        (attacks.masked, {"region": "all"}, r"region=all must be \[top,left,height,width\]"),
        (attacks.masked, {"region": [0, 0, 0, 1]}, "region=0 must be an integer, at least 1"),
        (attacks.masked, {"region": [0, 7, 1, 2]}, r"region=\[0, 7, 1, 2\] must lie within the images, .* 6 by 8"),
        (attacks.patch, {"size": 7}, "size=7 must be an integer, at least 1, at most 6. The images are 6 by 8"),
        (attacks.patch, {"size": "big"}, r"size=big must be an integer or \[height,width\]"),
        (attacks.patch, {"size": [1, 2, 3]}, r"size=\[1, 2, 3\] must be an integer or \[height,width\]"),
        (attacks.patch, {"size": 2, "place": "centre"}, "place='centre' must be one of .* Did you mean 'center'"),
        (attacks.patch, {"size": 2, "place": [1]}, r"place=\[1\] must be random, center or \[row,column\]"),
        (attacks.patch, {"size": 2, "place": [-1, 0]}, "place=-1 must be an integer, at least 0"),
        (attacks.patch, {"size": 2, "place": [5, 0]}, r"\(5, 0\), but the patch lies .* to \(4, 6\)"),
        (attacks.affine, {"rotation": -1.0}, "rotation=-1.0 must be a finite number, at least 0"),
        (attacks.python_perturbation, {"factory": "nowhere"}, "perturbation.factory='nowhere' must be"),
        (attacks.python_perturbation, {"factory": "math:sqroot"}, "has no function 'sqroot'"),
    ],
)
def test_what_does_not_fit_is_told(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(X, GENERATORS, **settings)


def test_a_perturbation_of_ones_own_is_imported_and_called_with_the_images(tmp_path, monkeypatch):
    (tmp_path / "own_kind.py").write_text(
        "from raiopt.perturbations import AdditivePerturbation\n"
        "def make(images, value=0.0):\n"
        "    return AdditivePerturbation(images, lambda delta: delta.fill_(value))\n"
        "def wrong(images):\n"
        "    return images\n"
    )
    monkeypatch.chdir(tmp_path)
    made = attacks.python_perturbation(X, GENERATORS, factory="own_kind:make", kwargs={"value": 0.5})
    assert_close(made(X), X + 0.5)
    with pytest.raises(TypeError, match=r"factory='own_kind:wrong' must return a perturbation, .* not Tensor"):
        attacks.python_perturbation(X, GENERATORS, factory="own_kind:wrong")
    with pytest.raises(TypeError, match=r"kwargs=\[1\] must be a mapping"):
        attacks.python_perturbation(X, GENERATORS, factory="own_kind:make", kwargs=[1])
    del sys.modules["own_kind"]


INITS = {
    "zero": (attacks.zero, {}, lambda x: x == 0),
    "uniform_linf": (attacks.uniform_linf, {"epsilon": 0.5}, lambda x: x.abs() <= 0.5),
    "uniform_l2": (attacks.uniform_l2, {"epsilon": 0.5}, lambda x: x.norm() <= 0.5 * (1 + 1e-6)),
    "uniform_l1": (attacks.uniform_l1, {"epsilon": 0.5}, lambda x: x.abs().sum() <= 0.5 * (1 + 1e-6)),
    "sphere_l2": (attacks.sphere_l2, {"epsilon": 0.5}, lambda x: (x.norm() - 0.5).abs() <= 1e-6),
    "gaussian": (attacks.gaussian, {"std": 0.5}, lambda x: (x.std() - 0.5).abs() < 0.05),
}


@pytest.mark.parametrize("name", INITS)
def test_starts_are_drawn_from_the_generator_alone(name):
    init, settings, law = INITS[name]
    before, rows = torch.random.get_rng_state(), torch.full((1, 3, 16, 16), 9.0)
    init(rows, generator=keyed_generator(0, 1), **settings)
    again = init(torch.ones_like(rows), generator=keyed_generator(0, 1), **settings)
    assert torch.equal(rows, again)
    assert law(rows).all()
    assert torch.equal(torch.random.get_rng_state(), before)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def margin(z, y):
    own = np.arange(len(z)), y
    others = z.copy()
    others[own] = -np.inf
    return others.max(1) - z[own]


def dlr(z, y):
    top = np.sort(z, 1)[:, ::-1]
    return margin(z, y) / (top[:, 0] - top[:, 2])


REFERENCES = {
    "cross_entropy": lambda z, y, clean: -np.log(softmax(z))[np.arange(len(z)), y],
    "margin": lambda z, y, clean: margin(z, y),
    "probability_margin": lambda z, y, clean: margin(softmax(z), y),
    "dlr": lambda z, y, clean: dlr(z, y),
    "kl": lambda z, y, clean: (softmax(clean) * np.log(softmax(clean) / softmax(z))).sum(1),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_criteria_agree_with_numpy(name):
    clean = LOGITS.flip(1)
    losses = getattr(attacks, name)(LOGITS, LABELS, labels=LABELS, clean=clean)
    expected = REFERENCES[name](LOGITS.numpy(), LABELS.numpy(), clean.numpy())
    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-9)


def test_targeted_dlr_compares_target_and_label():
    target, z = (LABELS + 1) % 5, LOGITS.numpy()
    losses = attacks.targeted_dlr(LOGITS, target, labels=LABELS, clean=LOGITS)
    top, rows = np.sort(z, 1)[:, ::-1], np.arange(3)
    expected = (z[rows, LABELS] - z[rows, target]) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)


def test_criteria_that_do_not_suit_the_goal_are_told():
    with pytest.raises(ValueError, match=r"targeted_dlr needs a target: solver.target=.* criterion=dlr"):
        attacks.targeted_dlr(LOGITS, LABELS, labels=LABELS, clean=LOGITS)
    with pytest.raises(ValueError, match=r"kl has no target .* criterion=cross_entropy"):
        attacks.kl(LOGITS, LABELS.clone(), labels=LABELS, clean=LOGITS)
