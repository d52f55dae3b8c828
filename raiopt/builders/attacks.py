"""perturbation, init, criterion, schedule and solver: what an attack asks for beside its optimizer."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raiopt import checks

# perturbation: called with the images (N, C, H, W) and one generator for each


def additive(images: Any, generators: Any) -> Any:
    """One perturbation a sample, added to it."""
    from raiopt.perturbations import AdditivePerturbation

    return AdditivePerturbation(images)


def universal(images: Any, generators: Any) -> Any:
    """One perturbation for all samples of a batch, added to each."""
    from raiopt.perturbations import AdditivePerturbation

    return AdditivePerturbation(images, delta_ndim=-1)


def masked(images: Any, generators: Any, *, region: Any) -> Any:
    """One perturbation a sample, added to the region [top, left, height, width] alone."""
    from raiopt.perturbations import AdditivePerturbation

    top, left, height, width = _whole_numbers("region", region, "[top,left,height,width]", lows=(0, 0, 1, 1))
    rows, columns = images.shape[-2:]
    if top + height > rows or left + width > columns:
        raise ValueError(f"region={list(region)} must lie within the images, which are {rows} by {columns} pixels.")
    mask = images.new_zeros(rows, columns)
    mask[top : top + height, left : left + width] = 1
    return AdditivePerturbation(images, mask=mask)


def patch(images: Any, generators: Any, *, size: Any = 16, place: Any = "random", shared: bool = True) -> Any:
    """A patch in place of the pixels under it, one a batch (shared) or one a sample."""
    from raiopt.perturbations import PatchPerturbation, random_places

    sides = size if isinstance(size, int) else _whole_numbers("size", size, "an integer or [height,width]", lows=(1, 1))
    if isinstance(place, str):
        checks.choice("place", place, ["random", "center", "[row,column]"])
        places = random_places(images.shape, sides, generators) if place == "random" else None
    else:
        places = _whole_numbers("place", place, "random, center or [row,column]", lows=(0, 0))
    return PatchPerturbation(images, size=sides, places=places, shared=shared)


def affine(
    images: Any, generators: Any, *, rotation: float = 30.0, translation: float = 0.1, scale: float = 0.1
) -> Any:
    """A rotation (degrees), shift and zoom (shares) of each sample, up to these."""
    from raiopt.perturbations import AffinePerturbation

    return AffinePerturbation(images, rotation=rotation, translation=translation, scale=scale)


def python_perturbation(images: Any, generators: Any, *, factory: str, kwargs: dict[str, Any] | None = None) -> Any:
    """What one's own function makes of the images: perturbation.factory=package.module:function."""
    from raiopt.perturbations import PerturbationModel
    from raiopt.zoo.factories import imported

    if not isinstance(kwargs, Mapping | None):
        raise TypeError(f"kwargs={kwargs!r} must be a mapping, as in {{size: 3}}.")
    made = imported("perturbation.factory", factory)(images, **(kwargs or {}))
    if not isinstance(made, PerturbationModel):
        raise TypeError(
            f"factory={factory!r} must return a perturbation, callable and with parameters(), "
            f"not {type(made).__name__}. See help(raiopt.perturbations.PerturbationModel)."
        )
    return made


def _whole_numbers(name: str, value: Any, form: str, *, lows: Sequence[int]) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != len(lows):
        raise ValueError(f"{name}={value} must be {form}.")
    for entry, low in zip(value, lows, strict=True):
        checks.number(name, entry, low=low, integer=True)
    return tuple(value)


# init: fills rows (1, ...), the parameter of one sample or the shared one


def zero(rows: Any, generator: Any) -> Any:
    """Start from zero: the clean image, or a black patch."""
    return rows.zero_()


def uniform_linf(rows: Any, generator: Any, *, epsilon: float) -> Any:
    """Start uniformly in the Linf ball of radius epsilon."""
    from raiopt.sampling import uniform_like_linf_n_ball_

    return uniform_like_linf_n_ball_(rows, epsilon, generator=generator)


def uniform_l2(rows: Any, generator: Any, *, epsilon: float) -> Any:
    """Start uniformly in the L2 ball of radius epsilon."""
    from raiopt.sampling import uniform_like_l2_n_ball_

    return uniform_like_l2_n_ball_(rows, epsilon, generator=generator)


def uniform_l1(rows: Any, generator: Any, *, epsilon: float) -> Any:
    """Start uniformly in the L1 ball of radius epsilon."""
    from raiopt.sampling import uniform_like_l1_n_ball_

    return uniform_like_l1_n_ball_(rows, epsilon, generator=generator)


def sphere_l2(rows: Any, generator: Any, *, epsilon: float) -> Any:
    """Start uniformly on the L2 sphere of radius epsilon."""
    from raiopt.sampling import uniform_like_l2_n_sphere_

    return uniform_like_l2_n_sphere_(rows, epsilon, generator=generator)


