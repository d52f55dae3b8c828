import pytest
import torch
from torch.nn.functional import cross_entropy

from raiopt.zoo import digits, load_data, load_model
from raiopt.zoo.digits import ASSETS, enlarged, stored


def test_the_splits_are_disjoint_and_complete():
    test, train, everything = (digits(split) for split in ("test", "train", "all"))
    assert (len(test), len(train), len(everything)) == (500, 1297, 1797)
    assert sorted(test.names + train.names) == everything.names == [f"digits/{i:04d}" for i in range(1797)]
    assert test.names == sorted(test.names)


@pytest.mark.parametrize("split", ["test", "train", "all"])
def test_ids_are_the_positions_that_indices_choose(split):
    data = digits(split)
    assert data.ids == list(range(len(data)))
    assert digits(split, indices=[7, 3]).ids == [7, 3]
    assert digits(split, indices=[7, 3]).names == [data.names[7], data.names[3]]


def test_a_sample_is_the_same_in_every_split():
    test, everything = digits("test"), digits("all")
    for position in (0, 17, 499):
        index = everything.names.index(test.names[position])
        assert torch.equal(test.image(position), everything.image(index))
        assert test.names[position] == everything.names[index] == f"digits/{index:04d}"
        assert test.labels is not None
        assert everything.labels is not None
        assert test.labels[position] == everything.labels[index]


def test_images_are_enlarged_grey_pixels():
    images, labels = load_data("digits")
    assert images.shape == (500, 3, 64, 64)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.min() == 0
    assert images.max() == 1
    assert torch.equal(images[:, 0], images[:, 2])
    assert (torch.bincount(labels, minlength=10) > 30).all()


def test_enlarging_is_bilinear():
    small = torch.arange(64, dtype=torch.uint8).view(8, 8) % 17
    large = enlarged(small)
    at = (torch.arange(64) + 0.5) / 8 - 0.5
    low = at.floor().clamp(0, 7).long()
    high = (low + 1).clamp(max=7)
    share = (at - low).clamp(0, 1)
    rows = small[low].float() * (1 - share)[:, None] + small[high].float() * share[:, None]
    expected = rows[:, low] * (1 - share) + rows[:, high] * share
    torch.testing.assert_close(large[1], expected / 16)


def test_stored_images_have_17_levels():
    images = stored()["images"]
    assert images.dtype == torch.uint8
    assert images.unique().tolist() == list(range(17))
    assert "CC BY 4.0" in (ASSETS / "LICENSE.digits").read_text()


@pytest.mark.parametrize("name", ["digits_robust", "digits_standard"])
def test_both_networks_recognize_the_digits(name):
    images, labels = load_data("digits")
    model = load_model(name)
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() >= 0.98
    assert model.num_classes == 10
    assert (model.mean.item(), model.std.item()) == pytest.approx((0.3, 0.35))


def accuracy_under_attack(name: str, steps: int = 10) -> float:
    """Plain Linf PGD at 0.1, written out, on every tenth test image."""
    images, labels = (tensor[::10] for tensor in load_data("digits"))
    model = load_model(name)
    x = images.clone()
    for _ in range(steps):
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(model(x), labels, reduction="sum"), x)
        x = (x.detach() + 0.025 * gradient.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1)
    with torch.no_grad():
        return (model(x).argmax(1) == labels).float().mean().item()


def test_only_the_robust_network_withstands_small_changes():
    assert accuracy_under_attack("digits_robust") >= 0.6
    assert accuracy_under_attack("digits_standard") <= 0.05


def test_bad_arguments_are_refused():
    with pytest.raises(
        ValueError, match=r"data\.split='tets' must be one of 'test', 'train', 'all'\. Did you mean 'test'\?"
    ):
        digits("tets")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="The data set digits has 10 classes and the model 1000"):
        digits(num_classes=1000)
    with pytest.raises(ValueError, match="name='digit' must be one of 'digits', 'digits_train'"):
        load_data("digit")
