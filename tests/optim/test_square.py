import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hydra_zen import builds, instantiate, to_yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raiopt import load_data, load_model
from raiopt.attacks.rows import inner_is_elementwise, select_rows
from raiopt.attacks.search import published
from raiopt.optim import ChainedParamTransformingOptimizer, SignedGradientOptim, SquareOptim
from raiopt.perturbations.losses import margin
from raiopt.sampling import keyed_generator
from tests import reference
from tests.optim.linear import largest_increase, problem
from tests.reference import array
from tests.strategies import boxed, shapes

Losses = Callable[[Tensor], Tensor]
ORDERS = [1, 2, math.inf]
each = pytest.mark.parametrize("p", ORDERS)


def generators(ids: Sequence[int]) -> list[torch.Generator]:
    return [keyed_generator(0, number) for number in ids]


def search(optimizer: SquareOptim, losses: Losses, steps: int, sources: list[torch.Generator]) -> list[Tensor]:
    """Takes steps, and returns what the parameter held before each of them and after the last."""
    (param,) = optimizer.param_groups[0]["params"]
    seen = [param.detach().clone()]
    for _ in range(steps):
        with published(optimizer, losses=losses(param.detach()), generators=sources):
            optimizer.step()
        seen.append(param.detach().clone())
    return seen


def made(start: Tensor, *, p: float, steps: int, **group: Any) -> SquareOptim:
    return SquareOptim([{"params": [start.clone().requires_grad_()], **group}], p=p, steps=steps, epsilon=0.5)


def mean_distance(weights: Tensor) -> Losses:
    """Losses that pull each image towards its weights."""
    return lambda x: (x - weights).square().flatten(1).mean(1)


@each
@given(case=boxed(shape=shapes(min_ndim=4, max_ndim=5), low=-3, high=3), radius=st.floats(0.01, 3))
def test_every_candidate_lies_in_ball_and_box(p: float, case: tuple[Tensor, ...], radius: float) -> None:
    start, lower, upper = case
    epsilon = torch.linspace(radius / 2, radius, len(start)).view(-1, *[1] * (start.ndim - 1))
    optimizer = made(start, p=p, steps=8, lower=lower, upper=upper, epsilon=epsilon)
    for x in search(optimizer, mean_distance(start), 8, generators(range(len(start))))[1:]:
        assert ((lower <= x) & (x <= upper)).all()
        assert (reference.norms(array(x), p) <= array(epsilon).ravel() * (1 + 1e-6)).all()


@each
def test_candidates_are_derived_from_the_best_so_far(p: float) -> None:
    weights = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    optimizer = made(torch.zeros(4, 3, 6, 6), p=p, steps=60)
    losses, least = mean_distance(weights), []
    for _ in range(6):
        seen = search(optimizer, losses, 10, generators(range(4)))
        least += [optimizer.state["SquareOptim.0"]["loss"].flatten().clone()]
        best = optimizer.state["SquareOptim.0"]["best"]
        torch.testing.assert_close(losses(best), least[-1])
        assert not any((losses(x) < least[-1]).any() for x in seen[1:-1])
    kept = torch.stack(least)
    assert (kept.diff(dim=0) <= 0).all()
    assert (kept[-1] < kept[0]).any()


def test_a_successful_candidate_is_preferred_to_a_failed_one() -> None:
    param = torch.zeros(1, 1, 4, 4, requires_grad=True)
    optimizer = SquareOptim([param], p=math.inf, steps=10, epsilon=1.0)
    reported = [(9.0, False), (1.0, False), (3.0, True), (0.0, False), (4.0, True), (2.0, True), (math.nan, True)]
    kept: list[float] = []
    for loss, fooled in reported:
        with published(
            optimizer, losses=torch.tensor([loss]), fooled=torch.tensor([fooled]), generators=generators([0])
        ):
            optimizer.step()
        own = optimizer.state["SquareOptim.0"]
        kept += [own["loss"].item()] if own["k"] > 1 else []
    assert kept == [1.0, 3.0, 3.0, 3.0, 2.0, 2.0]  # the start is not a candidate


