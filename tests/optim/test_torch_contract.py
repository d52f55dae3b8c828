"""What torch and its users expect of an optimizer: checkpoints, schedulers, scaling, closures, hooks, copies."""

import copy
import io
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Adam, Optimizer, RMSprop, lr_scheduler

from raiopt import transforms
from raiopt.optim import (
    ChainedParamTransformingOptimizer,
    L2NormedGradientOptim,
    L2ProjectedOptim,
    ParamTransformingOptimizer,
    ProjectedParameterOptimizer,
    SignedGradientOptim,
)
from tests.optim.table import TABLE, WITH_INNER, Row

each = pytest.mark.parametrize("row", TABLE, ids=str)
with_inner = pytest.mark.parametrize("row", WITH_INNER, ids=str)
WEIGHT = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))


def start() -> Tensor:
    return torch.linspace(-1, 1, WEIGHT.numel()).view_as(WEIGHT).clone().requires_grad_()


def evaluate(x: Tensor) -> Tensor:
    return (WEIGHT * x + x.square()).sum()


def run(optimizer: Optimizer, x: Tensor, steps: int = 3) -> Tensor:
    for _ in range(steps):
        optimizer.zero_grad()
        evaluate(x).backward()
        optimizer.step()
    return x.detach().clone()


@each
@pytest.mark.parametrize("InnerOpt", [partial(SGD, momentum=0.9), Adam])
def test_a_checkpoint_resumes_exactly(row: Row, InnerOpt: Any) -> None:
    x = start()
    optimizer = row.build([x], InnerOpt=InnerOpt, lr=0.1)
    run(optimizer, x)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    y = x.detach().clone().requires_grad_()
    other = row.build([y], InnerOpt=InnerOpt, lr=9.0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.param_groups is other.inner_opt.param_groups
    assert torch.equal(run(optimizer, x), run(other, y))


@with_inner
def test_a_checkpoint_of_the_inner_optimizer_alone_loads(row: Row) -> None:
    x = start()
    plain = Adam([x], lr=0.1)
    run(plain, x)
    y = x.detach().clone().requires_grad_()
    optimizer = row.build([y], InnerOpt=Adam, lr=9.0, param_ndim=1)
    before = dict(optimizer.param_groups[0])
    optimizer.load_state_dict(plain.state_dict())
    after = optimizer.param_groups[0]
    assert after["lr"] == 0.1
    assert {name: after[name] for name in before.keys() - plain.param_groups[0].keys()} == {
        name: before[name] for name in before.keys() - plain.param_groups[0].keys()
    }
    optimizer.add_param_group({"params": [start()]})
    run(optimizer, y)


def test_a_checkpoint_keeps_the_radius_of_each_group() -> None:
    def make() -> L2ProjectedOptim:
        return L2ProjectedOptim([{"params": [start()], "epsilon": 0.25}, {"params": [start()]}], epsilon=1.0, lr=0.1)

    optimizer = make()
    plain = SGD([{"params": [start()]}, {"params": [start()]}], lr=0.1)
    optimizer.load_state_dict(plain.state_dict())
    assert [group["epsilon"] for group in optimizer.param_groups] == [0.25, 1.0]
    bad = make().state_dict()
    bad["param_groups"][0]["epsilon"] = -1.0
    with pytest.raises(ValueError, match=r"epsilon=-1\.0"):
        optimizer.load_state_dict(bad)


@each
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "copy"])
def test_copies_continue_identically(row: Row, how: str) -> None:  # they once raised AttributeError
    x = start()
    optimizer = row.build([x], InnerOpt=Adam, lr=0.1)
    scheduler = lr_scheduler.StepLR(optimizer, 1)  # wraps step by a function that is bound to the original
    run(optimizer, x)
    scheduler.step()
    if how == "copy":
        assert copy.copy(optimizer).inner_opt is optimizer.inner_opt
        return
    twin = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    assert type(twin) is type(optimizer)
    assert twin.traits == optimizer.traits
    y = twin.param_groups[0]["params"][0]
    assert y is not x
    assert all(member.inner_opt is twin.inner_opt for member in getattr(twin, "_chain", ()))
    expected = run(optimizer, x)
    assert torch.equal(run(twin, y), expected)


def test_schedulers_drive_the_inner_optimizer() -> None:
    x = start()
    optimizer = SignedGradientOptim([x], lr=1.0)
    scheduler = lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    for step in range(3):
        before = x.detach().clone()
        run(optimizer, x, 1)
        torch.testing.assert_close((x.detach() - before).abs(), torch.full_like(before, 0.5**step))
        scheduler.step()
    one_cycle = SignedGradientOptim([x], partial(SGD, momentum=0.9), lr=1.0)
    cycle = lr_scheduler.OneCycleLR(one_cycle, max_lr=1.0, total_steps=5)
    seen = []
    for _ in range(4):
        run(one_cycle, x, 1)
        cycle.step()
        seen.append((one_cycle.inner_opt.param_groups[0]["lr"], one_cycle.inner_opt.param_groups[0]["momentum"]))
    assert len(set(seen)) == 4
    assert all(group["lr"] == cycle.get_last_lr()[0] for group in one_cycle.param_groups)


