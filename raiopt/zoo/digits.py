"""The built-in data and networks: handwritten digits that need no download.

The data are the optical recognition digits of Alpaydin and Kaynak (1998, https://doi.org/10.24432/C50P49): 1,797
scanned images, 8 by 8, 17 levels of grey; `assets/LICENSE.digits` holds their licence. `scripts/train_digits` makes all
assets.
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
from raiopt.zoo.geometry import Geometry
from raiopt.zoo.loading import once
from raiopt.zoo.models import Classifier

ASSETS = Path(__file__).parent / "assets"
CLASSES = tuple("0123456789")
SIZE = 64
MEAN, STD = 0.3, 0.35
KINDS = ("robust", "standard")
SPLITS = ("test", "train", "all")


@cache
def stored() -> dict[str, Tensor]:
    """Returns `images` uint8 (1797, 8, 8) from 0 to 16, `labels` int64 (1797,), and the 500 sorted indices `test`."""
    return load_file(ASSETS / "digits.safetensors")


def enlarged(image: Tensor) -> Tensor:
    """Returns float32 (3, 64, 64) in [0, 1] of one stored (8, 8) image: bilinear, grey repeated."""
    grey = interpolate(image[None, None].float() / 16, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return grey[0].clamp_(0, 1).repeat(3, 1, 1)


@once
def digits(
    split: Literal["test", "train", "all"] = "test",
    *,
    limit: int | None = None,
    indices: Sequence[int] | str | None = None,
    geometry: Geometry | None = None,
    categories: tuple[str, ...] | None = None,
    num_classes: int | None = None,
) -> ImageData:
    """Returns the built-in digits: 500 test images, 1,297 to train on, or all, in the order of their index.

    They keep their size and labels: the model's `geometry` and `categories` are not looked at, as in all loaders that
    have no use for them.

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
def digits_model(kind: Literal["robust", "standard"] = "robust") -> Classifier:
    """Returns the built-in network: trained on clean digits, or adversarially at Linf 0.1 (Madry et al. 2018)."""
    checks.choice("model.kind", kind, KINDS)
    net = network()
    net.load_state_dict(load_file(ASSETS / f"digits_{kind}.safetensors"))
    preset = f"digits: mean {MEAN}, std {STD}"
    return Classifier(net, name=f"digits_{kind}", mean=MEAN, std=STD, classes=CLASSES, preset=preset).frozen()
