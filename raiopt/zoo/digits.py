"""The built-in data set of handwritten digits and two networks trained on it; nothing is downloaded.

The data are the optical recognition digits of Alpaydin and Kaynak (1998, https://doi.org/10.24432/C50P49): 1,797
scanned images of 8 by 8 pixels with 17 grey levels, under the licence in `assets/LICENSE.digits`.
`scripts/train_digits` creates all assets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from raiopt import checks
from raiopt.zoo.data import ImageData, check_labels
from raiopt.zoo.loading import once
from raiopt.zoo.models import Classifier

ASSETS = Path(__file__).parent / "assets"
CLASSES = tuple("0123456789")
SIZE = 64
MEAN, STD = 0.3, 0.35
SPLITS = ("test", "train", "all")


@cache
def stored() -> dict[str, Tensor]:
    """Returns `images` (1797, 8, 8), uint8 from 0 to 16, `labels` (1797,), and the indices `test` (500,), sorted."""
    return load_file(ASSETS / "digits.safetensors")


def enlarged(image: Tensor) -> Tensor:
    """Returns a stored image (8, 8) as pixels (3, 64, 64) in [0, 1]: enlarged bilinearly, grey in all channels."""
    grey = interpolate(image[None, None].float() / 16, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return grey[0].clamp_(0, 1).repeat(3, 1, 1)


@once
def digits(
    split: Literal["test", "train", "all"] = "test",
    *,
    limit: int | None = None,
    indices: Sequence[int] | str | None = None,
    num_classes: int | None = None,
) -> ImageData:
    """The built-in handwritten digits, 8 by 8 pixels enlarged to (3, 64, 64).

    Args:
        split: `test` (500 images), `train` (1,297) or `all`.
        limit: Use at most this number of samples, after `indices`; None: all.
        indices: Positions in the data, `[3,1,7]`, or a slice, `"10:20"` or `::-1`; None: all.
        num_classes: The number of classes of the model; must be 10 or None.

    Examples:
        >>> data = digits(limit=2)
        >>> data.names, data.image(0).shape
        (['digits/0002', 'digits/0012'], torch.Size([3, 64, 64]))
    """
    checks.choice("data.split", split, SPLITS)
    images, labels, test = (stored()[key] for key in ("images", "labels", "test"))
    in_test = torch.zeros(len(labels), dtype=torch.bool).index_fill_(0, test, True)
    mask = {"test": in_test, "train": ~in_test, "all": torch.ones_like(in_test)}[split]
    scans = mask.nonzero().flatten().tolist()
    data = ImageData(
        name="digits",
        ids=list(range(len(scans))),
        names=[f"digits/{scan:04d}" for scan in scans],
        labels=labels[scans],
        read=lambda i: enlarged(images[scans[i]]),
        classes=CLASSES,
        num_classes=len(CLASSES),
    )
    check_labels(data, num_classes)
    return data.select(limit, indices)


def network() -> nn.Module:
    """Returns the untrained network of both built-in models: ShuffleNetV2 x0.5, 0.35 M weights (Ma et al. 2018)."""
    from raiopt.zoo import vision

    return vision.models.shufflenet_v2_x0_5(num_classes=len(CLASSES))


@once
def digits_robust() -> Classifier:
    """Built-in network for the digits, trained adversarially against Linf attacks with epsilon 0.1."""
    return _loaded("digits_robust")


@once
def digits_standard() -> Classifier:
    """Built-in network for the digits, trained on clean images."""
    return _loaded("digits_standard")


def _loaded(name: str) -> Classifier:
    net = network()
    net.load_state_dict(load_file(ASSETS / f"{name}.safetensors"))
    preset = f"digits: mean {MEAN}, std {STD}"
    return Classifier(net, name=name, mean=MEAN, std=STD, classes=CLASSES, preset=preset).frozen()
