"""The functions that the configs point to: what an option of the command builds, and its defaults.

Importing this file imports no torch; each function imports what it builds when it is called.
"""

from functools import partial
from typing import Any

from raiopt import checks

BALLS = {"linf": float("inf"), "l2": 2.0}


# optim: called with the parameters; `shared` are the fields that all options have (configs.Optim)


def signed(params: Any, InnerOpt: Any, *, ball: str | None = "linf", **shared: Any) -> Any:
    """The gradient's sign, then a projection: FGSM and PGD for Linf."""
    return _bounded("SignedGradientOptim", params, InnerOpt, ball, **shared)


def l1_normed(params: Any, InnerOpt: Any, *, ball: str | None = "linf", **shared: Any) -> Any:
    """The gradient divided by its L1 norm, then a projection."""
    return _bounded("L1NormedGradientOptim", params, InnerOpt, ball, **shared)


def l2_normed(params: Any, InnerOpt: Any, *, ball: str | None = "linf", **shared: Any) -> Any:
    """The gradient divided by its L2 norm, then a projection."""
    return _bounded("L2NormedGradientOptim", params, InnerOpt, ball, **shared)


def linf_projected(params: Any, InnerOpt: Any, **shared: Any) -> Any:
    """Steps of the gradient's sign in the Linf ball: PGD."""
    from raiopt.optim import LinfProjectedOptim

    return LinfProjectedOptim(params, InnerOpt, **shared)


def l2_projected(params: Any, InnerOpt: Any, **shared: Any) -> Any:
    """Steps of the L2-normed gradient in the L2 ball: PGD for L2."""
    from raiopt.optim import L2ProjectedOptim

    return L2ProjectedOptim(params, InnerOpt, **shared)


def _bounded(transform: str, params: Any, InnerOpt: Any, ball: str | None, *, epsilon: float, **shared: Any) -> Any:
    from raiopt import optim

    checks.number("optim.epsilon", epsilon, low=0)
    kind = getattr(optim, transform)
    if ball is None:
        return kind(params, InnerOpt, **shared)
    p = BALLS[checks.choice("ball", ball, [*BALLS, "null"])]
    projection = partial(optim.ProjectedParameterOptimizer, p=p, epsilon=epsilon)
    return optim.ChainedParamTransformingOptimizer(kind, projection, params=params, InnerOpt=InnerOpt, **shared)


# optim/InnerOpt: the learning rate is optim.lr


def sgd(params: Any, lr: float, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False) -> Any:
    """torch.optim.SGD: a step along what the transform made of the gradient."""
    from torch.optim import SGD

    return SGD(params, lr, momentum=momentum, dampening=dampening, nesterov=nesterov)


def adam(
    params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, amsgrad: bool = False
) -> Any:
    """torch.optim.Adam."""
    from torch.optim import Adam

    return Adam(params, lr, betas=_two("betas", betas), eps=eps, amsgrad=amsgrad)  # pyright: ignore[reportArgumentType]


def adamw(
    params: Any,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    amsgrad: bool = False,
) -> Any:
    """torch.optim.AdamW: its weight decay pulls the perturbation towards zero."""
    from torch.optim import AdamW

    return AdamW(params, lr, betas=_two("betas", betas), eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)  # pyright: ignore[reportArgumentType]


def _two(name: str, values: Any) -> Any:
    if len(values) != 2:
        raise ValueError(f"{name}={list(values)} must be two numbers, as in optim.InnerOpt.{name}=[0.9,0.999].")
    return tuple(values)


def rmsprop(
    params: Any, lr: float, alpha: float = 0.99, eps: float = 1e-8, momentum: float = 0.0, centered: bool = False
) -> Any:
    """torch.optim.RMSprop."""
    from torch.optim import RMSprop

    return RMSprop(params, lr, alpha=alpha, eps=eps, momentum=momentum, centered=centered)


# perturbation, init, criterion, solver


def additive(images: Any) -> Any:
    """One perturbation a sample, added to it."""
    from raiopt.perturbations import AdditivePerturbation

    return AdditivePerturbation(images)


def universal(images: Any) -> Any:
    """One perturbation for all samples of a batch, added to each; sets optim.param_ndim=null."""
    from raiopt.perturbations import AdditivePerturbation

    return AdditivePerturbation(images, delta_ndim=-1)


def zero(rows: Any, generator: Any) -> Any:
    """Start from the clean image."""
    return rows.zero_()


def uniform_linf(rows: Any, generator: Any, *, epsilon: float) -> Any:
    """Start uniformly in the Linf ball of radius epsilon."""
    from raiopt.sampling import uniform_like_linf_n_ball_

    return uniform_like_linf_n_ball_(rows, epsilon, generator=generator)


def uniform_l2(rows: Any, generator: Any, *, epsilon: float) -> Any:
    """Start uniformly in the L2 ball of radius epsilon."""
    from raiopt.sampling import uniform_like_l2_n_ball_

    return uniform_like_l2_n_ball_(rows, epsilon, generator=generator)


def cross_entropy(logits: Any, target: Any) -> Any:
    """Cross entropy."""
    from raiopt.perturbations import cross_entropy

    return cross_entropy(logits, target)


def margin(logits: Any, target: Any) -> Any:
    """The best other logit minus the label's."""
    from raiopt.perturbations import margin

    return margin(logits, target)


def gradient_ascent(
    *, steps: int = 40, use_best: bool = True, targeted: bool = False, target: int | str | None = None
) -> dict[str, Any]:
    """A fixed number of steps; the best iterate of each sample counts."""
    return {"steps": steps, "use_best": use_best, "targeted": targeted, "target": target}


# model: loaded when called


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


# data: called with the loaded model, whose geometry and classes it may need


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
