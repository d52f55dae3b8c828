"""Perturbations of a part of each image, and of a function given by name."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from raiopt.perturbations import PatchPerturbation
from raiopt.perturbations.regions import masked, patch
from raiopt.sampling import keyed_generator
from raiopt.zoo.factories import python_perturbation

X = torch.rand(3, 2, 6, 8, generator=torch.Generator().manual_seed(0))
GENERATORS = [keyed_generator(0, i) for i in range(3)]
placed = partial(patch, generators=GENERATORS)


def test_a_mask_leaves_all_but_its_region():
    made = masked(X, region=[1, 2, 3, 4])
    nn.init.ones_(made.delta)
    expected = X.numpy().copy()
    expected[:, :, 1:4, 2:6] += 1
    np.testing.assert_allclose(made(X).detach(), expected)


@pytest.mark.parametrize(("place", "corners"), [("center", [[2, 2]] * 3), ([1, 3], [[1, 3]] * 3), ("random", None)])
@pytest.mark.parametrize("size", [2, [2, 3]])
@pytest.mark.parametrize("shared", [True, False])
def test_a_patch_lies_where_it_was_put(place, corners, size, shared):
    made = patch(X, [keyed_generator(0, i) for i in range(3)], size=size, place=place, shared=shared)
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


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (masked, {"region": [1, 2, 3]}, r"region=\[1, 2, 3\] must be \[top,left,height,width\]"),
        (masked, {"region": "all"}, r"region=all must be \[top,left,height,width\]"),
        (masked, {"region": [0, 0, 0, 1]}, "region=0 must be an integer, at least 1"),
        (masked, {"region": [0, 7, 1, 2]}, r"region=\[0, 7, 1, 2\] must lie within the images, .* 6 by 8"),
        (placed, {"size": 7}, "size=7 must be an integer, at least 1, at most 6. The images are 6 by 8"),
        (placed, {"size": "big"}, r"size=big must be an integer or \[height,width\]"),
        (placed, {"size": [1, 2, 3]}, r"size=\[1, 2, 3\] must be an integer or \[height,width\]"),
        (placed, {"size": 2, "place": "centre"}, "place='centre' must be one of .* Did you mean 'center'"),
        (placed, {"size": 2, "place": [1]}, r"place=\[1\] must be random, center or \[row,column\]"),
        (placed, {"size": 2, "place": [-1, 0]}, "place=-1 must be an integer, at least 0"),
        (placed, {"size": 2, "place": [5, 0]}, r"\(5, 0\), but the patch lies .* to \(4, 6\)"),
        (python_perturbation, {"factory": "nowhere"}, "perturbation.factory='nowhere' must be"),
        (python_perturbation, {"factory": "math:sqroot"}, "has no function 'sqroot'"),
    ],
)
def test_incompatible_settings_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(X, **settings)


def test_a_user_defined_perturbation_is_imported_and_called_with_the_images(tmp_path, monkeypatch):
    (tmp_path / "own_kind.py").write_text(
        "from raiopt.perturbations import AdditivePerturbation\n"
        "def make(images, value=0.0):\n"
        "    return AdditivePerturbation(images, lambda delta: delta.fill_(value))\n"
        "def wrong(images):\n"
        "    return images\n"
    )
    monkeypatch.chdir(tmp_path)
    made = python_perturbation(X, factory="own_kind:make", kwargs={"value": 0.5})
    assert_close(made(X), X + 0.5)
    with pytest.raises(TypeError, match=r"factory='own_kind:wrong' must return a perturbation, .* not Tensor"):
        python_perturbation(X, factory="own_kind:wrong")
    with pytest.raises(TypeError, match=r"kwargs=\[1\] must be a mapping"):
        python_perturbation(X, factory="own_kind:make", kwargs=[1])
    del sys.modules["own_kind"]
