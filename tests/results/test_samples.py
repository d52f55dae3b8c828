"""Tables of a job from outcomes made by hand, compared with the expected values."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from raiopt.attacks import STOPPED, Ball, Outcome, ProbeResult, SearchResult, Verification
from raiopt.results.metrics import check_counts, metrics
from raiopt.results.samples import rises, samples_frame, steps_frames, trace_frame
from tests.attacks.parts import question

NAN = math.nan
GAINS = torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, 0.0], [3.0, NAN, NAN], [4.0, 5.0, 6.0]])
FOOLED_AT = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]).bool()
LABELS = torch.tensor([0, 0, 0, 0, 1, 2])


def search(**changes):
    """Returns the search of four samples: a success, a robust one, one not finite, an unverified claim."""
    usual = {
        "prediction": torch.tensor([1, 0, 0, 3]),
        "loss": torch.tensor([2.0, 2.0, 3.0, 6.0]),
        "fooled": torch.tensor([True, False, False, True]),
        "claimed": torch.tensor([True, False, False, True]),
        "best_step": torch.tensor([1, 0, 0, 2]),
        "first_fooled": torch.tensor([1, -1, -1, 2]),
        "not_finite": torch.tensor([-1, -1, 1, -1]),
        "score": torch.zeros(4),
        "gains": GAINS,
        "fooled_at": FOOLED_AT,
        "zero_gradients": torch.tensor([0, 2, 0, 1]),
        "zero_at_start": torch.tensor([False, True, False, True]),
        "stopped": torch.tensor([STOPPED.index(why) for why in ("fooled", "steps", "not_finite", "passes")]),
        "steps": torch.tensor([1, 2, 1, 2]),
        "forward_passes": torch.tensor([2, 3, 2, 3]),
        "backward_passes": torch.tensor([1, 2, 1, 2]),
        "restart": torch.tensor([0, 0, 0, 1]),
        "goal": LABELS[:4],
        "spread": torch.tensor([NAN, 9.0, 0.5, 1.0]),
    }
    return SearchResult(**{**usual, **changes})


def verification(broken=(True, False, False, False), broken_8bit=None):
    eight = None if broken_8bit is None else torch.tensor(broken_8bit)
    sure = torch.tensor([0.5, 0.75, NAN, 1.0])
    return Verification(torch.tensor(broken), torch.tensor([1, 0, 0, 0]), sure, sure / 2, eight)


def trial(**changes):
    usual = {
        "search": search(),
        "verification": verification(),
        "delta": torch.tensor([0.3, 0.0, 0.1, -0.2]).view(4, 1, 1, 1).repeat(1, 1, 2, 2),
        "parameter": None,
        "places": None,
        "epsilon": None,
        "ball": Ball(math.inf, 0.3),
        "shared": False,
        "coupled": False,
        "fixed_batch": False,
        "stride": torch.ones(4, dtype=torch.int64),
    }
    return ProbeResult(**{**usual, **changes})


def outcome(of=None, **changes):
    """Returns six samples: the four of the trial, one predicted wrong, one whose clean output is not finite."""
    usual = {
        "ids": [10, 11, 12, 13, 14, 15],
        "names": list("abcdef"),
        "images": torch.zeros(6, 1, 2, 2),
        "labels": LABELS,
        "clean_prediction": torch.tensor([0, 0, 0, 0, 2, 0]),
        "clean_loss": torch.ones(6),
        "clean_confidence": torch.tensor([0.5, 1.0, 0.9, 1.0, 0.4, NAN]),
        "finite": torch.tensor([True, True, True, True, True, False]),
        "attacked": torch.tensor([True, True, True, True, False, False]),
        "result": trial() if of is None else of,
    }
    return Outcome(**{**usual, **changes})


def nothing(**changes):
    """Returns the outcome of a batch in which no sample was attacked."""
    return replace(outcome(**changes), attacked=torch.zeros(6).bool(), result=None)


def test_one_row_a_sample_with_nulls_where_nothing_was_attacked():
    frame = samples_frame(outcome())
    assert frame["id"].to_list() == [10, 11, 12, 13, 14, 15]
    assert frame["stopped"].to_list() == ["fooled", "steps", "not_finite", "passes", "misclassified", "not_finite"]
    assert frame["clean_prediction"].to_list() == [0, 0, 0, 0, 2, None]
    assert frame["claimed"].to_list() == [True, False, False, True, None, None]
    assert frame["verified"].to_list() == [True, False, False, False, None, None]
    assert frame["undecided"].to_list() == [False, False, True, False, None, None]
    assert frame["not_finite_step"].to_list() == [None, None, 1, None, None, None]
    assert frame["first_fooled_step"].to_list() == [1, None, None, 2, None, None]
    assert frame["steps"].to_list() == [1, 2, 1, 2, None, None]
    assert frame["forward_passes"].to_list() == [2, 3, 2, 3, None, None]
    assert frame["backward_passes"].to_list() == [1, 2, 1, 2, None, None]
    assert frame["restart"].to_list() == [0, 0, 0, 1, None, None]
    assert frame["restart_spread"].to_list() == [None, 9, 0.5, 1, None, None]
    assert frame["clean_confidence"].to_list() == pytest.approx([0.5, 1, 0.9, 1, 0.4, None])
    assert frame["adversarial_confidence"].to_list() == [0.5, 0.75, None, 1, None, None]
    assert frame["label_confidence"].to_list() == [0.25, 0.375, None, 0.5, None, None]
    for name in ("target", "epsilon", "broken_at", "verified_8bit"):
        assert frame[name].is_null().all()


def test_a_success_before_values_were_not_finite_counts():
    lost = search(not_finite=torch.tensor([2, -1, 1, -1]))
    frame = samples_frame(outcome(trial(search=lost)))
    assert frame["stopped"].to_list()[:3] == ["fooled", "steps", "not_finite"]
    assert frame["undecided"].to_list()[:3] == [False, False, True]
    assert metrics(frame.lazy()).undecided == 2


def test_samples_whose_label_is_the_target_are_marked_is_target():
    none = samples_frame(nothing())
    assert none["stopped"].to_list() == ["is_target"] * 4 + ["misclassified", "not_finite"]


@pytest.mark.parametrize(("column", "order"), [("l0", 0), ("l1", 1), ("l2", 2), ("linf", np.inf)])
def test_norms_agree_with_numpy(column, order):
    rows = trial().delta.double().flatten(1).numpy()
    expected = [np.linalg.norm(row, order) for row in rows]
    np.testing.assert_allclose(samples_frame(outcome())[column].to_list()[:4], expected)


def test_a_shared_perturbation_counts_for_each_sample():
    shared = trial(parameter=torch.full((1, 2, 2), 0.5), ball=Ball(None, None), shared=True)
    assert_close(torch.tensor(samples_frame(outcome(shared))["l2"].to_list()[:4]), torch.ones(4))


def test_norms_are_those_of_the_parameter_and_count_pixels_where_the_ball_does():
    pose = torch.tensor([[3.0, -4.0], [0.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    frame = samples_frame(outcome(trial(parameter=pose, ball=Ball(2, 5.0))))
    assert frame["l2"].to_list()[:4] == pytest.approx([5, 0, 1, 0.5**0.5])
    assert frame["l0"].to_list()[:4] == [2, 0, 1, 2]
    delta = torch.zeros(4, 3, 2, 2)
    delta[:, :, 0, 0] = 1
    delta[1, 0, 1, 1] = -1
    for pixels, expected in ((True, [1, 2, 1, 1]), (False, [3, 4, 3, 3])):
        frame = samples_frame(outcome(trial(delta=delta, ball=Ball(0, 3, pixels=pixels))))
        assert frame["l0"].to_list()[:4] == expected


@given(st.data())
def test_rises_agree_with_a_count_by_hand(data):
    steps = data.draw(st.integers(0, 25))
    taken = torch.tensor(data.draw(st.lists(st.integers(0, steps), min_size=1, max_size=4)))
    values = st.lists(st.integers(-5, 5), min_size=steps + 1, max_size=steps + 1)
    gains = torch.tensor([data.draw(values) for _ in taken]).float()
    gains = gains.gather(1, torch.minimum(torch.arange(steps + 1), taken[:, None]))  # as they ended
    found = torch.stack(rises(gains, taken), 1).tolist()
    for row, end, (rise, late) in zip(gains.tolist(), taken.tolist(), found, strict=True):
        assert rise == max(row) - row[0]
        assert late == max(row) - max(row[: int(0.9 * end + 1e-9) + 1])


def test_check_counts_include_only_surviving_samples():
    found = check_counts(samples_frame(outcome()).lazy(), "linf", 0.3)
    assert found.survivors == 2  # 11 held, 13 was claimed only
    assert found.zero_gradient_share == pytest.approx(3 / 6)
    assert (found.not_finite, found.saturated, found.fooled_not_kept) == (2, 2, 0)
    assert (found.still_rising, found.restarts_differ) == (1, 1)
    assert (found.short_of_ball, found.reach) == (2, pytest.approx(0.2 / 0.3))
    assert check_counts(samples_frame(outcome()).lazy(), "linf", 0.2).short_of_ball == 1
    not_kept = search(claimed=torch.tensor([False, False, False, True]))
    assert check_counts(samples_frame(outcome(trial(search=not_kept))).lazy(), None, None).fooled_not_kept == 1


@pytest.mark.parametrize(("norm", "epsilon"), [(None, None), (None, 0.3), ("l0", 5.0), ("linf", 0.0)])
def test_an_unbounded_search_is_not_counted_as_short_of_its_ball(norm, epsilon):
    found = check_counts(samples_frame(nothing()).lazy(), norm, epsilon)
    assert (found.short_of_ball, found.reach, found.restarts_differ) == (None, None, None)
    assert (found.survivors, found.zero_gradient_share) == (0, None)


def test_check_counts_use_the_radius_of_each_sample():
    found = check_counts(samples_frame(outcome(trial(**SWEPT))).lazy(), "linf", None)
    assert (found.short_of_ball, found.reach) == (2, pytest.approx(0.2 / 0.3))


RADII = [0.1, 0.2, 0.3]
BROKEN_AT = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 1]]).bool()
SWEPT = {"epsilon": torch.tensor([0.2, 0.3, 0.3, 0.3], dtype=torch.float64), "broken_at": BROKEN_AT}


@pytest.mark.parametrize(
    "other",
    [
        nothing(),
        outcome(trial(**SWEPT)),
        outcome(trial(verification=verification(broken_8bit=[True, False, False, False]))),
        outcome(trial(search=search(goal=torch.tensor([1, 1, 1, 1])))),
        outcome(trial(parameter=torch.ones(1, 2, 2), shared=True)),
        nothing(finite=torch.zeros(6).bool()),
    ],
    ids=["nothing", "epsilons", "8bit", "targets", "shared", "lost"],
)
def test_every_batch_has_the_same_columns(other):
    usual = samples_frame(outcome())
    assert samples_frame(other).schema == usual.schema
    assert len(pl.concat([usual, samples_frame(other)])) == 12


def test_metrics_count_only_verified_successes():
    figures = metrics(samples_frame(outcome()).lazy())
    assert figures.samples == 6
    assert figures.clean_accuracy == pytest.approx(4 / 6)
    assert figures.robust_accuracy == pytest.approx(2 / 6)  # 11 held, 13 was claimed only; 12 is undecided
    assert (figures.claimed, figures.verified, figures.undecided, figures.attacked) == (2, 1, 2, 4)
    assert (figures.forward_passes, figures.backward_passes) == (10, 6)
    assert figures.median_linf == figures.largest_linf == pytest.approx(0.3)
    assert (figures.zero_gradients_at_start, figures.never_a_gradient) == (2, 1)
    assert figures.verified_8bit is None
    assert (figures.target_reached, figures.epsilons, figures.robust_accuracies) == (None, None, None)


def test_metrics_of_a_job_in_which_nothing_was_attacked():
    figures = metrics(samples_frame(nothing()).lazy(), RADII)
    assert (figures.attacked, figures.verified, figures.forward_passes) == (0, 0, 0)
    assert figures.median_l2 is None
    assert figures.verified_8bit is None
    assert figures.robust_accuracies == [figures.robust_accuracy] * 3 == [pytest.approx(4 / 6)] * 3


def test_metrics_of_a_targeted_attack_include_the_target_rate():
    frame = samples_frame(outcome(trial(search=search(goal=torch.tensor([1, 1, 1, 1])))))
    assert frame["target"].to_list() == [1, 1, 1, 1, None, None]
    assert metrics(frame.lazy(), targeted=True).target_reached == pytest.approx(1 / 4)
    assert metrics(frame.lazy()).target_reached is None  # moving towards a class is not aiming at it


@pytest.mark.parametrize("broken_8bit", [[True, False, False, False], [False] * 4])
def test_successes_as_8_bit_images_are_counted_on_request(broken_8bit):
    frame = samples_frame(outcome(trial(verification=verification(broken_8bit=broken_8bit))))
    assert frame["verified_8bit"].to_list()[:4] == broken_8bit
    assert metrics(frame.lazy()).verified_8bit == sum(broken_8bit)


def test_robust_accuracies_agree_with_a_count_by_hand():
    generator = torch.Generator().manual_seed(0)
    frames = []
    for _ in range(20):
        epsilon = torch.tensor(RADII, dtype=torch.float64)[torch.randint(3, (4,), generator=generator)]
        broken = (torch.rand(4, generator=generator) < 0.5).tolist()
        of = trial(epsilon=epsilon, verification=verification(broken), broken_at=BROKEN_AT)
        frames.append(samples_frame(outcome(of)))
    frame = pl.concat(frames)
    expected = []
    for radius in RADII:
        robust = 0
        for row in frame.iter_rows(named=True):
            held = not (row["verified"] and row["epsilon"] <= radius)
            robust += row["clean_prediction"] == row["label"] and held and row["stopped"] != "not_finite"
        expected.append(robust / len(frame))
    figures = metrics(frame.lazy(), RADII)
    assert figures.epsilons == RADII
    assert figures.robust_accuracies == pytest.approx(expected)
    assert figures.robust_accuracies[-1] == figures.robust_accuracy
    assert len(set(expected)) == 3


def trace(tmp_path, *outcomes, targeted=False, steps=2):
    files = []
    for number, made in enumerate(outcomes):
        files.append(tmp_path / f"{number}.parquet")
        steps_frames([made])["steps"].write_parquet(files[-1])
    return trace_frame(files, question(steps=steps, target=1 if targeted else None))


@pytest.mark.parametrize("targeted", [False, True])
def test_trace_agrees_with_numpy_and_ignores_values_that_are_not_finite(tmp_path, targeted):
    other = trial(search=search(gains=GAINS + 1, fooled_at=FOOLED_AT.flip(0)))
    frame = trace(tmp_path, outcome(), outcome(other), targeted=targeted)
    losses = (-1 if targeted else 1) * np.concatenate([GAINS.numpy(), GAINS.numpy() + 1]).astype(np.float64)
    np.testing.assert_allclose(frame["loss_mean"], np.nanmean(losses, 0))
    for name, share in {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}.items():
        np.testing.assert_allclose(frame[f"loss_{name}"], np.nanquantile(losses, share, axis=0))
    fooled = np.concatenate([FOOLED_AT.numpy(), FOOLED_AT.flip(0).numpy()])
    np.testing.assert_allclose(frame["fooled"], fooled.mean(0))
    np.testing.assert_allclose(frame["fooled_so_far"], np.logical_or.accumulate(fooled, 1).mean(0))
    assert frame["step"].to_list() == [0, 1, 2]
    assert frame["samples"].to_list() == [8, 8, 8]
    assert frame["passes"].to_list() == [1, 3, 4]  # half of the samples took one step, the others two


def test_trace_of_nothing_has_its_columns_and_a_step_without_losses_is_nan(tmp_path):
    assert steps_frames([nothing()]) == {}
    assert trace_frame([], question(steps=2)).schema == trace(tmp_path, outcome()).schema
    blind = trace(tmp_path, outcome(trial(search=search(gains=torch.full_like(GAINS, NAN)))))
    assert blind["loss_mean"].is_nan().all()
