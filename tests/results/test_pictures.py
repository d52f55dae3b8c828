"""Pictures against NumPy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from raiopt.results.pictures import around_grey, fitted, picture

SHAPES = arrays.array_shapes(min_dims=3, max_dims=3, max_side=6)
VALUES = st.floats(-0.5, 1.5, width=32)


def images(dtype=np.float32, elements=VALUES):
    return arrays.arrays(dtype, SHAPES, elements=elements)


@given(x=images())
def test_a_picture_holds_the_nearest_of_256_values(x):
    shown = np.asarray(picture(x))
    nearest = np.abs(shown / 255 - np.clip(np.moveaxis(rgb(x), 0, 2).astype(np.float64), 0, 1))
    assert shown.shape == (*x.shape[1:], 3)
    assert nearest.max() <= 0.5 / 255 + 1e-12


@given(x=images(np.uint8, st.integers(0, 255)))
def test_bytes_are_shown_as_they_are(x):
    assert (np.asarray(picture(x)) == np.moveaxis(rgb(x), 0, 2)).all()


def rgb(x):
    return x[:3] if len(x) >= 3 else np.stack([x[0]] * 3)


def test_nan_is_black():
    assert np.asarray(picture(np.full((1, 1, 1), np.nan))).max() == 0


@given(x=images(), scale=st.sampled_from([0.5, 2.0, 8.0]))
def test_a_perturbation_is_stretched_around_grey(x, scale):
    pixels, largest = around_grey(x)
    assert largest == np.abs(x.astype(np.float64)).max()
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert np.allclose((pixels - 0.5) * 2 * largest, x, atol=1e-12)
    if largest > 1e-30:
        assert np.allclose(around_grey(x * scale)[0], pixels)


@given(width=st.integers(1, 40), height=st.integers(1, 40), room=st.tuples(st.integers(4, 60), st.integers(4, 60)))
def test_a_picture_fills_its_cell_and_keeps_its_aspect_ratio(width, height, room):
    made = fitted(Image.new("RGB", (width, height)), *room)
    assert made.width <= room[0]
    assert made.height <= room[1]
    assert made.width == room[0] or made.height == room[1]
    scale = min(room[0] / width, room[1] / height)
    assert abs(made.width - width * scale) <= max(0.5, 1 - width * scale)
    assert abs(made.height - height * scale) <= max(0.5, 1 - height * scale)


@given(x=images(np.uint8, st.integers(0, 255)), factor=st.integers(2, 4))
def test_a_small_picture_keeps_its_pixels_sharp(x, factor):
    small = picture(x)
    large = np.asarray(fitted(small, small.width * factor, small.height * factor))
    assert (large == np.asarray(small).repeat(factor, axis=0).repeat(factor, axis=1)).all()