@each
def test_samples_are_independent(p: float) -> None:
    shape, ids = (4, 3, 6, 7), [5, 0, 17, 3]
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    together = search(made(torch.zeros(shape), p=p, steps=30), mean_distance(weights), 30, generators(ids))
    for order in ([0], [2], [3, 1, 0, 2]):
        start, chosen = torch.zeros(len(order), *shape[1:]), [ids[i] for i in order]
        apart = search(made(start, p=p, steps=30), mean_distance(weights[order]), 30, generators(chosen))
        for of_batch, of_part in zip(together, apart, strict=True):
            torch.testing.assert_close(of_batch[order], of_part, rtol=2e-6, atol=1e-7)


@each
def test_remaining_rows_do_not_depend_on_removed_rows(p: float) -> None:
    weights, start = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(5, 3, 6, 6)
    whole = search(made(start, p=p, steps=40), mean_distance(weights), 40, generators(range(5)))
    optimizer, sources, index = made(start, p=p, steps=40), generators(range(5)), [0, 2, 3]
    search(optimizer, mean_distance(weights), 20, sources)
    select_rows(optimizer, optimizer.param_groups[0]["params"][0], torch.tensor(index))
    rest = search(optimizer, mean_distance(weights[index]), 20, [sources[i] for i in index])
    torch.testing.assert_close(rest[-1], whole[-1][index], rtol=2e-6, atol=1e-7)
    assert inner_is_elementwise(optimizer)


def test_a_search_resumes_from_a_checkpoint() -> None:
    weights, start = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 6, 6)
    sources = generators(range(2))
    optimizer = made(start, p=2, steps=40)
    search(optimizer, mean_distance(weights), 20, sources)
    other = made(optimizer.param_groups[0]["params"][0].detach(), p=2, steps=40)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    states = [source.get_state() for source in sources]
    expected = search(optimizer, mean_distance(weights), 20, sources)
    again = [torch.Generator().set_state(state) for state in states]
    assert torch.equal(search(other, mean_distance(weights), 20, again)[-1], expected[-1])


@pytest.mark.parametrize("box", [False, True])
def test_it_approaches_the_optimum_of_a_linear_model(box: bool) -> None:
    images, weights = problem()
    bounds = {"lower": -images, "upper": 1 - images} if box else {}
    optimizer = made(torch.zeros_like(images), p=math.inf, steps=1000, epsilon=0.1, **bounds)
    search(optimizer, lambda x: -(weights * x).flatten(1).sum(1), 1000, generators(range(len(images))))
    share = -array(optimizer.state["SquareOptim.0"]["loss"]).ravel() / largest_increase(
        images, weights, math.inf, 0.1, box=box
    )
    assert (share > 0.85).all()
    assert (share < 1 + 1e-6).all()


@pytest.mark.parametrize(("p", "epsilon"), [(math.inf, 0.2), (2, 15.0), (1, 400.0)])
def test_it_fools_a_network(p: float, epsilon: float) -> None:
    model, (images, labels) = load_model("digits_standard"), load_data("digits")
    images, labels = images[:6], labels[:6]
    bounds = {"lower": -images, "upper": 1 - images}
    optimizer = made(torch.zeros_like(images), p=p, steps=60, epsilon=epsilon, **bounds)
    with torch.no_grad():
        search(optimizer, lambda x: -margin(model(images + x), labels), 60, generators(range(6)))
    assert (optimizer.state["SquareOptim.0"]["loss"] < 0).sum() >= 4


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_layouts_stay_in_the_ball(p: float, dtype: torch.dtype) -> None:
    start = torch.zeros(2, 3, 6, 6, dtype=dtype).to(memory_format=torch.channels_last)
    for x in search(made(start, p=p, steps=10), mean_distance(torch.ones_like(start)), 10, generators(range(2)))[1:]:
        assert x.dtype == dtype
        assert x.abs().max() > 0
        assert (reference.norms(array(x), p) <= 0.5 * (1 + 1e-6)).all()


