"""The shared loop, the best iterate, and `gradient_ascent` against closed forms."""

from functools import partial, wraps

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD
from torch.testing import assert_close

from raiopt.attacks import gradient_ascent, random_restart
from raiopt.attacks.best import Best
from raiopt.attacks.search import differentiate, published
from raiopt.optim import L2ProjectedOptim, LinfProjectedOptim, ParamTransformingOptimizer
from raiopt.perturbations import AdditivePerturbation, uniform_like_l2_n_ball_, uniform_like_linf_n_ball_

scores = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.floats(-9, 9, width=32))


@given(scores)
def test_best_is_the_first_highest_score_of_each_sample(history):
    best = Best()
    for step, row in enumerate(torch.from_numpy(history)):
        best.update([row], step=torch.full_like(row, step, dtype=torch.int64))
    assert_close(best.values["step"], torch.from_numpy(history.argmax(0)))


@given(scores, scores)
def test_later_scores_break_ties_of_earlier_ones(first, second):
    count = min(len(first), len(second))
    first, second = np.sign(first[:count, :1]), second[:count, :1]
    best = Best()
    for step, (a, b) in enumerate(zip(first, second, strict=True)):
        best.update([torch.from_numpy(a), torch.from_numpy(b)], step=torch.tensor([step]))
    expected = max(range(count), key=lambda i: (first[i, 0], second[i, 0]))
    assert best.values["step"].item() == expected


def test_nan_is_never_best():
    best = Best()
    for step, score in enumerate([float("nan"), 1.0, float("nan")]):
        best.update([torch.tensor([score])], step=torch.tensor([step]))
    assert best.values["step"].item() == 1


def test_best_keeps_its_own_copy():
    best, value = Best(), torch.zeros(2)
    best.update([torch.zeros(2)], value=value)
    value.add_(1)
    assert best.values["value"].sum() == 0


def linear(weight):
    """Returns a model whose loss against any target is its output: <weight, x>."""
    return {"model": lambda x: x.flatten(1) @ weight.flatten(), "criterion": lambda output, target: output}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "direction"),
    [(LinfProjectedOptim, torch.sign), (L2ProjectedOptim, lambda w: w / w.norm())],
)
def test_reaches_the_best_point_of_a_linear_model(optimizer, direction, targeted):
    torch.manual_seed(0)
    weight, data = torch.randn(3, 4), torch.randn(5, 3, 4)
    found, losses = gradient_ascent(
        **linear(weight), data=data, target=0, optimizer=optimizer, epsilon=0.7, lr=0.3, steps=9, targeted=targeted
    )
    expected = data + (-0.7 if targeted else 0.7) * direction(weight)
    assert_close(found, expected)
    assert_close(losses, expected.flatten(1) @ weight.flatten())


@pytest.mark.parametrize("use_best", [False, True])
def test_a_batch_of_one_equals_a_batch_of_many(use_best):
    torch.manual_seed(1)
    net, data, target = (
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
        torch.rand(6, 4),
        torch.arange(6) % 3,
    )
    solve = partial(
        gradient_ascent, model=net, optimizer=L2ProjectedOptim, epsilon=0.5, lr=0.4, steps=7, use_best=use_best
    )
    together = solve(data=data, target=target)
    alone = [solve(data=data[i : i + 1], target=target[i : i + 1]) for i in range(6)]
    assert_close(together[0], torch.cat([x for x, _ in alone]))
    assert_close(together[1], torch.cat([loss for _, loss in alone]))


@pytest.mark.parametrize("targeted", [False, True])
def test_use_best_returns_the_best_of_all_iterates(targeted):
    losses_of = []

    def criterion(output, target):
        losses = (output - target).square().sum(1)
        losses_of.append(losses.detach())
        return losses

    data, target = torch.tensor([[3.0], [-1.0]]), torch.tensor([[0.5], [0.0]])
    found, losses = gradient_ascent(
        model=torch.sin,
        data=data,
        target=target,
        criterion=criterion,
        optimizer=SGD,
        lr=2.5,
        steps=12,
        use_best=True,
        targeted=targeted,
    )
    seen = torch.stack(losses_of)
    assert len(seen) == 13
    assert_close(losses, seen.amin(0) if targeted else seen.amax(0))
    assert_close((found.sin() - target).square().sum(1), losses)


