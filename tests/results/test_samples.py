"""Tables of a job, from outcomes made by hand, against what they must say."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.testing import assert_close

from raiopt.attacks import Ball, Claim, Outcome, Search
from raiopt.results.samples import Verdict, metrics, samples_frame, trace_frame

LOSSES = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 1.0, math.nan, 5.0], [3.0, 0.0, math.nan, 6.0]])
FOOLED = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]).bool()
SEARCH = Search(
    claim=Claim(torch.tensor([0.3, 0.0, 0.1, -0.2]).view(4, 1, 1, 1).repeat(1, 1, 2, 2), Ball(math.inf, 0.3)),
    prediction=torch.tensor([1, 0, 0, 3]),
    loss=torch.tensor([2.0, 2.0, 3.0, 6.0]),
    fooled=torch.tensor([True, False, False, True]),
    best_step=torch.tensor([1, 0, 0, 2]),
    first_fooled=torch.tensor([1, -1, -1, 2]),
    not_finite=torch.tensor([-1, -1, 1, -1]),
    losses=LOSSES,
    fooled_at=FOOLED,
    stuck=torch.zeros(4).bool(),
    coupled=False,
)
OUTCOME = Outcome(
    ids=[10, 11, 12, 13, 14, 15],
    names=list("abcdef"),
    images=torch.zeros(6, 1, 2, 2),
    labels=torch.tensor([0, 0, 0, 0, 1, 2]),
    goals=torch.tensor([0, 0, 0, 0, 1, 2]),
    clean_prediction=torch.tensor([0, 0, 0, 0, 2, 0]),
    clean_loss=torch.ones(6),
    finite=torch.tensor([True, True, True, True, True, False]),
    attacked=torch.tensor([True, True, True, True, False, False]),
    search=SEARCH,
)
VERDICT = Verdict(torch.tensor([True, False, False, False]), torch.tensor([1, 0, 0, 0]))


def test_one_row_a_sample_with_nulls_where_nothing_was_attacked():
    frame = samples_frame(OUTCOME, VERDICT)
    assert frame["id"].to_list() == [10, 11, 12, 13, 14, 15]
    assert frame["stopped"].to_list() == ["steps", "steps", "not_finite", "steps", "misclassified", "not_finite"]
    assert frame["clean_prediction"].to_list() == [0, 0, 0, 0, 2, None]
    assert frame["claimed"].to_list() == [True, False, False, True, None, None]
    assert frame["verified"].to_list() == [True, False, False, False, None, None]
    assert frame["not_finite_step"].to_list() == [None, None, 1, None, None, None]
    assert frame["first_fooled_step"].to_list() == [1, None, None, 2, None, None]
    assert frame["forward_passes"].to_list() == [3, 3, 3, 3, None, None]
    assert frame["backward_passes"].to_list() == [2, 2, 2, 2, None, None]
    assert frame["target"].is_null().all()


@pytest.mark.parametrize(("column", "order"), [("l0", 0), ("l1", 1), ("l2", 2), ("linf", np.inf)])
def test_norms_agree_with_numpy(column, order):
    rows = SEARCH.claim.parameter.double().flatten(1).numpy()
    expected = [np.linalg.norm(row, order) for row in rows]
    np.testing.assert_allclose(samples_frame(OUTCOME, VERDICT)[column].to_list()[:4], expected)


def test_metrics_count_what_was_verified_and_nothing_else():
    figures = metrics(samples_frame(OUTCOME, VERDICT))
    assert figures["samples"] == 6
    assert figures["clean_accuracy"] == pytest.approx(4 / 6)
    assert figures["robust_accuracy"] == pytest.approx(2 / 6)  # 11 held, 13 was claimed only; 12 is undecided
    assert (figures["claimed"], figures["verified"], figures["undecided"], figures["attacked"]) == (2, 1, 2, 4)
    assert (figures["forward_passes"], figures["backward_passes"]) == (12, 8)
    assert figures["median_linf"] == figures["largest_linf"] == pytest.approx(0.3)
    assert "target_reached" not in figures


def test_metrics_of_a_targeted_attack_tell_the_share_that_reached_its_target():
    goals = torch.tensor([1, 1, 1, 1, 0, 0])
    frame = samples_frame(replace(OUTCOME, goals=goals), VERDICT)
    assert frame["target"].to_list() == goals.tolist()
    assert metrics(frame)["target_reached"] == pytest.approx(1 / 4)


def test_batches_without_an_attack_have_the_same_columns():
    whole = samples_frame(OUTCOME, VERDICT)
    none = samples_frame(replace(OUTCOME, attacked=torch.zeros(6).bool(), search=None), None)
    assert none.schema == whole.schema
    assert none["stopped"].to_list()[:1] == ["is_target"]
    assert len(pl.concat([whole, none])) == 12


def test_trace_agrees_with_numpy_and_leaves_out_what_is_not_finite():
    frame = trace_frame([SEARCH, SEARCH])
    losses = np.concatenate([LOSSES.numpy()] * 2, 1)
    np.testing.assert_allclose(frame["loss_mean"], np.nanmean(losses, 1))
    np.testing.assert_allclose(frame["loss_q75"], np.nanquantile(losses, 0.75, axis=1))
    assert frame["fooled"].to_list() == [0.0, 0.25, 0.25]
    assert frame["fooled_so_far"].to_list() == [0.0, 0.25, 0.5]
    assert frame["samples"].to_list() == [8, 8, 8]


def test_trace_of_nothing_has_its_columns_and_a_step_without_losses_is_nan():
    assert trace_frame([]).schema == trace_frame([SEARCH]).schema
    blind = trace_frame([replace(SEARCH, losses=torch.full_like(LOSSES, math.nan))])
    assert blind["loss_mean"].is_nan().all()


def test_a_shared_perturbation_counts_for_each_sample():
    shared = replace(SEARCH, claim=Claim(torch.full((1, 2, 2), 0.5), Ball(None, None), shared=True))
    assert_close(
        torch.tensor(samples_frame(replace(OUTCOME, search=shared), VERDICT)["l2"].to_list()[:4]), torch.ones(4)
    )


def test_norms_are_those_of_the_parameter_and_count_pixels_where_the_ball_does():
    pose = torch.tensor([[3.0, -4.0], [0.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    frame = samples_frame(replace(OUTCOME, search=replace(SEARCH, claim=Claim(pose, Ball(2, 5.0)))), VERDICT)
    assert frame["l2"].to_list()[:4] == pytest.approx([5, 0, 1, 0.5**0.5])
    assert frame["l0"].to_list()[:4] == [2, 0, 1, 2]
    delta = torch.zeros(4, 3, 2, 2)
    delta[:, :, 0, 0] = 1
    delta[1, 0, 1, 1] = -1
    for pixels, expected in ((True, [1, 2, 1, 1]), (False, [3, 4, 3, 3])):
        claim = Claim(delta, Ball(0, 3, pixels=pixels))
        frame = samples_frame(replace(OUTCOME, search=replace(SEARCH, claim=claim)), VERDICT)
        assert frame["l0"].to_list()[:4] == expected
