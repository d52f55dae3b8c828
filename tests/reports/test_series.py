"""The tables behind figures and pages, from folders made by hand, against counting in plain Python."""

import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raiopt.reports import series
from raiopt.reports.runs import load_run, load_runs
from raiopt.reports.statistics import curve_band, wilson
from raiopt.results.metrics import metrics
from tests.results.sweeps import make


def figures(robust=0.5, clean=1.0, samples=8, **more):
    passes = {"forward_passes": 30, "backward_passes": 20, "attacked": 5}
    return {"samples": samples, "clean_accuracy": clean, "robust_accuracy": robust, **passes, **more}


def job(root, number, robust=0.5, epsilon=0.1, norm="linf", **fields):
    """A finished job of one radius; `fields` go into its record."""
    overrides = {"optim.epsilon": epsilon, **fields.pop("overrides", {})}
    ball = {"norm": norm, "epsilon": epsilon, "finite": epsilon is not None, "scope": fields.pop("scope", "")}
    content = {"metrics": figures(robust), "ball": ball, **fields, "overrides": overrides}
    return make(root, f"job{number}", number=number, **content)


def rows_of(frame, *columns):
    return frame.select(columns).rows()


def table(rows):
    """A table of samples from tuples: label, clean prediction, adversarial prediction, verified, undecided, epsilon."""
    names = ["label", "clean_prediction", "adversarial_prediction", "verified", "undecided", "epsilon"]
    kinds = [pl.Int64, pl.Int64, pl.Int64, pl.Boolean, pl.Boolean, pl.Float64]
    frame = pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")
    lost = pl.col("undecided").fill_null(False) | pl.col("clean_prediction").is_null()
    return frame.with_columns(stopped=pl.when(lost).then(pl.lit("not_finite")).otherwise(pl.lit("steps")))


def with_samples(root, rows, number=0, **fields):
    folder = job(root, number, **fields)
    table(rows).write_parquet(folder / "samples.parquet")
    return load_run(folder)


def test_runs_that_differ_in_the_radius_alone_are_a_curve_from_clean_accuracy_on(tmp_path):
    for number, (epsilon, robust, lr) in enumerate([(0.2, 0.25, 1), (0.1, 0.5, 1), (0.1, 0.375, 2)]):
        job(tmp_path, number, robust, epsilon, overrides={"optim.lr": lr})
    frame = series.epsilon_curves(load_runs([tmp_path]))
    expected = [("lr=1", 0.0, 1.0), ("lr=1", 0.1, 0.5), ("lr=1", 0.2, 0.25), ("lr=2", 0.0, 1.0), ("lr=2", 0.1, 0.375)]
    assert rows_of(frame, "label", "epsilon", "robust") == expected
    assert rows_of(frame[1], "low", "high", "samples") == [(*wilson(4, 8), 8)]
    assert frame["run"][2] == str(tmp_path / "job0")
    assert set(frame["peers"]) == {"m on data, Linf"}


def test_an_unbounded_search_gives_no_curve_point_but_its_radii_do(tmp_path):
    job(tmp_path, 0)
    job(tmp_path, 1, epsilon=None)
    frame = series.epsilon_curves(load_runs([tmp_path]))
    assert set(frame["run"]) == {str(tmp_path / "job0")}


def test_other_norms_or_ball_scopes_never_share_a_curve(tmp_path):
    job(tmp_path, 0)
    job(tmp_path, 1, norm="l2")
    job(tmp_path, 2, norm="l2", scope="per 1-d row")
    make(tmp_path, "job3", metrics=figures(), ball={})
    frame = series.epsilon_curves(load_runs([tmp_path]))
    assert rows_of(frame.filter(pl.col("epsilon") > 0), "norm", "scope", "epsilon") == [
        ("linf", None, 0.1),
        ("l2", None, 0.1),
        ("l2", "per 1-d row", 0.1),
    ]
    assert frame["label"].n_unique() == 3


def test_of_two_runs_with_equal_options_the_stronger_counts(tmp_path):
    for number, robust in enumerate([0.5, 0.25, 0.375]):
        job(tmp_path, number, robust, overrides={"device": f"cuda:{number}"})
    assert rows_of(series.epsilon_curves(load_runs([tmp_path])), "epsilon", "robust") == [(0.0, 1.0), (0.1, 0.25)]


