"""optim and optim/InnerOpt. An option of optim is called with the parameters of the perturbation.

`shared` are the fields that all options have (`configs.Bounded`); all hold the parameter in a ball, unless `ball` is
null.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from raiopt import checks

BALLS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}

# Gradient transforms, alone or as members of a chain: a projection onto `ball` follows.

TRANSFORMS = {
    "plain": "ParamTransformingOptimizer",
    "signed": "SignedGradientOptim",
    "l1_normed": "L1NormedGradientOptim",
    "l2_normed": "L2NormedGradientOptim",
    "linf_normed": "LinfNormedGradientOptim",
    "lp_normed": "LpNormedGradientOptim",
    "steepest": "SteepestGradientOptim",
    "top_q": "TopQGradientOptimizer",
    "l1q": "L1qNormedGradientOptim",
    "clamped": "ClampedGradientOptimizer",
    "momentum": "MomentumGradientOptim",
    "lookahead": "LookaheadGradientOptim",
    "variance_tuned": "VarianceTunedGradientOptim",
}
"""The class behind each."""


def plain(params: Any, InnerOpt: Any, *, ball: str | None = "linf", **shared: Any) -> Any:
    """The gradient as it is, then a projection."""
    return _bounded([("plain", {})], params, InnerOpt, ball, **shared)


def signed(params: Any, InnerOpt: Any, *, ball: str | None = "linf", **shared: Any) -> Any:
    """The gradient's sign, then a projection: FGSM and PGD for Linf."""
    return _bounded([("signed", {})], params, InnerOpt, ball, **shared)


def l1_normed(params: Any, InnerOpt: Any, *, ball: str | None = "linf", **shared: Any) -> Any:
    """The gradient divided by its L1 norm, then a projection."""
    return _bounded([("l1_normed", {})], params, InnerOpt, ball, **shared)


def l2_normed(params: Any, InnerOpt: Any, *, ball: str | None = "linf", **shared: Any) -> Any:
    """The gradient divided by its L2 norm, then a projection."""
    return _bounded([("l2_normed", {})], params, InnerOpt, ball, **shared)


def linf_normed(params: Any, InnerOpt: Any, *, ball: str | None = "linf", **shared: Any) -> Any:
    """The gradient divided by its largest magnitude, then a projection."""
    return _bounded([("linf_normed", {})], params, InnerOpt, ball, **shared)


def lp_normed(params: Any, InnerOpt: Any, *, p: float = 2.0, ball: str | None = "linf", **shared: Any) -> Any:
    """The gradient divided by its Lp norm, then a projection."""
    return _bounded([("lp_normed", {"p": p})], params, InnerOpt, ball, **shared)


def steepest(params: Any, InnerOpt: Any, *, p: float = 2.0, ball: str | None = "linf", **shared: Any) -> Any:
    """The step of Lp norm 1 along which the loss rises fastest, then a projection."""
    return _bounded([("steepest", {"p": p})], params, InnerOpt, ball, **shared)


def top_q(
    params: Any,
    InnerOpt: Any,
    *,
    q: float = 0.9,
    dq: float = 0.0,
    seed: int = 0,
    ball: str | None = "linf",
    **shared: Any,
) -> Any:
    """The gradient with all but its largest entries zeroed (the share q of them), then a projection."""
    return _bounded([("top_q", {"q": q, "dq": dq})], params, InnerOpt, ball, seed=seed, **shared)


def l1q(
    params: Any,
    InnerOpt: Any,
    *,
    q: float = 0.9,
    dq: float = 0.0,
    seed: int = 0,
    ball: str | None = "linf",
    **shared: Any,
) -> Any:
    """The sign of the gradient's largest entries, L1-normed, then a projection."""
    return _bounded([("l1q", {"q": q, "dq": dq})], params, InnerOpt, ball, seed=seed, **shared)


def clamped(
    params: Any,
    InnerOpt: Any,
    *,
    clamp_min: float | None = -0.001,
    clamp_max: float | None = 0.001,
    ball: str | None = "linf",
    **shared: Any,
) -> Any:
    """The gradient's entries clamped, then a projection."""
    return _bounded([("clamped", {"clamp_min": clamp_min, "clamp_max": clamp_max})], params, InnerOpt, ball, **shared)


def momentum(params: Any, InnerOpt: Any, *, mu: float = 1.0, ball: str | None = "linf", **shared: Any) -> Any:
    """The sum of all gradients so far, earlier ones weighted down by mu a step; then a projection."""
    return _bounded([("momentum", {"mu": mu})], params, InnerOpt, ball, **shared)


def lookahead(params: Any, InnerOpt: Any, *, mu: float = 1.0, ball: str | None = "linf", **shared: Any) -> Any:
    """The gradient where the last move, taken mu times more, would lead; then a projection."""
    return _bounded([("lookahead", {"mu": mu})], params, InnerOpt, ball, **shared)


