"""The gallery: its size, its pixels, and texts that do not fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from raiopt.results.gallery import CAPTION, CELL, GAP, MARGIN, TITLE, Exhibit, draw_gallery


def exhibit(image, delta, broken=True):
    return Exhibit(image, delta, "a very long name of a class that does not fit", "b", broken)


def cell(path, column, row):
    """Returns the middle half of a picture in the gallery, where no frame is."""
    x, y = MARGIN + 96 + column * (CELL + GAP), TITLE + row * (CELL + CAPTION)
    return pixels(path)[y + 32 : y + 96, x + 32 : x + 96]


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 200])
def test_cells_show_clean_perturbation_and_adversarial(tmp_path, channels, size):
    image, delta = torch.full((channels, size, size), 0.25), torch.full((channels, size, size), 0.5)
    draw_gallery([exhibit(image, delta), exhibit(image, -delta / 5, False)], tmp_path / "g.png", "t" * 500)
    for column, (clean, middle, adversarial) in enumerate([(64, 255, 191), (64, 0, 38)]):
        for row, value in enumerate((clean, middle, adversarial)):
            assert np.abs(cell(tmp_path / "g.png", column, row).astype(int) - value).max() <= 1


def test_a_zero_perturbation_is_grey_and_an_empty_gallery_is_drawn(tmp_path):
    image = torch.zeros(3, 8, 8)
    draw_gallery([exhibit(image, image)], tmp_path / "g.png", "title")
    assert np.abs(cell(tmp_path / "g.png", 0, 1).astype(int) - 128).max() <= 1
    draw_gallery([], tmp_path / "empty.png", "title")
    assert len(pixels(tmp_path / "empty.png")) == len(pixels(tmp_path / "g.png"))


def test_wide_images_keep_their_shape(tmp_path):
    image = torch.ones(3, 4, 16)
    draw_gallery([exhibit(image, 0 * image)], tmp_path / "g.png", "title")
    middle = cell(tmp_path / "g.png", 0, 0)
    assert (middle[24:40] == 255).all()