@pytest.mark.parametrize("InnerOpt", [SGD, partial(Adam, fused=True)])
def test_gradients_are_unscaled_before_the_transforms(InnerOpt: Any) -> None:
    def step(scaled: bool) -> Tensor:
        x = start()
        bias = partial(ParamTransformingOptimizer, grad_bias=0.5)
        optimizer = bias([x], InnerOpt, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(evaluate(x)).backward()
            scaler.step(optimizer)
            scaler.update()
        return x.detach()

    torch.testing.assert_close(step(True), step(False))


def test_the_scaler_skips_a_step_with_infinite_gradients() -> None:
    x = start()
    optimizer = L2NormedGradientOptim([x], lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((x * float("inf")).sum()).backward()
    before = x.detach().clone()
    scaler.step(optimizer)
    assert torch.equal(x.detach(), before)


@each
def test_the_closure_is_evaluated_and_its_loss_returned(row: Row) -> None:
    x, y = start(), start()
    by_closure, by_hand = row.build([x], lr=0.1), row.build([y], lr=0.1)

    def closure() -> Tensor:
        by_closure.zero_grad()
        loss = evaluate(x)
        loss.backward()
        return loss

    expected = evaluate(y).item()
    with torch.no_grad():
        loss = by_closure.step(closure)  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert loss.item() == pytest.approx(expected)  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(x.detach(), run(by_hand, y, 1))
    assert by_hand.step() is None


def test_lbfgs_sees_transformed_gradients_at_each_evaluation() -> None:
    x, y = start(), start()
    optimizer = ProjectedParameterOptimizer([x], LBFGS, p=2, epsilon=0.25, grad_bias=0.5, lr=0.1, max_iter=5)
    plain = LBFGS([y], lr=0.1, max_iter=5)
    calls = []

    def closure(param: Tensor, bias: float) -> Tensor:
        calls.append(param)
        param.grad = None
        loss = evaluate(param)
        loss.backward()
        assert param.grad is not None
        param.grad += bias
        return loss

    optimizer.step(partial(closure, x, 0.0))  # pyright: ignore[reportCallIssue, reportArgumentType]
    plain.step(partial(closure, y, 0.5))  # pyright: ignore[reportArgumentType]
    assert len(calls) > 4
    torch.testing.assert_close(x.detach(), transforms.project_l2_(y.detach(), 0.25))


@with_inner
def test_maximize_reverses_the_step(row: Row) -> None:
    up, _ = row.step(start(), WEIGHT, InnerOpt=partial(SGD, maximize=True))
    down, _ = row.step(start(), WEIGHT, grad_scale=-1.0)
    assert torch.equal(up, down)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"capturable": False}])
# Adam moves the entries that an L0 ball has zeroed by equal amounts: which of them are kept is undefined.
@pytest.mark.parametrize("row", [row for row in WITH_INNER if row.ball != 0], ids=str)
def test_every_implementation_of_adam_sees_the_transformed_gradient(row: Row, options: dict[str, bool]) -> None:
    x, y = start(), start()
    found = run(row.build([x], InnerOpt=partial(Adam, **options), lr=0.1), x)
    expected = run(row.build([y], InnerOpt=partial(Adam, foreach=False), lr=0.1), y)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_hooks_of_the_wrapper_run() -> None:  # those on state_dict once never did
    x, seen = start(), []
    optimizer = SignedGradientOptim([x], lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before step"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after step"))
    optimizer.register_state_dict_pre_hook(lambda *_: seen.append("before state_dict"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("after state_dict"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("before load"))
    optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("after load"))
    run(optimizer, x, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [f"{when} {what}" for what in ("step", "state_dict", "load") for when in ("before", "after")]


def test_named_parameters_keep_their_names() -> None:
    optimizer = L2ProjectedOptim([("delta", start())], epsilon=1.0, lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["delta"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["delta"]


@pytest.mark.parametrize("InnerOpt", [Adam, RMSprop])
def test_user_state_under_a_string_key_survives(InnerOpt: Any) -> None:
    x = start()
    optimizer = ChainedParamTransformingOptimizer(SignedGradientOptim, params=[x], InnerOpt=InnerOpt, lr=0.1)
    optimizer.state["own"] = {"steps": torch.zeros(3)}
    run(optimizer, x)
    y = start()
    other = ChainedParamTransformingOptimizer(SignedGradientOptim, params=[y], InnerOpt=InnerOpt, lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.inner_opt.state["own"]["steps"], torch.zeros(3))
    assert run(other, y).isfinite().all()
