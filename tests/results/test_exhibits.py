"""The samples kept for display do not depend on the batches."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raiopt.attacks import Ball
from raiopt.results.exhibits import SAMPLES_PER_KIND as EACH
from raiopt.results.exhibits import Exhibits, candidates_of
from raiopt.results.pictures import KINDS
from tests.results.test_samples import nothing, outcome, search, trial, verification

COLUMNS = ("label", "clean_prediction", "prediction", "clean_confidence", "adversarial_confidence")


def rows(scores, broken, first=0):
    """Returns candidates with these scores; their other values follow from their ids."""
    ids = torch.arange(first, first + len(scores))
    pixels = (ids.float() / 100).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return {
        "ids": ids,
        "score": torch.tensor(scores, dtype=torch.float32),
        "broken": torch.tensor(broken, dtype=torch.bool),
        **dict.fromkeys(("image", "delta"), pixels),
        **dict.fromkeys(COLUMNS, ids),
    }


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12), max_size=5))
def test_easiest_and_hardest_successes_and_most_robust_samples_are_kept(batches):
    kept, every = Exhibits(), []
    for batch in batches:
        scores, broken = [score for score, _ in batch], [is_broken for _, is_broken in batch]
        before = kept.rows.get("ids", torch.empty(0)).tolist()
        came_in = kept.offer(rows(scores, broken, len(every)) if batch else {})
        assert came_in == any(number >= len(every) for number in kept.rows.get("ids", torch.empty(0)).tolist())
        assert came_in or before == kept.rows.get("ids", torch.empty(0)).tolist()
        every += batch
    won = sorted(((score, number) for number, (score, is_broken) in enumerate(every) if is_broken))
    lost = sorted(((score, number) for number, (score, is_broken) in enumerate(every) if not is_broken))
    stored = kept.stored()
    if not every:
        assert stored == {}
        return
    expected = won if len(won) <= 2 * EACH else won[:EACH] + won[-EACH:]
    scores = kept.rows["score"].tolist()
    assert scores[: len(expected)] == [score for score, _ in expected]
    assert scores[len(expected) :] == [score for score, _ in lost[:EACH]]
    kinds = [KINDS[kind] for kind in stored["kind"].tolist()]
    assert kinds == ["Easiest successes"] * min(EACH, len(won)) + ["Hardest successes"] * min(
        EACH, max(0, len(won) - EACH)
    ) + ["Remained robust"] * min(EACH, len(lost))


def test_exhibits_are_stored_as_8_bit_pixels_and_half_precision():
    kept = Exhibits()
    assert kept.offer(rows([1.0, 2.0], [True, False], first=20))
    stored = kept.stored()
    assert stored["image"].dtype == torch.uint8
    assert stored["image"][:, 0, 0, 0].tolist() == [51, 54]
    assert stored["delta"].dtype == torch.float16
    assert stored["delta"][:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.21], rel=1e-3)
    assert "score" not in stored


def test_candidates_are_the_decided_samples_of_a_batch():
    found = candidates_of(outcome(), by_norm=False)
    assert found["ids"].tolist() == [10, 13, 11]  # 12 is not decided, 14 and 15 were not attacked
    assert found["broken"].tolist() == [True, False, False]
    assert found["score"].tolist() == [1.25, -0.5, -0.375]  # step + label probability; minus label probability
    assert found["clean_confidence"].tolist() == [0.5, 1.0, 1.0]
    assert found["adversarial_confidence"].tolist() == [0.5, 1.0, 0.75]
    assert candidates_of(nothing(), by_norm=False) == {}


def test_minimum_norm_attacks_rank_by_norm_or_radius():
    both = verification(broken=(True, False, False, True))
    of = trial(verification=both, ball=Ball(2, 1.0), search=search(first_fooled=torch.tensor([1, -1, -1, 0])))
    assert candidates_of(outcome(of), by_norm=False)["ids"].tolist() == [13, 10, 11]
    smallest = replace(of, delta=of.delta * torch.tensor([1.0, 1, 1, 9]).view(4, 1, 1, 1))
    assert candidates_of(outcome(smallest), by_norm=True)["ids"].tolist() == [10, 13, 11]
    radii = replace(of, epsilon=torch.tensor([0.1, 0.3, 0.3, 0.2], dtype=torch.float64))
    assert candidates_of(outcome(radii), by_norm=False)["ids"].tolist() == [10, 13, 11]