def variance_tuned(
    params: Any,
    InnerOpt: Any,
    *,
    beta: float = 1.5,
    neighbors: int = 5,
    ball: str | None = "linf",
    **shared: Any,
) -> Any:
    """The gradient, plus how much those of random neighbours differed from it a step ago; then a projection."""
    return _bounded([("variance_tuned", {"beta": beta, "neighbors": neighbors})], params, InnerOpt, ball, **shared)


def chain(params: Any, InnerOpt: Any, *, members: Any, seed: int = 0, ball: str | None = "linf", **shared: Any) -> Any:
    """Several transforms of the gradient in a row, then a projection."""
    return _bounded(list(_members(members)), params, InnerOpt, ball, seed=seed, **shared)


def _bounded(
    members: Sequence[tuple[str, Mapping[str, Any]]],
    params: Any,
    InnerOpt: Any,
    ball: str | None,
    *,
    epsilon: float,
    seed: int = 0,
    **shared: Any,
) -> Any:
    from raiopt import optim

    checks.number("optim.epsilon", epsilon, low=0)
    made = [
        partial(getattr(optim, TRANSFORMS[name]), **options, **_drawing(options, seed), **_around(options, epsilon))
        for name, options in members
    ]
    if ball is not None:
        p = BALLS[checks.choice("ball", ball, [*BALLS, "null"])]
        made.append(partial(optim.ProjectedParameterOptimizer, p=p, epsilon=epsilon))
    return optim.ChainedParamTransformingOptimizer(*made, params=params, InnerOpt=InnerOpt, **shared)


def _drawing(options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns the generator of an optimizer that draws its q: every batch sees the same sequence."""
    import torch

    return {"generator": torch.Generator().manual_seed(seed)} if "dq" in options else {}


def _around(options: Mapping[str, Any], epsilon: float) -> dict[str, Any]:
    """Returns the radius that an optimizer measures its neighbours by."""
    return {"epsilon": epsilon} if "beta" in options else {}


def _members(given: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields name and settings of each member, which is given as a name or as {name: {setting: value}}."""
    form = "optim.members=[l1_normed,{momentum:{mu:1.0}},signed]"
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ValueError(f"members={given!r} must be a list, as in {form}.")
    for entry in given:
        settings: Any = {}
        name: Any = entry
        if isinstance(entry, Mapping) and len(entry) == 1:
            ((name, settings),) = entry.items()
        if not isinstance(name, str) or not isinstance(settings, Mapping):
            raise ValueError(f"members: {entry} must be a name or one {{name: {{setting: value}}}}, as in {form}.")
        checks.choice("members", name, TRANSFORMS)
        parameters = inspect.signature(globals()[name]).parameters.values()
        known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("ball", "seed")}
        for key in settings:
            if key not in known:
                near = checks.near(str(key), known)
                hint = f" Did you mean {near[0]}?" if near else f" It has {', '.join(known) or 'none'}."
                raise ValueError(f"members: {key} is not a setting of {name}.{hint}")
        yield name, {**known, **settings}


# Projected: the step suits the ball.


def linf_projected(params: Any, InnerOpt: Any, **shared: Any) -> Any:
    """Steps of the gradient's sign in the Linf ball: PGD."""
    from raiopt.optim import LinfProjectedOptim

    return LinfProjectedOptim(params, InnerOpt, **shared)


def l2_projected(params: Any, InnerOpt: Any, **shared: Any) -> Any:
    """Steps of the L2-normed gradient in the L2 ball: PGD for L2."""
    from raiopt.optim import L2ProjectedOptim

    return L2ProjectedOptim(params, InnerOpt, **shared)


def l1_projected(params: Any, InnerOpt: Any, *, q: float = 0.95, dq: float = 0.05, seed: int = 0, **shared: Any) -> Any:
    """Steps along the sign of the gradient's largest entries (the share q is zeroed) in the L1 ball."""
    from raiopt.optim import L1ProjectedOptim

    options = {"q": q, "dq": dq}
    return L1ProjectedOptim(params, InnerOpt, **options, **_drawing(options, seed), **shared)


def l0_projected(params: Any, InnerOpt: Any, *, pixels: bool = False, **shared: Any) -> Any:
    """Steps of the L2-normed gradient, of which epsilon entries (or whole pixels) are kept."""
    from raiopt.optim import L0ProjectedOptim

    return L0ProjectedOptim(params, InnerOpt, pixels=pixels, **shared)


# In units of epsilon, with momentum between projections.


def steepest_projected(
    params: Any, InnerOpt: Any, *, ball: str = "linf", weight: float = 0.75, q: float = 0.99, **shared: Any
) -> Any:
    """Steepest steps of lr times epsilon, projected and mixed with the way gone before."""
    from raiopt.optim import SteepestProjectedOptim

    p = BALLS[checks.choice("ball", ball, ["linf", "l2", "l1"])]
    return SteepestProjectedOptim(params, InnerOpt, p=p, weight=weight, q=q, **shared)


