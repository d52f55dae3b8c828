"""torchvision's classifiers by name, with published weights or your own checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from raiopt import checks
from raiopt.zoo.checkpoints import StateDict, load_weights, published_weights, read_checkpoint
from raiopt.zoo.geometry import Geometry
from raiopt.zoo.loading import once
from raiopt.zoo.models import Classifier

if TYPE_CHECKING:
    from raiopt.zoo import vision

Numbers = float | Sequence[float] | None
DEFAULT_CLASSES = 1000  # of every torchvision builder
WITH_AUXILIARY_HEADS = {"googlenet": "aux1.", "inception_v3": "AuxLogits."}


def torchvision_models() -> list[str]:
    """Returns the names of torchvision's classifiers.

    Examples:
        >>> {"resnet50", "vit_b_16"} <= set(torchvision_models())
        True
    """
    from raiopt.zoo.vision import models

    return models.list_models(module=models)


@once
def torchvision_model(
    name: str,
    *,
    weights: str | None = None,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    mean: Numbers = None,
    std: Numbers = None,
) -> Classifier:
    """A torchvision classifier by name, with published weights or your own checkpoint.

    Args:
        name: The name of the classifier; `raiopt list model` shows all.
        weights: "DEFAULT" or other published weights, such as "IMAGENET1K_V1"; they set mean, std and geometry.
        checkpoint: A file with your own weights: safetensors, or a state dict from `torch.save`.
        num_classes: The number of classes of the checkpoint; None: 1000, torchvision's default.
        mean: Mean that is subtracted from the pixels in [0, 1]: one number, or one per channel; None: the preset's,
            or 0.
        std: Standard deviation that the pixels are divided by: one number, or one per channel; None: the preset's,
            or 1.
    """
    checks.choice("model.name", name, torchvision_models())
    if weights is not None and checkpoint is not None:
        raise ValueError(
            f"model.weights={weights} and model.checkpoint={checkpoint} cannot be combined: give only one."
        )
    if weights is not None:
        return _with_published(name, weights, num_classes, mean, std)
    if checkpoint is not None:
        return _with_checkpoint(name, checkpoint, num_classes, mean, std)
    raise ValueError(f"The model {name} has no weights: give model.weights=DEFAULT or model.checkpoint=FILE.")


def _with_published(name: str, weights: str, num_classes: int | None, mean: Numbers, std: Numbers) -> Classifier:
    from raiopt.zoo.vision import models

    offered = models.get_model_weights(name)
    classifiers = [
        key for key, value in offered.__members__.items() if value.meta["categories"]
    ]  # vgg16 also has weights for features only
    choice = offered[checks.choice("model.weights", weights, classifiers)]
    classes = tuple(choice.meta["categories"])
    if num_classes not in (None, len(classes)):
        raise ValueError(
            f"model.num_classes={num_classes} does not fit {choice!r}, which has {len(classes)} classes. Leave it out."
        )
    net = _built_with(name, choice, published_weights(choice))
    preset = choice.transforms()
    given = " and ".join(key for key, value in (("mean", mean), ("std", std)) if value is not None)
    return Classifier(
        net,
        name=name,
        mean=preset.mean if mean is None else mean,
        std=preset.std if std is None else std,
        classes=classes,
        geometry=preset_geometry(preset),
        preset=f"{choice!r}, {given} given" if given else repr(choice),
    ).frozen()


def preset_geometry(preset: Any) -> Geometry:
    """Returns the resize and crop of `weights.transforms()`."""
    return Geometry(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        antialias=bool(preset.antialias),
    )


def _built_with(name: str, weights: vision.models.WeightsEnum, state: StateDict) -> nn.Module:
    """Builds the network with torchvision's builder, which chooses its options (image size, heads) by the weights."""
    from raiopt.zoo.vision import models

    with _returning(weights, state):
        try:
            return models.get_model(name, weights=weights)
        except RuntimeError as error:  # what nn.Module.load_state_dict raises
            lines = [line.strip() for line in str(error).splitlines()]
            raise ValueError(f"The cached file of {weights!r} does not fit {name}: {' '.join(lines)[:400]}") from error


@contextmanager
def _returning(weights: vision.models.WeightsEnum, state: StateDict) -> Iterator[None]:
    """Makes `weights.get_state_dict` return `state`: torchvision's builder would unpickle the cached file unsafely."""
    vars(weights)["get_state_dict"] = lambda *_, **__: state
    try:
        yield
    finally:
        del vars(weights)["get_state_dict"]


def _with_checkpoint(name: str, file: str, num_classes: int | None, mean: Numbers, std: Numbers) -> Classifier:
    from raiopt.zoo.vision import models

    state = read_checkpoint(file)
    options: dict[str, Any] = {}
    if num_classes is not None:
        options["num_classes"] = checks.number("model.num_classes", num_classes, low=1, integer=True)
    if name in WITH_AUXILIARY_HEADS:
        has_heads = any(key.startswith(WITH_AUXILIARY_HEADS[name]) for key in state)
        options |= {"init_weights": False, "aux_logits": has_heads}
    net = models.get_model(name, weights=None, **options)
    load_weights(net, state, model=name, source=file)
    return Classifier(net, name=name, mean=mean, std=std, num_classes=num_classes or DEFAULT_CLASSES).frozen()
