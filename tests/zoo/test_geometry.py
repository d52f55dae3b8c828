import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raiopt.zoo import Geometry
from raiopt.zoo.geometry import pixels, square
from raiopt.zoo.pretrained import preset_geometry
from raiopt.zoo.vision import functional, models

PRESETS = [
    models.ResNet18_Weights.IMAGENET1K_V1,  # 256, 224, bilinear
    models.ResNet50_Weights.IMAGENET1K_V2,  # 232
    models.EfficientNet_B1_Weights.IMAGENET1K_V1,  # bicubic, 256, 240
    models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,  # bicubic, 384, mean and std of its own
    models.Inception_V3_Weights.IMAGENET1K_V1,  # 342, 299
]


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(values if len(mode) > 1 else values[..., 0], mode=None)


@pytest.mark.parametrize("weights", PRESETS, ids=repr)
@pytest.mark.parametrize("size", [(500, 375), (120, 300), (256, 256)])
def test_geometry_and_normalisation_together_are_the_preset(weights, size):
    preset = weights.transforms()
    image = noise(*size)
    ours = preset_geometry(preset).apply(image)
    assert 0 <= ours.min() <= ours.max() <= 1
    assert torch.equal(functional.normalize(ours, preset.mean, preset.std), preset(image))


@given(width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 40))
def test_every_image_becomes_a_square(width, height, size):
    assert square(size).apply(noise(width, height)).shape == (3, size, size)


def test_pixels_are_the_bytes_over_255():
    image = noise(7, 5)
    assert torch.equal(pixels(image), torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)


def test_every_mode_becomes_rgb():
    grey = noise(6, 4, "L")
    expected = torch.from_numpy(np.array(grey)).expand(3, -1, -1) / 255
    opaque = Image.merge("RGBA", [grey, grey, grey, Image.new("L", grey.size, 255)])
    indexed = grey.convert("P")
    for image in (grey, opaque, indexed):
        torch.testing.assert_close(pixels(image), expected)


def test_16_bit_grey_is_scaled_and_not_clipped():
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    expected = torch.tensor([0, 1, 128, 255]) / 255
    assert torch.equal(pixels(Image.fromarray(values))[0, 0], expected)


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="blurry"):
        Geometry(8, 8, interpolation="blurry").apply(noise(9, 9))


@pytest.mark.parametrize("size", [0, -3])
def test_an_invalid_size_is_refused(size):
    with pytest.raises(ValueError, match=f"data.size={size} must be an integer, at least 1"):
        square(size)
