"""Gradient transforms by name, followed by a projection: built by the command from options and members of a chain."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from raiopt import checks
from raiopt.optim.base import ParamTransformingOptimizer
from raiopt.optim.chain import ChainedParamTransformingOptimizer
from raiopt.optim.gradients import (
    L1NormedGradientOptim,
    L2NormedGradientOptim,
    SignedGradientOptim,
    SteepestGradientOptim,
)
from raiopt.optim.inner import InnerOptimizer
from raiopt.optim.momentum import LookaheadGradientOptim, MomentumGradientOptim, VarianceTunedGradientOptim
from raiopt.optim.projections import ProjectedParameterOptimizer
from raiopt.optim.sparse import L1qNormedGradientOptim, TopQGradientOptimizer

BALLS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}
"""The p of each ball."""
TRANSFORMS: dict[str, type[ParamTransformingOptimizer]] = {
    "signed": SignedGradientOptim,
    "l1_normed": L1NormedGradientOptim,
    "l2_normed": L2NormedGradientOptim,
    "steepest": SteepestGradientOptim,
    "top_q": TopQGradientOptimizer,
    "l1q": L1qNormedGradientOptim,
    "momentum": MomentumGradientOptim,
    "lookahead": LookaheadGradientOptim,
    "variance_tuned": VarianceTunedGradientOptim,
}
"""The transforms that can be members of a chain; the projection is added at the end."""
DEFAULTS: dict[str, dict[str, Any]] = {"steepest": {"p": 2.0}, "top_q": {"q": 0.9}, "l1q": {"q": 0.9}}
"""Values for arguments of the transforms that have no default in Python."""
FROM_CHAIN = ("generator", "epsilon", "div_by_zero_eps")
"""Arguments of the transforms that belong to the whole chain and cannot be set per member."""


def bounded(
    params: ParamsT | None,
    InnerOpt: InnerOptimizer,
    *,
    lr: float,
    epsilon: float,
    ball: str | None = "linf",
    transform: str | None = None,
    members: Sequence[str | Mapping[str, Any]] | None = None,
    seed: int = 0,
    param_ndim: int | None = -1,
    grad_scale: float = 1.0,
    grad_bias: float = 0.0,
    **settings: Any,
) -> ChainedParamTransformingOptimizer:
    """Applies several gradient transforms in order, then projects onto the ball after the step.

    Args:
        lr: Initial step size: the learning rate of the inner optimizer, if there is one. For `apgd` and
            `steepest_projected` a multiple of epsilon.
        epsilon: Radius of the ball; for an additive perturbation in units of pixels in [0, 1].
        ball: The ball that the step projects onto: `linf`, `l2`, `l1` or `l0`; None for no ball, only the box.
            `apgd`, `steepest_projected` and `square` have no `l0`.
        transform: A single transform, with its `settings`.
        members: The transforms in order: names, or `{name: {setting: value}}`.
        seed: Seed of the random draws for `dq`.
        param_ndim: The number of trailing dimensions that form one datum for transform and ball; -1: each sample,
            None: the whole batch.
        grad_scale: Multiplies the transformed gradient.
        grad_bias: Added to the transformed gradient, after the multiplication.
    """
    checks.number("epsilon", epsilon, low=0)
    chosen = [(transform, settings)] if transform else list(_checked(members))
    made = [partial(TRANSFORMS[name], **_completed(name, own, epsilon, seed)) for name, own in chosen]
    if ball is not None:
        p = BALLS[checks.choice("ball", ball, [*BALLS, "null"])]
        made.append(partial(ProjectedParameterOptimizer, p=p, epsilon=epsilon))
    shared = {"param_ndim": param_ndim, "grad_scale": grad_scale, "grad_bias": grad_bias, "lr": lr}
    return ChainedParamTransformingOptimizer(*made, params=params, InnerOpt=InnerOpt, **shared)


def with_ball_and_seed(make: partial[Any], params: ParamsT) -> Any:
    """Constructs an optimizer from a partial with `ball` instead of `p`, and `seed` instead of `generator`.

    Each call seeds a new generator, so that every batch sees the same draws.
    """
    taken, given = inspect.signature(make.func).parameters, dict(make.keywords)
    if "seed" in given and "generator" in taken:
        given["generator"] = torch.Generator().manual_seed(given.pop("seed"))
    if "ball" in given and "ball" not in taken:
        ball = given.pop("ball")
        given["p"] = BALLS[checks.choice("ball", ball, BALLS)]
        try:
            return make.func(params, **given)
        except ValueError as error:
            if str(error).startswith("p="):
                raise ValueError(f"ball={ball} is not a ball of {make.func.__name__}: {error}") from error
            raise
    return make.func(params, **given)


def _completed(name: str, own: Mapping[str, Any], epsilon: float, seed: int) -> dict[str, Any]:
    """Returns the arguments of a transform: its own settings, completed by those shared in the chain."""
    taken = inspect.signature(TRANSFORMS[name]).parameters
    shared: dict[str, Any] = {"epsilon": epsilon} if "epsilon" in taken else {}
    if "generator" in taken:  # every batch sees the same draws
        shared["generator"] = torch.Generator().manual_seed(seed)
    return {**DEFAULTS.get(name, {}), **own, **shared}


def _checked(members: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields name and settings of each member, given as a name or as {name: {setting: value}}."""
    form = "members=[l1_normed,{momentum:{mu:1.0}},signed]"
    if isinstance(members, str) or not isinstance(members, Sequence) or not members:
        raise ValueError(f"members={members!r} must be a list, as in {form}.")
    for entry in members:
        settings: Any = {}
        name: Any = entry
        if isinstance(entry, Mapping) and len(entry) == 1:
            ((name, settings),) = entry.items()
        if not isinstance(name, str) or not isinstance(settings, Mapping):
            raise ValueError(f"members: {entry} must be a name or one {{name: {{setting: value}}}}, as in {form}.")
        checks.choice("members", name, TRANSFORMS)
        known = inspect.signature(TRANSFORMS[name]).parameters.keys()
        known = [key for key in known if key not in _OF_EVERY and key not in FROM_CHAIN]
        for key in settings:
            if key not in known:
                near = checks.near(str(key), known)
                hint = f" Did you mean {near[0]}?" if near else f" It has {', '.join(known) or 'none'}."
                raise ValueError(f"members: {key} is not a setting of {name}.{hint}")
        yield name, settings


_OF_EVERY = inspect.signature(ParamTransformingOptimizer).parameters.keys()