RADII = [0.1, 0.2, 0.4]
CLASSES = st.integers(0, 3)
FATES = st.none() | st.sampled_from(RADII)
ROWS = st.lists(st.tuples(CLASSES, st.none() | CLASSES, CLASSES, FATES, st.booleans()), min_size=1, max_size=30)


def samples_from(drawn):
    """Rows of `table`: misclassified samples are not attacked; successes have a radius and are decided."""
    rows = []
    for label, clean, adversarial, radius, lost in drawn:
        attacked, broken = clean == label, radius is not None
        outcome = (adversarial, broken, lost and not broken, radius) if attacked else (None, None, None, None)
        rows.append((label, clean, *outcome))
    return rows


def is_robust(row, epsilon):
    label, clean, _, verified, undecided, radius = row
    return clean == label and not undecided and not (verified and radius <= epsilon)


@given(drawn=ROWS)
def test_a_run_of_several_radii_is_a_curve_with_a_band_from_its_samples(tmp_path_factory, drawn):
    root, rows = tmp_path_factory.mktemp("runs"), samples_from(drawn)
    expected = metrics(_all_columns(table(rows)).lazy(), RADII)
    assert expected.robust_accuracies is not None
    run = with_samples(root, rows, epsilon=RADII[::-1], metrics=figures(epsilons=RADII[::-1]))
    frame = series.epsilon_curves([run])
    matrix = np.array([[row[0] == row[1], *(is_robust(row, e) for e in RADII)] for row in rows])
    assert frame["epsilon"].to_list() == [0.0, *RADII]
    assert frame["robust"].to_numpy() == pytest.approx(matrix.mean(0))
    assert frame["robust"].to_list() == pytest.approx([expected.clean_accuracy, *expected.robust_accuracies])
    assert np.allclose(frame.select("low", "high").to_numpy().T, curve_band(matrix))
    assert set(frame["samples"]) == {len(rows)}


def _all_columns(frame):
    """The table with all other columns that `metrics` needs."""
    counts = ["forward_passes", "backward_passes", "steps", "zero_gradients", "target", "l0", "l1", "l2", "linf"]
    flags = ["claimed", "verified_8bit", "zero_at_start"]
    more = [pl.lit(None, pl.Int64).alias(name) for name in counts] + [pl.lit(False).alias(name) for name in flags]
    return frame.with_columns(more)


def test_bands_of_very_many_samples_are_wilsons(tmp_path, monkeypatch):
    monkeypatch.setattr(series, "MAX_RESAMPLED_SAMPLES", 3)
    rows = [(0, 0, 1, True, False, 0.1), (0, 0, 0, False, False, None), (0, 1, None, None, None, None)] * 2
    run = with_samples(tmp_path, rows, epsilon=[0.1], metrics=figures(epsilons=[0.1]))
    frame = series.epsilon_curves([run])
    assert rows_of(frame, "robust", "low", "high") == [(4 / 6, *wilson(4, 6)), (2 / 6, *wilson(2, 6))]


@given(drawn=ROWS)
def test_results_by_class_agree_with_counting(tmp_path_factory, drawn):
    rows = samples_from(drawn)
    run = with_samples(tmp_path_factory.mktemp("runs"), rows)
    (run.folder / "classes.json").write_text(json.dumps(["cat", "dog", "owl"]))
    expected = []
    for label in sorted({row[0] for row in rows}):
        of_class = [row for row in rows if row[0] == label]
        robust, count = sum(is_robust(row, 1) for row in of_class), len(of_class)
        name = ["cat", "dog", "owl", "3"][label]
        clean = sum(row[0] == row[1] for row in of_class) / count
        expected.append((label, name, count, clean, robust / count, *wilson(robust, count)))
    assert series.class_results(run).rows() == [pytest.approx(row) for row in expected]
    columns = ["class", "name", "samples", "clean_accuracy", "robust_accuracy", "low", "high"]
    assert series.class_results(run).columns == columns


@given(drawn=ROWS)
def test_confusion_counts_every_sample_once(tmp_path_factory, drawn):
    rows = samples_from(drawn)
    run = with_samples(tmp_path_factory.mktemp("runs"), rows)
    clean = Counter((row[0], row[1]) for row in rows)
    adversarial = Counter((row[0], row[2] if row[3] else row[1]) for row in rows)
    for which, expected in (("clean", clean), ("adversarial", adversarial)):
        frame = series.confusion(run, which)
        assert {(label, prediction): count for label, prediction, count in frame.iter_rows()} == expected
        assert len(frame) == len(expected)
    with pytest.raises(ValueError, match="which='broken' must be one of 'clean', 'adversarial'"):
        series.confusion(run, "broken")


