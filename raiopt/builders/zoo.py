"""model, which is loaded when called, and data, which is called with the loaded model."""

from typing import Any


def digits_robust() -> Any:
    """Built-in network for the digits, trained against Linf attacks with epsilon 0.1."""
    from raiopt import zoo

    return zoo.digits_model("robust")


def digits_standard() -> Any:
    """Built-in network for the digits, trained normally."""
    from raiopt import zoo

    return zoo.digits_model("standard")


def torchvision_model(
    *,
    name: str,
    weights: str | None = None,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    mean: Any = None,
    std: Any = None,
) -> Any:
    """A torchvision classifier by name, with published weights or a checkpoint of one's own."""
    from raiopt import zoo

    return zoo.torchvision_model(
        name, weights=weights, checkpoint=checkpoint, num_classes=num_classes, mean=mean, std=std
    )


def python_model(*, factory: str, kwargs: dict[str, Any] | None = None, mean: Any = None, std: Any = None) -> Any:
    """A torch module that one's own function returns: model.factory=package.module:function."""
    from raiopt import zoo

    return zoo.python_model(factory, kwargs=kwargs, mean=mean, std=std)


def digits(model: Any, *, split: Any = "test", limit: int | None = None, indices: Any = None) -> Any:
    """Built-in handwritten digits, 8 by 8 enlarged to (3, 64, 64); 500 test images."""
    from raiopt import zoo

    return zoo.digits(split, limit=limit, indices=indices, **_needs(model))


def image_folder(
    model: Any,
    *,
    root: str,
    labels: Any = "folder",
    size: int | None = None,
    limit: int | None = None,
    indices: Any = None,
) -> Any:
    """A folder of images, in a folder a class, or flat with data.labels=predicted."""
    from raiopt import zoo

    return zoo.image_folder(root, labels=labels, size=size, limit=limit, indices=indices, **_needs(model))


def torchvision_data(
    model: Any,
    *,
    name: str,
    root: str,
    split: str = "test",
    download: bool = False,
    size: int | None = None,
    limit: int | None = None,
    indices: Any = None,
) -> Any:
    """A torchvision data set by name."""
    from raiopt import zoo

    options = {"split": split, "download": download, "size": size, "limit": limit, "indices": indices}
    return zoo.torchvision_data(name, root, **options, **_needs(model))


def python_data(
    model: Any,
    *,
    factory: str,
    kwargs: dict[str, Any] | None = None,
    size: int | None = None,
    limit: int | None = None,
    indices: Any = None,
) -> Any:
    """Images and labels that one's own function returns: data.factory=package.module:function."""
    from raiopt import zoo

    return zoo.python_data(factory, kwargs=kwargs, size=size, limit=limit, indices=indices, **_needs(model))


def _needs(model: Any) -> dict[str, Any]:
    return {"geometry": model.geometry, "categories": model.classes, "num_classes": model.num_classes}
