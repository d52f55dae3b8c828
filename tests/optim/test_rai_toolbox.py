"""Agreement with the classes of the same name in rai_toolbox; its defects are in test_rai_toolbox_defects.py."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.optim import Adam, Optimizer

from raiopt import attacks, optim, perturbations
from tests.optim.rai import installed, quiet

rai_optim, rai_perturbations = installed()

SHAPES = [(5,), (4, 6), (3, 2, 5, 4)]
SPLITS = [(shape, n) for shape in SHAPES for n in (None, *range(-len(shape), len(shape) + 1))]
FLAT = [((4, 6), -1), ((4, 6), 1), ((3, 2, 5, 4), 1), ((3, 2, 5, 4), 0)]  # each datum has one dimension
STEPS = 4


def followed(make: Callable[..., Optimizer], shape: tuple[int, ...], scale: float, **kwargs: Any) -> list[Tensor]:
    """The parameter and its gradient after each of several steps with random gradients."""
    generator = Generator().manual_seed(len(shape))
    param = (scale * torch.randn(shape, generator=generator)).requires_grad_()
    optimizer, seen = make(params=[param], **kwargs), []
    for _ in range(STEPS):
        param.grad = torch.randn(shape, generator=generator)
        optimizer.step()
        seen += [param.detach().clone(), param.grad.clone()]
    return seen


def compare(name: str, shape: tuple[int, ...], *, scale: float = 1.0, gradients: bool = True, **kwargs: Any) -> None:
    """Asserts that both classes of that name take the same steps."""
    ours = followed(getattr(optim, name), shape, scale, **kwargs)
    with quiet():
        theirs = followed(getattr(rai_optim, name), shape, scale, **kwargs)
    every = 1 if gradients else 2
    torch.testing.assert_close(ours[::every], theirs[::every], rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize(("shape", "param_ndim"), SPLITS, ids=str)
@pytest.mark.parametrize(
    "inner",
    [{"lr": 0.5}, {"lr": 0.1, "momentum": 0.9}, {"InnerOpt": Adam, "lr": 0.1}],
    ids=["sgd", "momentum", "adam"],
)
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("SignedGradientOptim", {}),
        ("L1NormedGradientOptim", {}),
        ("L1NormedGradientOptim", {"div_by_zero_eps": 3.0}),
        ("L2NormedGradientOptim", {}),
        ("L2NormedGradientOptim", {"grad_scale": -2.0, "grad_bias": 0.1}),
        ("TopQGradientOptimizer", {"q": 0.4}),
        ("L1qNormedGradientOptim", {"q": 0.4, "grad_scale": 3.0}),
        ("L2ProjectedOptim", {"epsilon": 0.8}),
        ("LinfProjectedOptim", {"epsilon": 0.8}),
        ("ClampedGradientOptimizer", {"clamp_min": -0.3, "clamp_max": 0.6}),
        ("ClampedParameterOptimizer", {"clamp_max": 0.6}),
    ],
    ids=str,
)
def test_steps_agree(
    name: str, own: dict[str, Any], inner: dict[str, Any], shape: tuple[int, ...], param_ndim: int | None
) -> None:
    compare(name, shape, param_ndim=param_ndim, **own, **inner)


@pytest.mark.parametrize("schedule", [{}, {"lr": 0.3, "use_default_lr_schedule": False}], ids=["scheduled", "constant"])
@pytest.mark.parametrize(
    ("name", "own", "splits"),
    [
        ("L1FrankWolfe", {}, FLAT),
        ("L1qFrankWolfe", {"q": 0.4}, SPLITS),
        ("L2FrankWolfe", {}, SPLITS),
        ("LinfFrankWolfe", {}, SPLITS),
    ],
)
def test_frank_wolfe_agrees(name: str, own: dict[str, Any], splits: Any, schedule: dict[str, Any]) -> None:
    """From starts within the ball: from outside, rai_toolbox needs steps to get there, and raiopt projects."""
    for shape, param_ndim in splits:
        case = {"epsilon": 0.8, "param_ndim": param_ndim, **own, **schedule}
        compare(name, shape, scale=1e-3, gradients=False, **case)


@pytest.mark.parametrize("own", [{}, {"lr": 0.3, "use_default_lr_schedule": False}, {"lmo_scaling_factor": 0.7}])
def test_the_plain_frank_wolfe_agrees(own: dict[str, Any]) -> None:
    compare("FrankWolfe", (4, 6), **own)


@pytest.mark.parametrize(
    "members",
    [
        [("TopQGradientOptimizer", {"q": 0.4}), ("SignedGradientOptim", {}), ("L2ProjectedOptim", {"epsilon": 0.8})],
        [("ClampedGradientOptimizer", {"clamp_max": 0.5}), ("L1NormedGradientOptim", {})],
        [("L2NormedGradientOptim", {}), ("ClampedParameterOptimizer", {"clamp_min": -0.2, "clamp_max": 0.5})],
    ],
)
def test_chains_agree(members: list[tuple[str, dict[str, Any]]]) -> None:
    def chain(module: Any, **kwargs: Any) -> Optimizer:
        made = [partial(getattr(module, name), **own) for name, own in members]
        return module.ChainedParamTransformingOptimizer(*made, lr=0.5, grad_scale=2.0, **kwargs)

    for shape, param_ndim in SPLITS:
        ours = followed(partial(chain, optim), shape, 1.0, param_ndim=param_ndim)
        with quiet():
            theirs = followed(partial(chain, rai_optim), shape, 1.0, param_ndim=param_ndim)
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["TopQGradientOptimizer", "L1qNormedGradientOptim", "L1qFrankWolfe"])
@pytest.mark.parametrize(("q", "dq"), [(0.5, 0.3), (0.9, 0.3), (0.1, 1.0)])
def test_equal_generators_draw_equal_shares(name: str, q: float, dq: float) -> None:
    own = {"q": q, "dq": dq, **({"epsilon": 0.8} if name == "L1qFrankWolfe" else {"lr": 0.5})}
    generators = [Generator().manual_seed(7) for _ in range(2)]
    ours = followed(getattr(optim, name), (8, 100), 1e-3, generator=generators[0], **own)
    with quiet():
        theirs = followed(getattr(rai_optim, name), (8, 100), 1e-3, generator=generators[1], **own)
    torch.testing.assert_close(ours[::2], theirs[::2], rtol=2e-6, atol=2e-7)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    kept = {int((gradient != 0).sum(1)[0]) for gradient in ours[1::2]}
    assert len(kept) > 1


def uniform(module: Any, ball: str, shape: tuple[int, ...], param_ndim: int | None, seed: int) -> Tensor:
    x = torch.zeros(shape)
    generator = Generator().manual_seed(seed)
    getattr(module, f"uniform_like_{ball}_n_ball_")(x, epsilon=2.0, param_ndim=param_ndim, generator=generator)
    return x


def test_linf_starts_agree() -> None:
    ours, theirs = (uniform(module, "linf", (4, 3, 2), -1, 0) for module in (perturbations, rai_perturbations))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("ball", ["l1", "l2"])
@pytest.mark.parametrize(("shape", "param_ndim"), [((20_000, 3), -1), ((5_000, 4, 3), 1), ((20_000,), 0)])
def test_l1_and_l2_starts_have_the_same_distribution(ball: str, shape: tuple[int, ...], param_ndim: int) -> None:
    """By the largest distance of two distribution functions: 0.1 % of such pairs are further apart."""
    ours = uniform(perturbations, ball, shape, param_ndim, 0).view(20_000, -1).numpy()
    theirs = uniform(rai_perturbations, ball, shape, param_ndim, 1).view(20_000, -1).numpy()
    p = int(ball[1])
    for view in (partial(np.linalg.norm, ord=p, axis=1), lambda x: x[:, 0], lambda x: x.sum(1), lambda x: x.max(1)):
        a, b = np.sort(view(ours)), np.sort(view(theirs))
        points = np.concatenate([a, b])
        distance = np.abs(np.searchsorted(a, points, "right") - np.searchsorted(b, points, "right")).max() / len(a)
        assert distance < 1.95 * np.sqrt(2 / len(a))


@pytest.fixture
def problem() -> dict[str, Any]:
    """A small network that is not linear, with what both solvers take."""
    generator = Generator().manual_seed(0)
    weights = torch.randn(12, 16, generator=generator), torch.randn(16, 5, generator=generator)
    return {
        "model": lambda x: (x.flatten(1) @ weights[0]).tanh() @ weights[1],
        "data": torch.rand(6, 3, 4, generator=generator),
        "target": torch.arange(6) % 5,
    }


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("use_best", [False, True])
@pytest.mark.parametrize(
    ("name", "own"), [("L2ProjectedOptim", {"epsilon": 1.0}), ("LinfProjectedOptim", {"epsilon": 0.3})]
)
@pytest.mark.parametrize("lr", [0.1, 2.0])  # with the second, the best iterate is not the last
def test_gradient_ascent_agrees(
    problem: dict[str, Any], name: str, own: dict[str, Any], lr: float, use_best: bool, targeted: bool
) -> None:
    settings = {"steps": 7, "lr": lr, "use_best": use_best, "targeted": targeted, **own, **problem}
    ours = attacks.gradient_ascent(optimizer=getattr(optim, name), **settings)
    with quiet():
        theirs = rai_perturbations.gradient_ascent(optimizer=getattr(rai_optim, name), **settings)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targeted", [False, True])
def test_random_restarts_agree(problem: dict[str, Any], targeted: bool) -> None:
    def search(module: Any, solvers: Any, optimizers: Any) -> tuple[Tensor, Tensor]:
        start = {"init_fn": module.uniform_like_linf_n_ball_, "epsilon": 0.3, "generator": Generator().manual_seed(0)}
        return solvers.random_restart(solvers.gradient_ascent, repeats=4)(
            perturbation_model=partial(module.AdditivePerturbation, **start),
            optimizer=optimizers.LinfProjectedOptim,
            **{"epsilon": 0.3, "lr": 0.1, "steps": 2, "targeted": targeted, **problem},
        )

    ours = search(perturbations, attacks, optim)
    with quiet():
        theirs = search(rai_perturbations, rai_perturbations, rai_optim)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("delta_ndim", [None, *range(-3, 4)])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_additive_perturbations_agree(delta_ndim: int | None, dtype: torch.dtype | None) -> None:
    data = torch.arange(24.0).view(4, 3, 2)
    for given in (data, data.shape):
        ours, theirs = (
            module.AdditivePerturbation(given, torch.nn.init.constant_, val=0.5, delta_ndim=delta_ndim, dtype=dtype)
            for module in (perturbations, rai_perturbations)
        )
        torch.testing.assert_close(ours.delta, theirs.delta)
        torch.testing.assert_close(ours(data), theirs(data))