def test_model_is_frozen_and_evaluating_during_the_search_and_restored_after():
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    net[1].eval()
    net[0].weight.requires_grad_(False)
    modes, flags = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    seen = []

    def criterion(logits, target):
        seen.append((any(m.training for m in net.modules()), any(p.requires_grad for p in net.parameters())))
        return nn.functional.cross_entropy(logits, target, reduction="none")

    gradient_ascent(
        model=net,
        data=torch.rand(3, 2),
        target=torch.zeros(3).long(),
        criterion=criterion,
        optimizer=SGD,
        lr=1,
        steps=2,
    )
    assert set(seen) == {(False, False)}
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())


def test_model_is_restored_after_an_error():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())

    def criterion(logits, target):
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        gradient_ascent(model=net, data=torch.rand(1, 2), target=0, criterion=criterion, optimizer=SGD, lr=1, steps=1)
    assert net.training
    assert net[0].weight.requires_grad


def test_output_and_losses_belong_to_the_returned_perturbation():
    x, target, seen = torch.rand(4, 3), torch.arange(4), []

    def criterion(output, target):
        seen.append(output.detach())
        return output.sum(1) - target

    data, losses = gradient_ascent(model=torch.exp, data=x, target=target, criterion=criterion, optimizer=SGD, steps=0)
    assert_close(data, x)
    assert_close(seen, [x.exp()])
    assert_close(losses, x.exp().sum(1) - target)


@pytest.mark.parametrize("targeted", [False, True])
def test_the_gradient_is_that_of_the_loss_to_be_lowered_and_of_no_step_before(targeted):
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    optimizer = SGD([x], lr=0.1)
    for _ in range(2):
        differentiate((x**3).sum() * (1 if targeted else -1), optimizer)
    assert_close(x.grad, torch.tensor([3.0, 12.0]) * (1 if targeted else -1))


@pytest.mark.parametrize("use_best", [False, True])
def test_results_hold_no_graph_and_the_parameter_no_gradient(use_best):
    perturbation = AdditivePerturbation(torch.zeros(2, 3))
    results = gradient_ascent(
        model=lambda x: x,
        data=torch.zeros(2, 3),
        target=torch.tensor([0, 1]),
        perturbation_model=perturbation,
        optimizer=SGD(perturbation.parameters(), lr=0.1),
        criterion=lambda x, t: x.square().sum(1) + x[:, 0],
        steps=3,
        use_best=use_best,
    )
    assert all(t.grad_fn is None and not t.requires_grad for t in results)
    assert perturbation.delta.grad is None


def test_the_mean_of_a_universal_perturbation_does_not_depend_on_repeated_data():
    torch.manual_seed(2)
    net, data = nn.Linear(4, 3), torch.rand(5, 4)
    target = torch.arange(5) % 3
    solve = partial(
        gradient_ascent,
        model=net,
        perturbation_model=partial(AdditivePerturbation, delta_ndim=-1),
        optimizer=SGD,
        lr=0.5,
        steps=4,
        reduction_fn=torch.mean,
    )
    once, _ = solve(data=data, target=target)
    twice, _ = solve(data=data.repeat(2, 1), target=target.repeat(2))
    assert_close(twice[:5], once)
    assert_close(once - data, (once - data)[:1].expand(5, 4))


def test_ready_made_perturbation_and_optimizer_are_used():
    perturbation = AdditivePerturbation((2,), uniform_like_l2_n_ball_, param_ndim=None)
    start = perturbation.delta.detach().clone()
    found, _ = gradient_ascent(
        model=lambda x: x,
        data=[0.0, 0.0],
        target=0.0,
        criterion=lambda x, t: x,
        perturbation_model=perturbation,
        optimizer=SGD(perturbation.parameters(), lr=0.25),
        steps=2,
    )
    assert_close(found, start + 0.5)
    assert_close(perturbation.delta.detach(), found)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps=-1"),
        ({"steps": 1.5}, TypeError, "steps=1.5"),
        ({"optimizer": SGD([torch.zeros(1, requires_grad=True)], lr=1)}, TypeError, "ready-made"),
        ({"optimizer": "sgd"}, TypeError, "'sgd'"),
        ({"perturbation_model": lambda data: 3}, TypeError, "parameters"),
        ({"criterion": lambda x, t: x.sum(), "use_best": True}, ValueError, r"shape \(2,\).*returned shape \(\)"),
    ],
)
def test_incompatible_arguments_are_an_error(change, error, message):
    usual = {"model": lambda x: x, "data": torch.zeros(2, 2), "target": torch.zeros(2).long(), "optimizer": SGD}
    with pytest.raises(error, match=message):
        gradient_ascent(**{**usual, "steps": 1, **change})