def gaussian(rows: Any, generator: Any, *, std: float = 0.001) -> Any:
    """Start from normal numbers of this standard deviation."""
    from raiopt.sampling import gaussian_like_

    return gaussian_like_(rows, std, generator=generator)


# criterion: losses (N,) from logits (N, classes) and the classes (N,) that they refer to. `labels` is the same tensor
# as `target` unless the attack is targeted; `clean` are the logits of the clean images.


def cross_entropy(logits: Any, target: Any, *, labels: Any, clean: Any) -> Any:
    """Cross entropy."""
    from raiopt.perturbations import losses

    return losses.cross_entropy(logits, target)


def margin(logits: Any, target: Any, *, labels: Any, clean: Any) -> Any:
    """The best other logit minus the label's."""
    from raiopt.perturbations import losses

    return losses.margin(logits, target)


def probability_margin(logits: Any, target: Any, *, labels: Any, clean: Any) -> Any:
    """The best other probability minus the label's: the loss of PMA."""
    from raiopt.perturbations import losses

    return losses.probability_margin(logits, target)


def dlr(logits: Any, target: Any, *, labels: Any, clean: Any) -> Any:
    """The difference of logits ratio of AutoAttack: the margin, whatever the scale of the logits."""
    from raiopt.perturbations import losses

    return losses.dlr(logits, target)


def targeted_dlr(logits: Any, target: Any, *, labels: Any, clean: Any) -> Any:
    """The targeted difference of logits ratio: how far the target is below the label; needs solver.target."""
    from raiopt.perturbations import losses

    if target is labels:
        raise ValueError("targeted_dlr needs a target: solver.target=likely, malt, next, ..., or take criterion=dlr.")
    return losses.targeted_dlr(logits, target, labels)


def kl(logits: Any, target: Any, *, labels: Any, clean: Any) -> Any:
    """How far the probabilities moved, KL(clean || perturbed): the loss of TRADES; needs a random init."""
    from raiopt.perturbations import losses

    if target is not labels:
        raise ValueError("kl has no target to move towards: leave solver.target out, or take criterion=cross_entropy.")
    return losses.kl_divergence(logits, clean)


# schedule: called with the optimizer and the number of steps; returns what multiplies the learning rate, step by step


def auto(optimizer: Any, steps: int) -> Any:
    """As cosine; constant for an optimizer that has a rule of its own, as apgd."""
    return (constant if getattr(optimizer, "own_steps", False) else cosine)(optimizer, steps)


def constant(optimizer: Any, steps: int) -> Any:
    """The step size stays."""
    return None


def linear(optimizer: Any, steps: int, *, final: float = 0.0) -> Any:
    """The step size falls along a line to the share `final` of it."""
    checks.number("final", final, low=0, high=1)
    return _multiplied(optimizer, lambda step: 1 + (final - 1) * min(1.0, step / max(1, steps)))


def cosine(optimizer: Any, steps: int, *, final: float = 0.0) -> Any:
    """The step size falls along half a cosine to the share `final` of it."""
    checks.number("final", final, low=0, high=1)

    def share(step: int) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))) / 2

    return _multiplied(optimizer, share)


def exponential(optimizer: Any, steps: int, *, final: float = 0.01) -> Any:
    """The step size falls by the same factor in each step, to the share `final` of it."""
    checks.number("final", final, low=1e-12, high=1)
    return _multiplied(optimizer, lambda step: final ** min(1.0, step / max(1, steps)))


def listed(optimizer: Any, steps: int, *, shares: Any) -> Any:
    """The step size is multiplied by a list of shares, one a step; the last one stays."""
    if isinstance(shares, str) or not isinstance(shares, Sequence) or not shares:
        raise ValueError(f"shares={shares} must be a list of numbers, as in [1,0.5,0.25].")
    for share in shares:
        checks.number("shares", share, low=0)
    return _multiplied(optimizer, lambda step: shares[min(step, len(shares) - 1)])


def _multiplied(optimizer: Any, share: Callable[[int], float]) -> Any:
    """Returns the scheduler that multiplies the learning rate by a share in each step."""
    from torch.optim.lr_scheduler import LambdaLR

    if getattr(optimizer, "own_steps", False):
        raise ValueError(
            f"{type(optimizer).__name__} has a rule of its own for the size of its steps: take schedule=auto."
        )
    return LambdaLR(optimizer, share)


# solver


def gradient_ascent(
    *,
    steps: int = 40,
    stop: str = "fooled",
    restarts: int = 1,
    max_passes: int | None = None,
    use_best: bool = True,
    best_by: str | None = None,
    targeted: bool = False,
    target: Any = None,
    num_targets: int = 1,
    epsilons: Any = None,
    curve: str = "bisect",
    attack_misclassified: bool = False,
    quantize: bool = False,
    verify_8bit: bool = False,
) -> dict[str, Any]:
    """Steps until a sample is fooled, or all of them; the best iterate of each sample counts."""
    return dict(locals())
