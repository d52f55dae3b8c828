"""Patches against plain slices, and their places."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.testing import assert_close

from raiopt.attacks import gradient_ascent
from raiopt.perturbations import PatchPerturbation, PerturbationModel, random_places
from raiopt.sampling import keyed_generator


@st.composite
def cases(draw):
    """The shape of images, the size of a patch that fits, and a place for each image."""
    shape = tuple(draw(st.integers(1, most)) for most in (4, 3, 6, 6))
    size = tuple(draw(st.integers(1, side)) for side in shape[2:])
    places = [
        [draw(st.integers(0, side - s)) for side, s in zip(shape[2:], size, strict=True)] for _ in range(shape[0])
    ]
    return shape, size, places


def on_top(data, patch, places):
    """Writes each patch over its image, in NumPy."""
    result = data.numpy().copy()
    height, width = patch.shape[2:]
    for i, (row, column) in enumerate(places):
        result[i, :, row : row + height, column : column + width] = patch[i % len(patch)]
    return result


@pytest.mark.parametrize("shared", [True, False])
@given(case=cases())
def test_each_image_holds_its_patch_at_its_place(shared, case):
    shape, size, places = case
    data = torch.rand(shape)
    before = data.clone()
    perturbation = PatchPerturbation(
        data, torch.nn.init.uniform_, size=size, places=torch.tensor(places), shared=shared
    )
    patch = perturbation.patch.detach().numpy()
    assert patch.shape == (1 if shared else shape[0], shape[1], *size)
    assert_close(perturbation(data).detach().numpy(), on_top(data, patch, places), rtol=0, atol=0)
    assert torch.equal(data, before)
    weight = torch.rand(shape)
    (gradient,) = torch.autograd.grad((weight * perturbation(data)).sum(), [perturbation.patch])
    seen = np.stack([weight[i, :, r : r + size[0], c : c + size[1]].numpy() for i, (r, c) in enumerate(places)])
    assert_close(gradient.numpy(), seen.sum(0, keepdims=True) if shared else seen)


def test_the_image_below_the_patch_has_no_gradient_and_the_rest_has():
    data = torch.rand(2, 1, 3, 3, requires_grad=True)
    PatchPerturbation(data, size=2, places=(0, 1))(data).sum().backward()
    assert_close(data.grad[1, 0], torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 1, 1]]))


@pytest.mark.parametrize(("side", "size", "corner"), [(5, 3, [1, 1]), (6, 3, [1, 1]), (8, 2, [3, 3]), (4, 4, [0, 0])])
def test_the_default_place_is_the_centre(side, size, corner):
    assert PatchPerturbation((2, 3, side, side), size=size).places.tolist() == [corner] * 2


def test_the_protocol_holds_and_the_bounds_are_those_of_pixels():
    data = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    for shared in (True, False):
        perturbation = PatchPerturbation(data, size=(1, 2), shared=shared)
        assert isinstance(perturbation, PerturbationModel)
        assert perturbation.is_shared(data) == shared
        lower, upper = perturbation.bounds(data)
        assert lower.shape == upper.shape == perturbation.patch.shape
        assert lower.dtype == perturbation.patch.dtype == data.dtype
        assert (lower == 0).all()
        assert (upper == 1).all()
        assert not lower.requires_grad
    assert PatchPerturbation(data, size=1).state_dict()["places"].shape == (3, 2)
    assert PatchPerturbation(data, size=1, dtype=torch.float16)(data).dtype == data.dtype


def test_memory_format_is_kept():
    data = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert PatchPerturbation(data, size=2)(data).is_contiguous(memory_format=torch.channels_last)


def test_gradient_ascent_finds_the_best_patch_of_a_linear_model():
    torch.manual_seed(0)
    data, weight = torch.rand(4, 1, 5, 5), torch.randn(5, 5)
    found, losses = gradient_ascent(
        model=lambda x: (x[:, 0] * weight).sum((1, 2)),
        data=data,
        target=0.0,
        criterion=lambda output, target: output,
        perturbation_model=partial(PatchPerturbation, size=3),
        optimizer=SGD,
        lr=1.0,
        steps=2,
    )
    expected = data.clone()
    expected[:, 0, 1:4, 1:4] = 2 * 4 * weight[1:4, 1:4]  # two steps along the gradient, which the four images add up
    assert_close(found, expected)
    assert_close(losses, (expected[:, 0] * weight).sum((1, 2)))


def test_random_places_cover_every_corner_equally_often():
    places = random_places((6000, 3, 5, 7), (3, 6), [keyed_generator(0, i) for i in range(6000)])
    assert places.shape == (6000, 2)
    counts = np.histogram2d(*places.T.numpy(), bins=[range(4), range(3)])[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square with 5 degrees of freedom at the level of 0.1 %
    assert counts.sum() == 6000


def test_a_place_depends_on_its_own_generator_only():
    before = torch.get_rng_state()
    draw = partial(random_places, size=2)
    ids = [3, 1, 4, 15]
    together = draw((4, 1, 90, 90), generators=[keyed_generator(7, i) for i in ids])
    alone = [draw((1, 1, 90, 90), generators=[keyed_generator(7, i)]) for i in ids]
    assert torch.equal(together, torch.cat(alone))
    assert len(together.unique(dim=0)) == 4
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((2, 3, 4), {"size": 2}, ValueError, r"\(N, C, H, W\), got \(2, 3, 4\)"),
        (
            (2, 3, 4, 5),
            {"size": 5},
            ValueError,
            "size=5 must be an integer, at least 1, at most 4. The images are 4 by 5",
        ),
        ((2, 3, 4, 5), {"size": 0}, ValueError, "size=0 must"),
        ((2, 3, 4, 5), {"size": 1.5}, TypeError, r"size=1\.5 must be an integer"),
        ((2, 3, 4, 5), {"size": (1, 2, 3)}, ValueError, r"size=\(1, 2, 3\) must be an integer or \(height, width\)"),
        ((2, 3, 4, 5), {"size": 2, "places": (3, 0)}, ValueError, r"the corner \(3, 0\).*from \(0, 0\) to \(2, 3\)"),
        ((2, 3, 4, 5), {"size": 2, "places": torch.tensor([[0, 0], [0, -1]])}, ValueError, r"the corner \(0, -1\)"),
        ((2, 3, 4, 5), {"size": 2, "places": [[0, 0]] * 3}, ValueError, r"places of shape \(3, 2\)"),
        ((2, 3, 4, 5), {"size": 2, "places": (0.0, 1.0)}, TypeError, "places must be integers, got torch.float32"),
        ((2, 3, 4, 5), {"size": 2, "places": torch.ones(2).bool()}, TypeError, "places must be integers"),
    ],
)
def test_incompatible_arguments_are_an_error(shape, options, error, message):
    with pytest.raises(error, match=message):
        PatchPerturbation(shape, **options)


def test_other_numbers_of_images_are_an_error():
    with pytest.raises(ValueError, match="data has 3 images, but there are places for 2"):
        PatchPerturbation((2, 1, 4, 4), size=1)(torch.zeros(3, 1, 4, 4))
    with pytest.raises(ValueError, match="generators must be one for each of the 3 images, got 2"):
        random_places((3, 1, 4, 4), 1, [torch.Generator()] * 2)