def apgd(
    params: Any,
    InnerOpt: Any,
    *,
    ball: str = "linf",
    steps: int,
    weight: float = 0.75,
    q: float = 0.8,
    **shared: Any,
) -> Any:
    """Auto-PGD: as steepest_projected, but each sample halves its steps where it makes no progress."""
    from raiopt.optim import AdaptiveStepOptim

    p = BALLS[checks.choice("ball", ball, ["linf", "l2", "l1"])]
    return AdaptiveStepOptim(params, InnerOpt, p=p, steps=steps, weight=weight, q=q, **shared)


# The smallest perturbation that fools; epsilon is the largest that is allowed.


def fmn(params: Any, InnerOpt: Any, *, ball: str = "l2", steps: int, gamma: float = 0.05, **shared: Any) -> Any:
    """Smallest perturbations by radii that shrink while a sample is fooled: FMN; the margin suits it."""
    from raiopt.optim import FMNOptim

    p = BALLS[checks.choice("ball", ball, list(BALLS))]
    return FMNOptim(params, InnerOpt, p=p, steps=steps, gamma=gamma, **shared)


def ddn(params: Any, InnerOpt: Any, *, steps: int, gamma: float = 0.05, **shared: Any) -> Any:
    """Smallest L2 perturbations on spheres that shrink while a sample is fooled: DDN."""
    from raiopt.optim import DDNOptim

    return DDNOptim(params, InnerOpt, steps=steps, gamma=gamma, **shared)


def alma(params: Any, InnerOpt: Any, *, mu: float = 0.9, **shared: Any) -> Any:
    """Smallest L2 perturbations by an augmented Lagrangian: ALMA; needs criterion=margin or dlr."""
    from raiopt.optim import ALMAOptim

    return ALMAOptim(params, InnerOpt, mu=mu, **shared)


def cw(params: Any, InnerOpt: Any, *, steps: int, searches: int = 9, c: float = 1.0, **shared: Any) -> Any:
    """Smallest L2 perturbations by a search for the weight of the loss: Carlini and Wagner; the margin suits it."""
    from raiopt.optim import CWOptim

    return CWOptim(params, InnerOpt, steps=steps, searches=searches, c=c, **shared)


# Frank-Wolfe: steps towards the best corner of the ball, without an inner optimizer.


def linf_frank_wolfe(params: Any, *, use_default_lr_schedule: bool = True, **shared: Any) -> Any:
    """Frank-Wolfe in the Linf ball: no inner optimizer."""
    from raiopt.optim import LinfFrankWolfe

    return LinfFrankWolfe(params, use_default_lr_schedule=use_default_lr_schedule, **shared)


def l2_frank_wolfe(params: Any, *, use_default_lr_schedule: bool = True, **shared: Any) -> Any:
    """Frank-Wolfe in the L2 ball: no inner optimizer."""
    from raiopt.optim import L2FrankWolfe

    return L2FrankWolfe(params, use_default_lr_schedule=use_default_lr_schedule, **shared)


def l1_frank_wolfe(params: Any, *, use_default_lr_schedule: bool = True, **shared: Any) -> Any:
    """Frank-Wolfe in the L1 ball, the best entries a step: no inner optimizer."""
    from raiopt.optim import L1FrankWolfe

    return L1FrankWolfe(params, use_default_lr_schedule=use_default_lr_schedule, **shared)


def l1q_frank_wolfe(
    params: Any,
    *,
    q: float = 0.95,
    dq: float = 0.0,
    seed: int = 0,
    use_default_lr_schedule: bool = True,
    **shared: Any,
) -> Any:
    """Frank-Wolfe in the L1 ball, the entries above the share q in a step: no inner optimizer."""
    from raiopt.optim import L1qFrankWolfe

    options = {"q": q, "dq": dq, "use_default_lr_schedule": use_default_lr_schedule}
    return L1qFrankWolfe(params, **options, **_drawing(options, seed), **shared)


# Random search: no gradient, and so no inner optimizer.


def square(
    params: Any,
    *,
    ball: str = "linf",
    epsilon: float,
    steps: int,
    p_init: float = 0.8,
    param_ndim: int | None = -1,
) -> Any:
    """Square Attack: changes random squares and keeps what lowers the loss; no gradient, no inner optimizer."""
    from raiopt.optim import SquareOptim

    p = BALLS[checks.choice("ball", ball, ["linf", "l2", "l1"])]
    return SquareOptim(params, p=p, epsilon=epsilon, steps=steps, p_init=p_init, param_ndim=param_ndim)


# optim/InnerOpt: the learning rate is optim.lr.


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
