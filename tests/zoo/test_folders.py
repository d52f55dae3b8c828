from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raiopt.zoo import Geometry
from raiopt.zoo.folders import class_indices, image_folder

NAMES = ("ox", "cat", "eel")


def save(file: Path, size=(8, 6), value: int = 51, mode: str = "RGB") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(file)
    return file


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two images in each of three class folders, one in a folder below, and a file that is no image."""
    for index, name in enumerate(NAMES):
        save(tmp_path / name / "b.png", value=10 * index)
        save(tmp_path / name / "a.JPG", value=10 * index + 5)
    save(tmp_path / "cat" / "more" / "c.bmp")
    (tmp_path / "ox" / "notes.txt").write_text("no image")
    return tmp_path


@pytest.fixture
def flat(tmp_path) -> Path:
    for index in range(3):
        save(tmp_path / f"{index}.png", value=51 * index)
    return tmp_path


def labels(data) -> dict[str, int]:
    return dict(zip(data.names, data.labels.tolist(), strict=True))


def test_images_are_found_sorted_and_below_class_folders(tree):
    data = image_folder(str(tree))
    assert data.names == ["cat/a.JPG", "cat/b.png", "cat/more/c.bmp", "eel/a.JPG", "eel/b.png", "ox/a.JPG", "ox/b.png"]
    assert data.ids == list(range(7))
    assert data.classes == ("cat", "eel", "ox")
    assert torch.equal(data.image(6), torch.zeros(3, 6, 8))
    assert torch.equal(data.image(1), torch.full((3, 6, 8), 10 / 255))
    assert image_folder(str(tree), limit=2, indices="::-3").names == ["ox/b.png", "eel/a.JPG"]


def test_labels_follow_names_where_all_are_categories(tree):
    data = image_folder(str(tree), categories=("dog", "ox", "eel", "cat"), num_classes=4)
    assert data.num_classes == 4
    assert labels(data)["ox/a.JPG"] == 1
    assert labels(data)["cat/more/c.bmp"] == 3
    assert labels(data)["eel/b.png"] == 2


def test_labels_follow_the_sorted_order_where_the_counts_agree(tree):
    for data in (image_folder(str(tree), categories=("dog", "ox", "eel"), num_classes=3), image_folder(str(tree))):
        assert data.num_classes == 3
        assert labels(data)["cat/b.png"] == 0
        assert labels(data)["eel/b.png"] == 1
        assert labels(data)["ox/b.png"] == 2


def test_other_counts_are_an_error_that_names_both(tree):
    with pytest.raises(ValueError, match=r"The data have 3 classes and the model 10, .*data\.labels=predicted"):
        image_folder(str(tree), num_classes=10)
    with pytest.raises(ValueError, match=r"not all class names are the model's categories \(e\.g\. 'eel'\)"):
        image_folder(str(tree), categories=("ox", "cat", "dog", "bat"), num_classes=4)


def test_predicted_labels_need_no_class_folders(flat):
    data = image_folder(str(flat), labels="predicted", num_classes=1000)
    assert data.labels is None
    assert data.names == ["0.png", "1.png", "2.png"]
    with pytest.raises(ValueError, match=r"0\.png is in data\.root=.* not in a class folder.* data\.labels=predicted"):
        image_folder(str(flat))


@given(st.lists(st.text(min_size=1), unique=True, min_size=1), st.randoms())
def test_class_indices_by_name_or_by_order(names, random):
    categories = [*names, "\0another"]
    random.shuffle(categories)
    by_name = class_indices(names, categories, len(categories))
    assert all(categories[index] == name for name, index in by_name.items())
    by_order = class_indices(names, None, len(names))
    assert sorted(names, key=lambda name: by_order[name]) == sorted(names)
    assert sorted(by_order.values()) == list(range(len(names)))


def test_a_name_of_two_categories_is_refused():
    with pytest.raises(ValueError, match="'crane' is the name of several categories"):
        class_indices(["crane"], ("crane", "ox", "crane"), 3)


def test_size_comes_before_the_models_geometry(tree):
    geometry = Geometry(6, 4)
    assert image_folder(str(tree), geometry=geometry).shape == (3, 4, 4)
    assert image_folder(str(tree), geometry=geometry, size=5).shape == (3, 5, 5)
    assert image_folder(str(tree)).shape == (3, 6, 8)


def test_images_of_different_sizes_need_a_size(flat):
    save(flat / "9.png", size=(4, 4))
    with pytest.raises(ValueError, match=r"0\.png is 8x6 pixels and .*9\.png 4x4; .* data\.size=224"):
        image_folder(str(flat), labels="predicted")
    assert image_folder(str(flat), labels="predicted", size=4).image(3).shape == (3, 4, 4)
    assert len(image_folder(str(flat), labels="predicted", limit=3)) == 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.6, 0.97])
def test_a_damaged_image_is_named_before_any_work(flat, suffix, share):
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = flat / f"bad.{suffix}"
    Image.fromarray(values).save(file)
    content = file.read_bytes()
    assert len(image_folder(str(flat), labels="predicted")) == 4
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"bad\.{suffix} cannot be read as an image"):
        image_folder(str(flat), labels="predicted", limit=4)
    assert len(image_folder(str(flat), labels="predicted", limit=3)) == 3


def test_a_deleted_image_is_named(flat):
    data = image_folder(str(flat), labels="predicted")
    (flat / "1.png").unlink()
    with pytest.raises(ValueError, match=r"1\.png cannot be read as an image"):
        data.image(1)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "RGB", "CMYK"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (4, 3), (51, 51, 51)).convert(mode).save(file)
    torch.testing.assert_close(image_folder(str(tmp_path), labels="predicted").image(0), torch.full((3, 3, 4), 0.2))


def test_folders_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.root='.*missing' is not a folder"):
        image_folder(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"data\.root=.* contains no images \(\.png, "):
        image_folder(str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.labels='flat' must be one of 'folder', 'predicted'"):
        image_folder(str(tmp_path), labels="flat")  # pyright: ignore[reportArgumentType]
