"""Stages: each one equals its attack run alone on the samples that remain, and together they are one attack."""

from functools import partial

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from raiopt.attacks import Stage
from raiopt.attacks.stages import COMMON_SETTINGS
from raiopt.config import words
from raiopt.optim import L2ProjectedOptim, LinfProjectedOptim, SquareOptim
from tests import attack_functions as attacks
from tests.attacks.parts import Counting, Linear, images, net, question, random_start, run, table

PASSES = ["forward_passes", "backward_passes"]
N = 24


def stage(name, lr=1 / 256, **changes):
    """Returns a stage whose arithmetic is exact on a linear model; its step size decides which samples it breaks."""
    make = partial(LinfProjectedOptim, epsilon=changes.pop("epsilon", 1 / 32), lr=lr)
    return Stage(name, question(**{"optimizer": make, "init": random_start, "steps": 3, **changes}))


def in_turn(x, labels, plan, model):
    """Returns the table of the stages run one by one, each on the samples that remain."""
    left, rows, passes, found = list(range(len(x))), {}, dict.fromkeys(range(len(x)), (0, 0)), pl.DataFrame()
    for one in plan:
        found = table(x[left], labels[left], one.attack, model, ids=left).with_columns(stage=pl.lit(one.name))
        for row in found.filter(pl.col("forward_passes").is_not_null()).iter_rows(named=True):
            rows[row["id"]] = row
            passes[row["id"]] = tuple(a + row[b] for a, b in zip(passes[row["id"]], PASSES, strict=True))
        left = found.filter(~pl.col("verified"))["id"].to_list()
    for number, row in rows.items():
        row.update(zip(PASSES, passes[number], strict=True))
    return pl.DataFrame([rows[number] for number in sorted(rows)], schema=found.schema)


steps = st.sampled_from([1 / 1024, 1 / 512, 1 / 256])
plans = st.lists(st.tuples(steps, st.integers(0, 4), st.integers(1, 2)), min_size=1, max_size=3)


@given(plan=plans, seed=st.integers(0, 99))
def test_stages_agree_with_their_attacks_run_in_sequence(plan, seed):
    x, model = images(N, seed=seed), Linear()
    labels = model(x).argmax(1)
    plan = [stage(f"s{at}", lr=lr, steps=n, restarts=r) for at, (lr, n, r) in enumerate(plan)]
    assert_frame_equal(table(x, labels, model=model, stages=plan), in_turn(x, labels, plan, model))


def mixed(radius=0.4):
    """Returns stages of several losses and targets against a network that is not linear."""
    make = partial(question, optimizer=partial(L2ProjectedOptim, epsilon=radius, lr=0.1), steps=4)
    return [
        Stage("ce", make(criterion=attacks.cross_entropy)),
        Stage("targets", make(criterion=attacks.margin, target="likely", num_targets=3, steps=6)),
        Stage("margin", make(init=partial(attacks.uniform_l2, epsilon=0.3), restarts=3, steps=8)),
    ]


def test_stages_with_other_losses_targets_and_restarts_agree_too():
    x, model = images(60, seed=3, spread=0.4), net().float()
    labels, plan = model(x).argmax(1), mixed()
    found, expected = table(x, labels, model=model, stages=plan), in_turn(x, labels, plan, model)
    unlike = ["clean_loss"]  # that of the first stage
    assert_frame_equal(found.drop(unlike), expected.drop(unlike))
    broken = found.filter("verified")["stage"].value_counts()
    assert len(broken) > 1
    assert not found["verified"].all()
    assert set(found.filter(~pl.col("verified"))["stage"]) == {"margin"}


SQUARE = partial(SquareOptim, p=float("inf"), epsilon=1 / 32, steps=6)


def test_a_survivor_has_the_record_of_the_last_stage_along_gradients():
    x, plan = images(N), [stage("a", lr=1 / 2048), stage("square", optimizer=SQUARE, init=attacks.zero, steps=6)]
    labels = Linear()(x).argmax(1)
    found, alone = table(x, labels, stages=plan), table(x, labels, plan[0].attack)
    held = ~found["verified"]
    assert held.any()
    assert set(found.filter(held)["stage"]) == {"a"}
    assert set(found.filter(~held)["stage"]) == {"a", "square"}
    assert_frame_equal(found.filter(held).drop("stage", *PASSES), alone.filter(held).drop("stage", *PASSES))
    assert (found.filter(held)["forward_passes"] == 4 + 7).all()
    assert set(table(x, labels, stages=plan[1:])["stage"]) == {"square"}


def test_an_untargeted_change_goes_on_to_the_next_stage_if_targeted():
    x, model = images(60, seed=3, spread=0.4), net().float()
    make = partial(question, optimizer=partial(L2ProjectedOptim, epsilon=0.5, lr=0.1), targeted=True, target="next")
    plan = [Stage("short", make(criterion=attacks.cross_entropy, steps=3)), Stage("long", make(steps=12))]
    labels = model(x).argmax(1)
    short, found = table(x, labels, plan[0].attack, model), table(x, labels, model=model, stages=plan)

    def reached(frame):
        return frame["verified"] & (frame["adversarial_prediction"] == frame["target"])

    assert (short["verified"] & ~reached(short)).any()
    assert (found["stage"] == "short").sum() == (reached(short) | (short["verified"] & ~reached(found))).sum()
    assert not (short["verified"] & ~found["verified"]).any()
    assert not (reached(short) & ~reached(found)).any()
    assert reached(found).sum() > reached(short).sum()