def test_samples_may_share_a_perturbation() -> None:
    weights = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    param = torch.zeros(1, 4, 4, requires_grad=True)
    optimizer = SquareOptim([param], p=math.inf, steps=300, epsilon=1.0, param_ndim=None)
    search(optimizer, lambda x: (weights * x).flatten(1).sum(1), 300, generators(range(3)))
    assert optimizer.state["SquareOptim.0"]["loss"].item() == pytest.approx(
        -weights.sum(0).abs().sum().item(), rel=0.02
    )


def test_a_gradient_moves_nothing() -> None:
    with_gradient, without = (made(torch.zeros(1, 3, 4, 4), p=2, steps=4) for _ in range(2))
    with_gradient.param_groups[0]["params"][0].grad = torch.full((1, 3, 4, 4), 1e9)
    losses = mean_distance(torch.ones(1, 3, 4, 4))
    found = [search(optimizer, losses, 4, generators([0]))[-1] for optimizer in (with_gradient, without)]
    assert torch.equal(*found)


def test_without_generators_it_draws_from_the_global_generator() -> None:
    optimizer = SquareOptim([torch.zeros(1, 3, 4, 4, requires_grad=True)], p=math.inf, steps=1, epsilon=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        optimizer.step()
    expected = np.where(array(torch.rand(12, generator=torch.Generator().manual_seed(0))) < 0.5, -1, 1)
    np.testing.assert_array_equal(array(optimizer.param_groups[0]["params"][0])[0, :, 0].ravel(), expected)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 3, 4), {}, r"needs images \(C, H, W\), but with param_ndim=-1 a parameter of shape \(2, 3, 4\)"),
        ((2, 3, 4, 4), {"param_ndim": 1}, r"is seen as \(24, 4\)"),
        ((2, 3, 4, 4), {"steps": 0}, "steps=0 must be an integer, at least 1"),
        ((2, 3, 4, 4), {"p_init": 0.0}, "p_init=0.0 must be a finite number, above 0, at most 1"),
        ((2, 3, 4, 4), {"p": 0}, "p=0 must be one of 1, 2, inf"),
        ((2, 3, 4, 4), {"epsilon": -1.0}, "epsilon=-1.0"),
    ],
)
def test_unsupported_shapes_and_settings_are_refused(
    shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SquareOptim([torch.zeros(shape, requires_grad=True)], **{"p": 2, "epsilon": 1.0, "steps": 5, **options})


def test_losses_must_be_published() -> None:
    optimizer = made(torch.zeros(1, 3, 4, 4), p=2, steps=4)
    optimizer.step()
    with pytest.raises(ValueError, match="SquareOptim reads 'losses'"):
        optimizer.step()


@pytest.mark.parametrize("name", ["lr", "InnerOpt", "grad_scale"])
def test_it_has_no_step_size(name: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        SquareOptim([torch.zeros(1, 3, 4, 4, requires_grad=True)], p=2, epsilon=1.0, steps=5, **{name: 1})
    with pytest.raises(TypeError, match="unexpected keyword argument 'InnerOpt'"):
        ChainedParamTransformingOptimizer(SignedGradientOptim, SquareOptim, params=[torch.zeros(1, 3, 4, 4)])


def test_hydra_zen_builds_it() -> None:
    config = builds(SquareOptim, zen_partial=True, populate_full_signature=True, p=2, epsilon=1.0, steps=5)
    assert "p_init: 0.8" in to_yaml(config)
    optimizer = instantiate(config)([torch.zeros(1, 3, 4, 4, requires_grad=True)])
    assert (type(optimizer), optimizer.traits.ball, optimizer.traits.gradient_free) == (SquareOptim, 2, True)
