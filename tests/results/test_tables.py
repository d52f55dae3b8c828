"""The table of a sweep from folders made by hand, and how it is printed."""

import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from raiopt.results.record import SCHEMA
from raiopt.results.records import read_jobs
from raiopt.results.tables import METRICS, jobs_frame, load_sweep, save_sweep
from raiopt.results.terminal import MAX_ROWS, MAX_UNFINISHED, print_sweep
from tests.results.sweeps import list_jobs, make


def ball(norm, epsilon):
    return {"norm": norm, "epsilon": epsilon, "finite": True}


def job(root, number, robust=None, status="finished", overrides=(), **fields):
    given = {"data.limit": 8, **dict(overrides)}
    return make(root, f"job{number}", robust, status, number=number, overrides=given, **fields)


def test_columns_are_the_options_that_differ_in_the_order_of_the_jobs(tmp_path):
    job(tmp_path, 10, 0.5, overrides={"optim": "signed", "optim.lr": 0.1, "optim.param_ndim": None})
    job(tmp_path, 2, 0.7, overrides={"optim": "signed", "optim.lr": 0.5, "optim.param_ndim": -1})
    frame = load_sweep(str(tmp_path))
    assert frame.columns == [
        *["job", "status", "optim.lr", "optim.param_ndim", "ball"],
        *["clean_accuracy", "robust_accuracy", "undecided", "target_reached"],
        *["median_l0", "median_l1", "median_l2", "median_linf"],
        *["forward_passes", "backward_passes", "attack_seconds", "error", "best"],
    ]
    assert frame["job"].to_list() == ["job2", "job10"]
    assert frame["optim.param_ndim"].to_list() == [-1, None]
    assert frame["robust_accuracy"].to_list() == [0.7, 0.5]


def test_without_a_difference_all_overrides_are_columns(tmp_path):
    job(tmp_path, 0, 0.5, overrides={"optim.lr": 0.1})
    assert {"data.limit", "optim.lr"} <= set(load_sweep(tmp_path).columns)


def test_an_option_not_overridden_shows_its_default_choice(tmp_path):
    job(tmp_path, 0, 0.5, choices={"optim": "linf_projected"})
    job(tmp_path, 1, 0.5, overrides={"optim": "signed", "optim.lr": 0.1})
    frame = load_sweep(tmp_path)
    assert frame["optim"].to_list() == ["linf_projected", "signed"]
    assert frame["optim.lr"].to_list() == [None, 0.1]


def test_best_is_marked_among_equal_balls_models_and_data_only(tmp_path):
    job(tmp_path, 0, 0.5)
    job(tmp_path, 1, 0.4)
    job(tmp_path, 2, 0.1, ball=ball("l2", 1.5))
    job(tmp_path, 3, 0.0, ball={})
    job(tmp_path, 4, 0.3, weights="other")
    job(tmp_path, 5, status="failed")
    job(tmp_path, 6, 0.4)
    job(tmp_path, 7, 0.2, data="other")
    job(tmp_path, 8, 0.1, overrides={"perturbation": "patch", "perturbation.size": 3})
    assert load_sweep(tmp_path)["best"].to_list() == [False, True, True, False, True, False, True, True, True]


def test_jobs_with_other_radii_are_not_compared(tmp_path):
    for number, (robust, radii) in enumerate([(0.5, [0.1, 0.2]), (0.3, [0.1, 0.3]), (0.6, [0.1, 0.2])]):
        several = {"robust_accuracy": robust, "epsilons": radii}
        job(tmp_path, number, ball=ball("linf", radii), overrides={"solver.epsilons": radii}, metrics=several)
    frame = load_sweep(tmp_path)
    assert frame["best"].to_list() == [True, True, False]
    assert frame["solver.epsilons"].to_list() == ["[0.1, 0.2]", "[0.1, 0.3]", "[0.1, 0.2]"]


