"""Affine perturbations against bilinear interpolation in NumPy, torchvision, and exact cases."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from raiopt.attacks import gradient_ascent
from raiopt.optim import LinfProjectedOptim
from raiopt.perturbations import AffinePerturbation, PerturbationModel
from raiopt.zoo.vision import InterpolationMode, functional

poses = st.lists(st.floats(-1, 1), min_size=4, max_size=4)


def posed(data, pose, **largest):
    perturbation = AffinePerturbation(data, **largest)
    with torch.no_grad():
        perturbation.pose.copy_(torch.as_tensor(pose, dtype=torch.float64))
    return perturbation


def moved(image, degrees, right, down, zoom):
    """Moves an image (H, W) by pixels: each output pixel weighs the pixels around the place that it comes from."""
    height, width = image.shape
    angle, centre = np.deg2rad(degrees), np.array([(height - 1) / 2, (width - 1) / 2])
    forth = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # of (row, column)
    target = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).reshape(-1, 2)
    rows, columns = (np.linalg.solve(forth, (target - centre - [down, right]).T).T + centre).T
    near = [np.maximum(0, 1 - np.abs(at[:, None] - np.arange(side))) for at, side in ((rows, height), (columns, width))]
    return np.einsum("ph,pw,hw->p", *near, image).reshape(height, width)


@pytest.mark.parametrize(("height", "width"), [(5, 5), (4, 9), (8, 3)])
@given(pose=poses)
def test_agrees_with_interpolation_by_hand(height, width, pose):
    data = torch.from_numpy(np.random.default_rng(0).random((2, 1, height, width)))
    result = posed(data, pose, rotation=70.0, translation=0.4, scale=0.5)(data).detach()
    turn, right, down, zoom = pose
    for image, found in zip(data[:, 0].numpy(), result[:, 0].numpy(), strict=True):
        expected = moved(image, 70.0 * turn, 0.4 * right * width, 0.4 * down * height, 1 + 0.5 * zoom)
        assert_close(found, expected, rtol=0, atol=1e-9)


def test_agrees_with_torchvision_for_each_sample():
    torch.manual_seed(0)
    data, pose = torch.rand(6, 3, 20, 31), torch.rand(6, 4) * 2 - 1
    pose[:, 1] = (pose[:, 1] * 3).round() / 3  # torchvision shifts by whole pixels only
    pose[:, 2] = (pose[:, 2] * 2).round() / 2
    result = posed(data, pose * torch.tensor([1, 30 / 31, 1, 1]))(data).detach()
    for i, (turn, right, down, zoom) in enumerate((pose * torch.tensor([30.0, 3.0, 2.0, 0.1])).tolist()):
        expected = functional.affine(
            data[i], -turn, [round(right), round(down)], 1 + zoom, [0.0], InterpolationMode.BILINEAR
        )
        assert_close(result[i], expected, rtol=0, atol=1e-4)


def test_exact_moves():
    image = torch.arange(1.0, 10.0, dtype=torch.float64).view(1, 1, 3, 3)

    def result(*pose):
        return posed(image, pose, rotation=90, translation=1 / 3, scale=0.5)(image).detach()[0, 0]

    plain = image[0, 0]
    assert_close(result(0, 0, 0, 0), plain)
    assert_close(result(1, 0, 0, 0), plain.rot90())
    assert_close(result(-1, 0, 0, 0), plain.rot90(-1))
    assert_close(result(0, 1, 0, 0), torch.nn.functional.pad(plain, (1, 0))[:, :3])
    assert_close(result(0, 0, -1, 0), torch.nn.functional.pad(plain, (0, 0, 0, 1))[1:])
    assert_close(result(0, 0, 0, 1).diagonal(), torch.tensor([5 - 8 / 3, 5, 5 + 8 / 3], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(pose=poses, side=st.integers(1, 40))
def test_values_stay_between_zero_and_the_largest(dtype, pose, side):
    data = torch.ones(1, 1, side, 7, dtype=dtype)
    perturbation = posed(data, pose)
    result = perturbation(data)
    assert result.dtype == perturbation.pose.dtype == dtype
    assert 0 <= result.min() <= result.max() <= 1
    assert torch.equal(posed(-data, pose)(-data), -result)


def test_the_gradient_is_that_of_differences():
    torch.manual_seed(3)
    data = torch.rand(2, 2, 6, 5, dtype=torch.float64)
    perturbation = AffinePerturbation(data)

    def perturbed(pose):
        return torch.func.functional_call(perturbation, {"pose": pose}, (data,))

    pose = (torch.rand(2, 4, dtype=torch.float64) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(perturbed, [pose], eps=1e-7, atol=1e-5)


def test_each_row_moves_its_own_sample_and_data_are_not_written_to():
    torch.manual_seed(4)
    data, pose = torch.rand(3, 1, 8, 8), torch.rand(3, 4) * 2 - 1
    before = data.clone()
    together = posed(data, pose)(data)
    alone = [posed(data[i : i + 1], pose[i : i + 1])(data[i : i + 1]) for i in range(3)]
    assert_close(together, torch.cat(alone))
    assert torch.equal(data, before)


def test_the_protocol_holds():
    data = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    perturbation = AffinePerturbation(data, torch.nn.init.uniform_)
    assert isinstance(perturbation, PerturbationModel)
    assert not perturbation.is_shared(data)
    lower, upper = perturbation.bounds(data)
    assert lower.shape == upper.shape == perturbation.pose.shape == (3, 4)
    assert lower.dtype == upper.dtype == torch.float64
    assert (lower == -1).all()
    assert (upper == 1).all()
    assert perturbation.pose.min() > 0


def test_gradient_ascent_moves_a_spot_to_where_the_model_looks():
    spot = torch.exp(-(torch.linspace(-2, 2, 21)[:, None] ** 2 + torch.linspace(-2, 2, 21)[None, :] ** 2))
    weight = spot.roll((-2, 2), (0, 1))  # two pixels up, two to the right
    found, _ = gradient_ascent(
        model=lambda x: (x[:, 0] * weight).sum((1, 2)),
        data=spot[None, None],
        target=0.0,
        criterion=lambda output, target: output,
        perturbation_model=partial(AffinePerturbation, rotation=0, scale=0),
        optimizer=LinfProjectedOptim,
        epsilon=1.0,
        lr=0.02,
        steps=60,
        use_best=True,
    )
    assert divmod(int(found.argmax()), 21) == (8, 12)


@pytest.mark.parametrize(
    ("shape", "largest", "error", "message"),
    [
        ((2, 3, 4), {}, ValueError, r"\(N, C, H, W\), got \(2, 3, 4\)"),
        ((1, 1, 4, 4), {"rotation": -1.0}, ValueError, r"rotation=-1\.0 must be a finite number, at least 0"),
        ((1, 1, 4, 4), {"translation": float("nan")}, ValueError, "translation=nan must"),
        ((1, 1, 4, 4), {"scale": 1.0}, ValueError, r"scale=1\.0 must be below 1"),
        ((1, 1, 4, 4), {"scale": "big"}, TypeError, "scale='big' must"),
    ],
)
def test_incompatible_arguments_are_an_error(shape, largest, error, message):
    with pytest.raises(error, match=message):
        AffinePerturbation(shape, **largest)
