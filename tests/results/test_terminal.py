"""The summary of a job as printed on a terminal of 80 columns."""

from dataclasses import replace

import pytest

from raiopt.results.record import Metrics
from raiopt.results.record_reader import record_of
from raiopt.results.terminal import print_summary, summary_rows

METRICS = {
    "clean_accuracy": 0.98,
    "robust_accuracy": 0.25,
    "undecided": 0,
    "attacked": 40,
    "verified": 1200,
    **{f"{kind}_{norm}": 2.5 for kind in ("median", "largest") for norm in ("l0", "l1", "l2", "linf")},
    "verified_8bit": None,
    "zero_gradients_at_start": 0,
    "forward_passes": 1234,
    "backward_passes": 1000,
    "attack_seconds": 1.25,
}
RECORD = {
    "model": {"name": "net", "preset": "mean [0.5], std [1]"},
    "data": {"name": "pictures", "samples": 40},
    "attack": {"optimizers": ["signed", "sgd"]},
    "ball": {"norm": "linf", "epsilon": 0.1, "finite": True},
    "batch_size": 16,
    "perturbation": {"shared": False},
    "clamped": False,
    "coupled": False,
    "fixed_batches": False,
    "metrics": METRICS,
}


ABSENT = ("8-bit", "epsilon", "no gradient", "continued", "finished before")


@pytest.fixture
def shown(capsys, monkeypatch, tmp_path):
    def of(color=False, metrics=(), **changes):
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("FORCE_COLOR", "1" if color else "")
        skipped = changes.pop("skipped", False)
        record = record_of({**RECORD, **changes, "metrics": {**METRICS, **dict(metrics)}})
        print_summary(replace(record, skipped=skipped), tmp_path)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return of


def test_each_metric_has_a_row(shown):
    lines = [" ".join(line.split()) for line in shown()]
    assert lines[0] == "net on 40 images of pictures, signed with sgd, Linf 0.1"
    for line in (
        "clean accuracy 98.0 %",
        "robust accuracy 25.0 %",
        "undecided 0",
        "L0 norm of successful perturbations median 2, largest 2",
        "Linf norm of successful perturbations median 2.5, largest 2.5",
        "passes 1,234 forward, 1,000 backward",
        "passes per sample 30.9 forward, 25.0 backward",
        "attack 1.2 s",
        "normalisation of the model: mean [0.5], std [1]",
    ):
        assert line in lines
    assert not any(word in line for line in lines for word in ABSENT)


@pytest.mark.parametrize(("norm", "first"), [("l2", "L2"), ("linf", "Linf"), (None, "L0")])
def test_the_norm_of_the_ball_comes_first(shown, norm, first):
    lines = shown(ball={"norm": norm})
    assert next(line.split()[0] for line in lines if "of successful perturbations" in line) == first


def test_every_radius_has_a_row(shown):
    lines = shown(metrics={"epsilons": [0.05, 0.1, 1], "robust_accuracies": [0.9, 0.5, 0.25]})
    at = next(number for number, line in enumerate(lines) if "robust accuracy" in line)
    assert [" ".join(line.split()) for line in lines[at : at + 4]] == [
        "robust accuracy at 0.05 90.0 %",
        "robust accuracy at 0.1 50.0 %",
        "robust accuracy at 1 25.0 %",
        "undecided 0",
    ]


def rows(**changes):
    return summary_rows(Metrics(**{**METRICS, **changes}))


def test_successes_in_8_bits_have_a_row_if_they_were_verified():
    assert ("successful as 8-bit images", "1,100 of 1,200") in rows(verified_8bit=1100)
    assert ("successful as 8-bit images", "0 of 1,200") in rows(verified_8bit=0)


def test_zero_gradients_at_the_start_have_a_row():
    assert ("no gradient at the start", "3 of 40") in rows(zero_gradients_at_start=3)


def test_a_job_without_attacked_samples_does_not_divide_by_zero():
    found = dict(rows(attacked=0, forward_passes=0, backward_passes=0, median_l2=None))
    assert found["passes per sample"] == "0.0 forward, 0.0 backward"
    assert found["L2 norm of successful perturbations"] == "none"


QUESTION = "and no sample leaves it early: another batch_size gives another result."


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"coupled": True, "fixed_batches": True}, f"One ball for each batch of 16, {QUESTION}"),
        (
            {"coupled": True, "fixed_batches": True, "clamped": True, "perturbation": {"shared": True}},
            f"One perturbation for each batch of 16, {QUESTION} Perturbed images are clamped to [0, 1].",
        ),
        (
            {"fixed_batches": True},
            "Samples stay in their batch until it is done: the optimizer or the perturbation may couple them.",
        ),
    ],
)
def test_coupling_of_samples_is_one_yellow_line(shown, changes, line):
    assert line in shown(**changes)
    assert f"\x1b[33m{line}\x1b[0m" in shown(color=True, **changes)


def test_a_resumed_run_prints_its_finished_part_and_a_skipped_one_only_that(shown):
    continued = {"batches": 2, "samples": 3000, "passes": 120000}
    line = "continued: 3,000 samples finished before, 120,000 passes saved"
    assert line in shown(continued=continued)
    lines = shown(continued=continued, skipped=True)
    assert line not in lines
    assert "finished before with the same weights and data: nothing was run again" in lines