def test_options_with_a_ready_made_optimizer_are_refused():
    perturbation = AdditivePerturbation((1, 2))
    with pytest.raises(TypeError, match="lr would have no effect"):
        gradient_ascent(
            model=lambda x: x,
            data=torch.zeros(1, 2),
            target=torch.zeros(1).long(),
            perturbation_model=perturbation,
            optimizer=SGD(perturbation.parameters(), lr=1),
            lr=2,
            steps=1,
        )


def scripted(rounds):
    """Returns a solver that answers with the next losses (N,) at each call, and the number of the call as data."""
    left = iter(enumerate(rounds))

    def solver(data, targeted=False, **options):
        call, losses = next(left)
        return torch.full((len(losses), 2), float(call)), torch.tensor(losses)

    return solver


ROUNDS = [[1.0, 5.0, 3.0], [2.0, 4.0, float("nan")], [0.0, 6.0, 2.0]]
HIGHEST, LOWEST = ([2.0, 6.0, 3.0], [1.0, 2.0, 0.0]), ([0.0, 4.0, 2.0], [2.0, 1.0, 2.0])


def defaulted(solver):
    return lambda data, *, targeted=True: solver(data, targeted)


def swallowing(solver):
    return lambda **everything: solver(**everything)


def decorated(solver):
    @wraps(solver)
    def inner(*args, **kwargs):
        return solver(*args, **kwargs)

    return inner


@pytest.mark.parametrize(
    ("bind", "args", "kwargs", "expected"),
    [
        (lambda s: s, (0,), {}, HIGHEST),
        (lambda s: s, (0,), {"targeted": True}, LOWEST),
        (lambda s: s, (0, True), {}, LOWEST),
        (lambda s: partial(s, targeted=True), (0,), {}, LOWEST),
        (lambda s: partial(s, targeted=True), (0,), {"targeted": False}, HIGHEST),
        (lambda s: partial(partial(s, targeted=True), lr=1), (0,), {}, LOWEST),
        (lambda s: partial(s, 0, True), (), {}, LOWEST),
        (defaulted, (0,), {}, LOWEST),
        (swallowing, (), {"data": 0, "targeted": True}, LOWEST),
        (lambda s: partial(swallowing(s), targeted=True), (), {"data": 0}, LOWEST),
        (lambda s: partial(swallowing(s), targeted=True), (), {"data": 0, "targeted": False}, HIGHEST),
        (lambda s: decorated(partial(s, targeted=True)), (0,), {}, LOWEST),
        (lambda s: random_restart(partial(s, targeted=True), 1), (0,), {}, LOWEST),
    ],
)
def test_restarts_keep_the_best_of_each_sample_wherever_targeted_is_set(bind, args, kwargs, expected):
    data, losses = random_restart(bind(scripted(ROUNDS)), 3)(*args, **kwargs)
    assert_close(losses, torch.tensor(expected[0]))
    assert_close(data, torch.tensor(expected[1])[:, None].expand(3, 2))


@pytest.mark.parametrize("targeted", [False, True])
def test_restarts_of_gradient_ascent_are_the_best_of_its_runs(targeted):
    def options():
        start = partial(
            AdditivePerturbation,
            init_fn=uniform_like_linf_n_ball_,
            epsilon=2.0,
            generator=torch.Generator().manual_seed(5),
        )
        return {
            "model": torch.sin,
            "data": torch.linspace(-2, 2, 7)[:, None],
            "target": torch.zeros(7, 1),
            "criterion": lambda output, target: (output - target).sum(1),
            "perturbation_model": start,
            "optimizer": SGD,
            "lr": 0.1,
            "steps": 2,
            "targeted": targeted,
        }

    same = options()
    runs = [gradient_ascent(**same) for _ in range(4)]
    data, losses = random_restart(partial(gradient_ascent, **options()), 4)()
    seen = torch.stack([run[1] for run in runs])
    assert_close(losses, seen.amin(0) if targeted else seen.amax(0))
    assert_close(data.sin().sum(1), losses)
    assert len((seen.argmin(0) if targeted else seen.argmax(0)).unique()) > 1  # no single run was the best for all


