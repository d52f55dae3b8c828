import struct

import numpy as np
import pytest
import torch
from PIL import Image

from raiopt.zoo.datasets import NAMES, torchvision_data
from raiopt.zoo.vision import datasets


@pytest.fixture
def mnist(tmp_path):
    """Six training and four test images in MNIST's own files; image i is full of 20 i."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", 6), ("t10k", 4)):
        images = np.repeat(np.arange(count, dtype=np.uint8) * 20, 28 * 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes()
        )
        labels = bytes(range(count))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)
    return str(tmp_path)


@pytest.fixture
def imagenette(tmp_path):
    """Two images in each of the ten folders of Imagenette's validation part."""
    root = tmp_path / "imagenette2"
    for index, wnid in enumerate(datasets.Imagenette._WNID_TO_CLASS):
        for number in range(2):
            file = root / "val" / wnid / f"{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + index, 16), (25 * index, 0, 0)).save(file)
        (root / "train" / wnid).mkdir(parents=True)
    return str(tmp_path)


def test_a_data_set_in_its_own_files_is_read(mnist):
    test, train = torchvision_data("MNIST", mnist), torchvision_data("MNIST", mnist, split="train")
    assert (len(test), len(train)) == (4, 6)
    assert torch.equal(test.image(3), torch.full((3, 28, 28), 60 / 255))
    assert test.labels is not None
    assert test.labels.tolist() == [0, 1, 2, 3]
    assert test.names[3] == "MNIST/test/3"
    assert test.num_classes == 10
    assert test.classes is not None
    assert test.classes[0] == "0 - zero"
    assert torchvision_data("MNIST", mnist, size=14, indices=[2]).shape == (3, 14, 14)
    assert torchvision_data("MNIST", mnist, indices=[2, 0]).ids == [2, 0]


def test_labels_are_matched_by_name_if_the_model_has_names(imagenette):
    """Imagenette has ten of ImageNet's classes, with synonyms; its own indices are 0 to 9."""
    categories = ("church", "chain saw", *(f"other {i}" for i in range(5)))
    known = [names[0] for names in datasets.Imagenette._WNID_TO_CLASS.values() if "chain saw" not in names]
    categories += tuple(name for name in known if name != "church")
    data = torchvision_data(
        "Imagenette", imagenette, split="val", size=8, categories=categories, num_classes=len(categories)
    )
    assert data.labels is not None
    assert data.classes is not None
    assert {"church", "chain saw"} <= set(data.classes)
    reds = [round(data.image(position)[0, 0, 0].item() * 10.2) for position in range(20)]
    for red, label in zip(reds, data.labels.tolist(), strict=True):
        assert categories[label] in list(datasets.Imagenette._WNID_TO_CLASS.values())[red]


def test_without_names_the_counts_must_agree(imagenette, mnist):
    with pytest.raises(ValueError, match="The data set Imagenette has 10 classes and the model 1000"):
        torchvision_data("Imagenette", imagenette, split="val", size=8, categories=("ox",), num_classes=1000)
    with pytest.raises(ValueError, match="The data set MNIST has 10 classes and the model 3"):
        torchvision_data("MNIST", mnist, num_classes=3)


def test_made_up_images_need_no_files():
    data = torchvision_data("FakeData", "", limit=3, num_classes=10)
    source = datasets.FakeData()
    assert data.shape == (3, 224, 224)
    assert data.labels is not None
    assert data.labels.tolist() == [int(source[i][1]) for i in range(3)]
    with pytest.raises(ValueError, match=r"FakeData has 10 classes and the model 5"):
        torchvision_data("FakeData", "", limit=3, num_classes=5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("CIFAR1", {}, r"data\.name='CIFAR1' must be one of .* Did you mean 'CIFAR10+'\?"),
        (
            "CIFAR10",
            {},
            r"torchvision cannot open CIFAR10 in data\.root=.* give data\.download=true, or copy them there",
        ),
        ("CIFAR10", {"split": "val"}, r"data\.split='val' must be one of 'test', 'train'"),
        ("SEMEION", {"split": "train"}, r"data\.split='train' must be one of 'test'"),
        ("ImageNet", {"split": "val", "download": True}, r"data\.download=true has no effect: torchvision cannot"),
        ("ImageNet", {"split": "val"}, r"torchvision cannot open ImageNet .* If files are missing: copy them there"),
        ("DTD", {"split": "tset"}, "Unknown value 'tset' for argument split"),
        ("QMNIST", {}, r"torchvision cannot open QMNIST .* give data\.download=true"),
    ],
)
def test_data_sets_that_cannot_be_opened_are_explained(tmp_path, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        torchvision_data(name, str(tmp_path), **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_data_set_of_torchvision(name):
    assert issubclass(getattr(datasets, name), torch.utils.data.Dataset)