def test_every_job_is_a_row_with_its_status(tmp_path):
    """Missing, running, failed, killed, damaged, of another version, and one that the list does not know."""
    listed = ["f", "e", "d", "c", "b", "a", "z"]
    list_jobs(tmp_path, {name: {"optim.lr": float(number)} for number, name in enumerate(listed)})
    make(tmp_path, "unlisted", 0.5, number=0, overrides={"optim.lr": 7.0})
    make(tmp_path, "a", 0.5, overrides={"optim.lr": 100.0})  # the list counts
    make(tmp_path, "b", status="running")
    make(tmp_path, "c", status="failed")
    make(tmp_path, "d", status="killed", error={"type": "Killed", "message": "\n out of memory \nx"})
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "run.json").write_text('{"status"')
    make(tmp_path, "f", 0.1, schema=SCHEMA + 1)
    (tmp_path / "replaced" / "a-1").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    frame = load_sweep(tmp_path)
    assert frame["job"].to_list() == [*listed, "unlisted"]
    assert frame["optim.lr"].to_list() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    states = ["unreadable", "unreadable", "killed", "failed", "running", "finished", "missing", "finished"]
    assert frame["status"].to_list() == states
    assert frame["robust_accuracy"].to_list() == [None] * 5 + [0.5, None, 0.5]
    version, damaged, *others = frame["error"]
    assert version.endswith(f"run.json has the schema {SCHEMA + 1}, and this version of raiopt reads {SCHEMA}.")
    assert "run.json cannot be read: " in damaged
    assert others == ["out of memory", "lr=-1 must be [0, inf)", None, None, "did not start", None]


def test_metrics_of_an_unfinished_job_are_not_in_the_table(tmp_path):
    job(tmp_path, 0, status="killed", metrics={"robust_accuracy": 0.1})
    job(tmp_path, 1, 0.5)
    frame = load_sweep(tmp_path)
    assert frame["robust_accuracy"].to_list() == [None, 0.5]
    assert frame["best"].to_list() == [False, True]


def test_a_folder_that_is_not_a_sweep_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; give the folder of a sweep"):
        load_sweep(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="contains no jobs; give the folder of a sweep"):
        load_sweep(tmp_path)
    with pytest.raises(ValueError, match="job1 is the folder of one job, not of a sweep"):
        load_sweep(job(tmp_path, 1, 0.5))
    for text in ("{", "[]", "{}", '{"jobs": 3}'):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(ValueError, match=r"sweep\.json is not a list of jobs: .*Move it away"):
            load_sweep(tmp_path)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(), SCALARS, max_size=2)
ONE_KIND = st.sampled_from([SCALARS, VALUES, st.integers(), st.floats(-9, 9) | st.integers(-9, 9), st.booleans()])


@given(values=ONE_KIND.flatmap(lambda kind: st.lists(st.none() | kind, min_size=1, max_size=4)))
def test_values_of_any_type_round_trip(tmp_path_factory, values):
    """Numbers stay numbers, null stays null; mixed types become text that JSON reads back."""
    root = tmp_path_factory.mktemp("sweep")
    list_jobs(root, {f"job{number}": {"target": value} for number, value in enumerate(values)})
    frame = jobs_frame(read_jobs(root), ["target"])
    save_sweep(frame, root)
    assert_frame_equal(pl.read_parquet(root / "sweep.parquet"), frame)
    assert len(pl.read_csv(root / "sweep.csv", infer_schema=False)) == len(values)
    known = [value for value in values if value is not None]
    kinds = set(map(type, known))
    small = all(isinstance(value, float) or abs(value) < 2**63 for value in known if isinstance(value, int | float))
    assert frame["target"].is_null().to_list() == [value is None for value in values]
    cells = frame["target"].drop_nulls().to_list()
    if kinds == {bool} or (kinds == {int} and small):
        assert cells == known
        assert set(map(type, cells)) == kinds
    elif kinds and kinds <= {int, float} and small:
        assert cells == list(map(float, known))
    else:
        parsed = [
            value if isinstance(value, str) else json.loads(cell) for value, cell in zip(known, cells, strict=True)
        ]
        assert parsed == known
        assert all(cell == value for cell, value in zip(cells, known, strict=True) if isinstance(value, str))


def table(capsys, root):
    print_sweep(load_sweep(root), root)
    return capsys.readouterr().out.splitlines()