def test_restarts_modify_no_result_and_keep_the_name_of_the_solver():
    first = torch.tensor([1.0, 2.0])
    results = iter([(first, first), (first + 1, first + 1)])
    _, losses = random_restart(lambda: next(results), 2)()
    assert_close(losses, torch.tensor([2.0, 3.0]))
    assert_close(first, torch.tensor([1.0, 2.0]))
    assert random_restart(gradient_ascent, 2).__name__ == "gradient_ascent"


@pytest.mark.parametrize(
    ("repeats", "error", "message"),
    [
        (0, ValueError, "repeats=0 must be an integer, at least 1"),
        (1.5, TypeError, "repeats=1.5"),
        (True, TypeError, "repeats=True"),
    ],
)
def test_restarts_are_counted_in_whole_numbers(repeats, error, message):
    with pytest.raises(error, match=message):
        random_restart(gradient_ascent, repeats)


def test_restarts_need_one_loss_a_sample():
    with pytest.raises(ValueError, match=r"one loss per sample, of shape \(3,\); it returned shape \(\)"):
        random_restart(lambda: (torch.zeros(3, 2), torch.tensor(1.0)), 2)()


def test_a_ready_made_optimizer_must_have_the_parameters_of_the_perturbation():
    data, other = torch.zeros(2, 3), torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match="optimizer does not have the parameters of the perturbation"):
        gradient_ascent(
            model=lambda x: x,
            data=data,
            target=data,
            criterion=lambda output, target: (output - target).square().sum(1),
            perturbation_model=AdditivePerturbation(data),
            optimizer=SGD([other], lr=0.1),
            steps=1,
        )


def test_an_optimizer_can_read_losses_success_and_gradients() -> None:
    class Curious(ParamTransformingOptimizer):
        def _pre_step_transform_(self, param, optim_group):
            read.append({name: optim_group[name] for name in ("losses", "fooled")})
            read[-1]["same"] = torch.equal(optim_group["gradient"](), param.grad)

    data, target = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])
    for targeted in (False, True):
        read: list[dict] = []
        adding = AdditivePerturbation(data)
        optimizer = Curious(adding.parameters(), lr=0.1)
        gradient_ascent(
            model=lambda x: x,
            data=data,
            target=target,
            optimizer=optimizer,
            perturbation_model=adding,
            steps=1,
            targeted=targeted,
        )
        losses = torch.nn.functional.cross_entropy(data, target, reduction="none")
        assert torch.equal(read[0]["losses"], losses if targeted else -losses)
        assert read[0]["fooled"].tolist() == [targeted, not targeted]
        assert read[0]["same"]
        assert not {"losses", "fooled", "gradient"} & optimizer.param_groups[0].keys()


def test_without_gradients_around_it_the_result_is_the_same():
    problem = {"model": nn.Linear(4, 3), "data": torch.rand(5, 4), "target": torch.arange(5) % 3, "steps": 3}
    expected = gradient_ascent(**problem, optimizer=L2ProjectedOptim, epsilon=0.5, lr=0.2)
    with torch.no_grad():
        found = gradient_ascent(**problem, optimizer=L2ProjectedOptim, epsilon=0.5, lr=0.2)
        again = random_restart(gradient_ascent, 2)(**problem, optimizer=L2ProjectedOptim, epsilon=0.5, lr=0.2)
    assert_close(found, expected)
    assert_close(again, expected)


def test_inference_mode_is_refused_with_a_remedy():
    with torch.inference_mode(), pytest.raises(ValueError, match=r"torch\.inference_mode\(\) forbids.* torch\.no_grad"):
        gradient_ascent(model=nn.Linear(4, 3), data=torch.rand(5, 4), target=0, optimizer=SGD, steps=1)


@pytest.mark.parametrize("data", [torch.tensor(1.5), torch.zeros(0, 3)])
def test_a_single_number_and_no_samples_are_data(data):
    found, losses = gradient_ascent(
        model=lambda x: x,
        data=data,
        target=torch.zeros_like(data),
        criterion=lambda output, target: (output - target).abs(),
        optimizer=SGD,
        lr=0.25,
        steps=2,
        use_best=True,
    )
    assert_close(found, data + 0.5)
    assert_close(losses, found)


def test_user_values_in_a_group_survive_publishing_under_the_same_name():
    optimizer = SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    optimizer.param_groups[0]["losses"] = torch.zeros(2)
    with published(optimizer, losses=torch.ones(2), fooled=torch.ones(2) > 0):
        assert optimizer.param_groups[0]["losses"].sum() == 2
    assert optimizer.param_groups[0]["losses"].sum() == 0
    assert "fooled" not in optimizer.param_groups[0]