def trace(steps, **changes):
    of_loss = {f"loss_{name}": np.arange(steps) + float(place) for place, name in enumerate(["q25", "median", "q75"])}
    columns = {"passes": 2.0 * np.arange(steps), **of_loss, "fooled_so_far": np.linspace(0, 1, steps), **changes}
    return pl.DataFrame({"step": np.arange(steps), **{name: v for name, v in columns.items() if v is not None}})


def test_steps_are_thinned_evenly_and_the_last_is_kept(tmp_path):
    job(tmp_path, 0)
    job(tmp_path, 1, overrides={"optim.lr": 2})
    trace(1001).write_parquet(tmp_path / "job0" / "trace.parquet")
    trace(3, passes=None, loss_q75=[1.0, 2.0, np.nan]).write_parquet(tmp_path / "job1" / "trace.parquet")
    frame = series.step_curves(load_runs([tmp_path]))
    long, short = frame.partition_by("run", maintain_order=True)
    steps = long["step"].to_list()
    assert (len(steps), steps[0], steps[-1]) == (series.MAX_DRAWN_STEPS, 0, 1000)
    assert set(np.diff(steps)) == {5, 6}
    assert rows_of(long[-1], "passes", "loss", "loss_low", "loss_high") == [(2000.0, 1001.0, 1000.0, 1002.0)]
    assert short["label"].to_list() == ["lr=2"] * 3
    assert short["peers"][0] == "m on data, Linf 0.1"
    assert short["passes"].to_list() == [None] * 3
    assert short["loss_high"].to_list() == [1.0, 2.0, None]


def test_points_of_jobs(tmp_path):
    job(tmp_path, 0, 0.25)
    job(tmp_path, 1, 0.5, norm="l2", epsilon=[0.5, 1.5], metrics=figures(0.5, epsilons=[0.5, 1.5]))
    frame = series.job_points(load_runs([tmp_path]))
    assert rows_of(frame, "norm", "epsilon", "robust", "clean", "samples", "passes") == [
        ("linf", 0.1, 0.25, 1.0, 8, 10.0),
        ("l2", 1.5, 0.5, 1.0, 8, 10.0),
    ]
    assert rows_of(frame, "low", "high") == [wilson(2, 8), wilson(4, 8)]


def test_unreadable_jobs_are_left_out_and_reported(tmp_path):
    """Failed, without a table, damaged at its end, damaged inside, and one that is whole."""
    several = {"epsilon": [0.1], "metrics": figures(epsilons=[0.1])}
    make(tmp_path, "failed", status="failed")
    job(tmp_path, 0, overrides={"optim.lr": 0}, **several)
    rows = [(0, 0, 0, False, False, None)] * 50
    for number in (1, 2, 3):
        with_samples(tmp_path, rows, number, overrides={"optim.lr": number}, **several)
    cut, inside = (tmp_path / f"job{number}" / "samples.parquet" for number in (1, 2))
    cut.write_bytes(cut.read_bytes()[:-9])
    whole = bytearray(inside.read_bytes())
    whole[4:60] = bytes(56)
    inside.write_bytes(whole)
    problems = {}
    frame = series.epsilon_curves(load_runs([tmp_path]), problems)
    assert set(frame["run"]) == {str(tmp_path / "job3")}
    assert {name.rpartition("/")[2] for name in problems} == {"failed", "job0", "job1", "job2"}
    assert problems[str(tmp_path / "failed")] == "failed: lr=-1 must be [0, inf)"
    assert problems[str(tmp_path / "job0")] == f"{tmp_path / 'job0' / 'samples.parquet'} does not exist."
    assert problems[str(tmp_path / "job1")].startswith(f"{cut} cannot be read: ")
    assert problems[str(tmp_path / "job2")].startswith(f"{inside} cannot be read: ")
    with pytest.raises(ValueError, match=r"job2/samples\.parquet cannot be read"):
        series.class_results(load_run(tmp_path / "job2"))
    assert series.step_curves(load_runs([tmp_path]), problems).is_empty()
    assert "trace.parquet does not exist" in problems[str(tmp_path / "job3")]
    assert series.epsilon_curves([]).columns == frame.columns
    assert series.job_points([]).is_empty()