def test_the_printed_table_marks_the_best_and_says_why_others_failed(tmp_path, capsys):
    job(tmp_path, 0, 0.5, overrides={"optim.lr": 0.1})
    job(tmp_path, 1, 0.25, overrides={"optim.lr": 0.5})
    job(tmp_path, 2, status="failed", overrides={"optim.lr": -1.0})
    job(tmp_path, 3, status="running", overrides={"optim.lr": 2.0})
    lines = table(capsys, tmp_path)
    assert lines[0] == f"4 jobs in {tmp_path}"
    assert any(line.split()[:2] == ["*", "0.5"] and "25.0 %" in line for line in lines)
    assert all(any(line.split()[:2] == ["!", lr] for line in lines) for lr in ("-1", "2"))
    assert "! job2 failed: lr=-1 must be [0, inf)" in lines
    assert "! job3 running: see its run.log" in lines
    assert not any("more" in line for line in lines)


def test_of_many_jobs_the_best_and_some_unfinished_ones_are_printed(tmp_path, capsys):
    """The best, ten that did not finish, and the smallest robust accuracies, in the order of the jobs."""
    count, bad = 100, set(range(0, 100, 4))
    list_jobs(tmp_path, {f"job{number}": {"optim.lr": float(number)} for number in range(count)})
    for number in set(range(count)) - bad:
        given = ball("linf", 0.1) if number > 1 else ball("l2", 1.0)
        job(tmp_path, number, (number * 37 % 100) / 100 + 0.5 * (number == 1), ball=given)
    lines = table(capsys, tmp_path)
    marks = [line.split() for line in lines if "%" in line or line.startswith(" ! ")]
    listed = [cells[1] if cells[0] in "*!" else cells[0] for cells in marks]
    good = sorted(set(range(2, count)) - bad, key=lambda number: number * 37 % 100)
    expected = {1, *sorted(bad)[:MAX_UNFINISHED], *good[: MAX_ROWS - MAX_UNFINISHED - 1]}
    assert listed == [str(number) for number in sorted(expected)]
    assert [cells[1] for cells in marks if cells[0] == "*"] == ["1", str(good[0])]
    assert any(line.startswith("60 more rows in sweep.csv") for line in lines)
    assert sum(line == f"! job{number} missing: did not start" for number in bad for line in lines) == MAX_UNFINISHED
    assert f"! and {len(bad) - MAX_UNFINISHED} more without a result" in lines


def test_counts_are_integers_whatever_the_jobs_contain(tmp_path, capsys):
    job(tmp_path, 0, status="failed")
    job(tmp_path, 1, metrics={"robust_accuracy": 1, "forward_passes": 20254})
    assert {name: load_sweep(tmp_path).schema[name] for name in METRICS} == METRICS
    assert any("20,254" in line for line in table(capsys, tmp_path))


@pytest.mark.parametrize(("columns", "terminal"), [(80, True), (100, True), (120, True), (80, False)])
def test_no_cell_of_the_printed_table_is_cut(tmp_path, capsys, monkeypatch, columns, terminal):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda _: terminal))
    for number in range(4):
        options = {"optim": "l2_projected", "optim.param_ndim": number or None, "optim.lr": number / 2}
        options["optim.grad_scale"] = number
        job(tmp_path, number, number / 8, ball={**ball("l2", 1.5), "scope": "per 1-d row"}, overrides=options)
    lines = table(capsys, tmp_path)
    assert not any("\u2026" in line for line in lines)
    (best,) = [line.split() for line in lines if "37.5 %" in line or line.lstrip().startswith("*  0")][:1]
    assert any(line.startswith((" * ", "\x1b[1m * ", "* ")) for line in lines)
    assert best


def test_an_option_that_was_not_given_has_its_default(tmp_path):
    default = {"schema": 2, "status": "finished", "overrides": {"optim.lr": 1.0}, "options": {"optim.param_ndim": -1}}
    for name, changes in {"a": {}, "b": {"overrides": {"optim.param_ndim": None}}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({**default, **changes}))
    assert load_sweep(tmp_path)["optim.param_ndim"].to_list() == [-1, None]