@given(data=st.data())
def test_order_batch_size_and_other_samples_change_nothing(data):
    x, plan = images(N, seed=1), [stage("short", lr=1 / 1024), stage("long", restarts=2)]
    labels = Linear()(x).argmax(1)
    labels[::5] = 1 - labels[::5]
    records = table(x, labels, stages=plan)
    assert set(records["stage"]) == {"short", "long", None}
    ids = data.draw(st.permutations(range(N)))[: data.draw(st.integers(1, N))]
    size = data.draw(st.integers(1, N + 2))
    others = table(x[ids], labels[ids], ids=ids, batch_size=size, stages=plan)
    assert_frame_equal(others.drop(PASSES), records[sorted(ids)].drop(PASSES))  # waiting rows pass too


def test_a_stage_gets_the_remaining_samples_and_passes_agree_with_the_model():
    x, model = images(N), Counting(Linear())
    plan = [stage("a", lr=1 / 1024), stage("b", lr=1 / 512), stage("c")]
    (outcome,) = run(x, fast=model, stages=plan)
    trial = outcome.result
    left = torch.ones(N, dtype=torch.bool)
    for past in trial.history:
        assert torch.equal(past.attacked, left)
        assert not past.succeeded[~left].any()
        left = left & ~past.succeeded
    assert torch.equal(trial.verification.broken, ~left)
    assert 0 < int(left.sum()) < N
    assert sum(bool(past.succeeded.any()) for past in trial.history) > 1
    for name, passed in zip(PASSES, model.total, strict=True):
        assert sum(int(getattr(past, name).sum()) for past in trial.history) == passed
        assert int(getattr(trial.search, name).sum()) == passed


@given(most=st.integers(7, 40))
def test_the_passes_of_all_stages_are_limited_together(most):
    x = images(N)
    plan = [stage("a", lr=1 / 4096, max_passes=most), stage("b", lr=1 / 1024, steps=6, restarts=2, max_passes=most)]
    found = table(x, stages=plan)
    assert (found["forward_passes"] + found["backward_passes"]).max() <= most
    assert ("b" in set(found["stage"])) == (most >= 7 + 8)  # after all steps of the first, one of the second


def test_with_several_radii_a_sample_breaks_where_any_stage_breaks_it():
    x, radii = images(30), [k / 512 for k in range(1, 9)]
    settings = {"epsilon": 1.0, "epsilons": radii}
    plan = [stage("a", lr=1 / 512, steps=2, **settings), stage("b", lr=1 / 64, steps=4, **settings)]
    found, alone = table(x, stages=plan), [table(x, attack=one.attack) for one in plan]
    assert found["verified"].equals(alone[0]["verified"] | alone[1]["verified"])
    held = pl.when("verified").then("epsilon").otherwise(1.0)
    assert (found.select(held).to_series() <= alone[0].select(held).to_series()).all()
    assert set(found.filter("verified")["stage"]) == {"a", "b"}


def test_a_sample_whose_label_is_the_target_waits_for_the_next_stage():
    x, model = images(N), Linear()
    labels = model(x).argmax(1)
    plan = [stage("to one", target=1), stage("any", lr=1 / 1024)]
    found = table(x, labels, model=model, stages=plan)
    assert found["forward_passes"].null_count() == 0
    assert set(found.filter(pl.col("label") == 1)["stage"]) == {"any"}
    assert "to one" in set(found.filter(pl.col("label") == 0)["stage"])
    only = table(x, labels, model=model, stages=plan[:1])
    assert set(only.filter(pl.col("label") == 1)["stopped"]) == {"is_target"}


SHARED = partial(LinfProjectedOptim, epsilon=1 / 32, lr=1 / 64, param_ndim=None)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            stage("b", epsilon=1 / 16),
            r"stages.b searches in Linf 0.0625, but stages.a in Linf 0.03125: all",
        ),
        (Stage("b", question(optimizer=SHARED)), "stages.b needs samples that are independent"),
        (stage("b", max_passes=9), "stages.b has another max_passes than stages.a"),
        (stage("b", quantize=True), "stages.b has another quantize than stages.a"),
        (stage("b", criterion=lambda *_, **__: 0), "stages.b: criterion: it must return one loss per sample"),
    ],
)
def test_stages_that_do_not_go_together_are_an_error(second, message):
    with pytest.raises(ValueError, match=message):
        run(images(2), stages=[stage("a"), second])


def test_settings_shared_by_all_stages_are_refused_in_a_stage():
    assert {f"solver.{name}" for name in COMMON_SETTINGS if name != "seed"} <= set(words.JOB_SETTINGS)
