"""The table of a sweep from folders made by hand."""

import polars as pl
import pytest

from raiopt.results.folder import RunFolder, read_record
from raiopt.results.tables import load_sweep, save_sweep
from raiopt.results.terminal import print_sweep


def make(root, number, robust, ball="Linf 0.1", weights="w", status="finished", **overrides):
    folder = root / f"job{number}"
    folder.mkdir()
    fields = (
        {"metrics": {"robust_accuracy": robust, "clean_accuracy": 0.9, "undecided": 0}} if robust is not None else {}
    )
    if status == "failed":
        fields["error"] = {"type": "ValueError", "message": "lr=-1 must be [0, inf)"}
    RunFolder(folder).save(
        status=status,
        job_number=number,
        overrides={"data.limit": 8, **overrides},
        ball=ball if status == "finished" else None,
        model={"name": "m"},
        hashes={"weights": weights, "data": "d"},
        **fields,
    )


def test_columns_are_the_options_that_differ_in_the_order_of_the_jobs(tmp_path):
    make(tmp_path, 10, 0.5, **{"optim": "signed", "optim.lr": 0.1, "optim.param_ndim": None})
    make(tmp_path, 2, 0.7, **{"optim": "signed", "optim.lr": 0.5, "optim.param_ndim": -1})
    frame = load_sweep(tmp_path)
    assert frame.columns[:5] == ["job", "status", "optim.lr", "optim.param_ndim", "ball"]
    assert frame["job"].to_list() == ["job2", "job10"]
    assert frame["optim.param_ndim"].to_list() == [-1, None]


def test_without_a_difference_all_overrides_are_columns(tmp_path):
    make(tmp_path, 0, 0.5, **{"optim.lr": 0.1})
    assert {"data.limit", "optim.lr"} <= set(load_sweep(tmp_path).columns)


def test_best_is_marked_among_equal_balls_models_and_data_only(tmp_path):
    make(tmp_path, 0, 0.5)
    make(tmp_path, 1, 0.4)
    make(tmp_path, 2, 0.1, ball="L2 1.5")
    make(tmp_path, 3, 0.0, ball="unbounded")
    make(tmp_path, 4, 0.3, weights="other")
    make(tmp_path, 5, None, status="failed")
    assert load_sweep(tmp_path)["best"].to_list() == [False, True, True, False, True, False]


def test_jobs_with_other_radii_are_not_compared(tmp_path):
    for number, (robust, radii) in enumerate([(0.5, [0.1, 0.2]), (0.3, [0.1, 0.3]), (0.6, [0.1, 0.2])]):
        make(tmp_path, number, robust, ball="Linf of several radii", **{"solver.epsilons": radii})
        record = read_record(tmp_path / f"job{number}")
        RunFolder(tmp_path / f"job{number}").save(**{**record, "metrics": {**record["metrics"], "epsilons": radii}})
    frame = load_sweep(tmp_path)
    assert frame["best"].to_list() == [True, True, False]
    assert frame["solver.epsilons"].to_list() == ["[0.1, 0.2]", "[0.1, 0.3]", "[0.1, 0.2]"]


def test_failed_and_unreadable_jobs_are_rows(tmp_path):
    make(tmp_path, 0, 0.5)
    make(tmp_path, 1, None, status="failed")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "run.json").write_text('{"status"')
    frame = load_sweep(tmp_path)
    assert sorted(frame["status"]) == ["failed", "finished", "unreadable"]
    assert frame.filter(pl.col("status") == "failed")["error"].to_list() == ["lr=-1 must be [0, inf)"]


@pytest.mark.parametrize("values", [(1, "next"), ([1, 2], [3]), (True, None), (0.5, 1)])
def test_values_of_any_kind_survive_writing(tmp_path, values):
    for number, value in enumerate(values):
        make(tmp_path, number, 0.5, target=value)
    frame = load_sweep(tmp_path)
    save_sweep(frame, tmp_path)
    assert pl.read_parquet(tmp_path / "sweep.parquet").equals(frame)
    assert len(pl.read_csv(tmp_path / "sweep.csv")) == 2


def test_an_empty_folder_gives_an_empty_table(tmp_path):
    assert load_sweep(tmp_path).is_empty()


def test_the_printed_table_marks_the_best_and_says_why_others_failed(tmp_path, capsys):
    make(tmp_path, 0, 0.5, **{"optim.lr": 0.1})
    make(tmp_path, 1, 0.25, **{"optim.lr": 0.5})
    make(tmp_path, 2, None, status="failed", **{"optim.lr": -1.0})
    print_sweep(load_sweep(tmp_path), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["*", "0.5"] and "25.0 %" in line for line in lines)
    assert any(line.split()[:2] == ["!", "-1"] for line in lines)
    assert "! job2 failed: lr=-1 must be [0, inf)" in lines


def test_counts_are_whole_numbers_whatever_the_jobs_hold(tmp_path, capsys):
    make(tmp_path, 0, None, status="failed")
    make(tmp_path, 1, 0.5)
    RunFolder(tmp_path / "job1").save(
        status="finished", ball="Linf 0.1", metrics={"robust_accuracy": 0.5, "forward_passes": 20254}
    )
    frame = load_sweep(tmp_path)
    assert (frame.schema["forward_passes"], frame.schema["target_reached"]) == (pl.Int64, pl.Float64)
    print_sweep(frame, tmp_path)
    assert "20,254" in capsys.readouterr().out


@pytest.mark.parametrize(("columns", "terminal"), [(80, True), (100, True), (120, True), (80, False)])
def test_no_cell_of_the_printed_table_is_cut(tmp_path, capsys, monkeypatch, columns, terminal):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda _: terminal))
    for number in range(4):
        options = {"optim": "l2_projected", "optim.param_ndim": number or None, "optim.lr": number / 2}
        make(tmp_path, number, number / 8, ball="L2 1.5 per 1-d row", **options, **{"optim.grad_scale": number})
    print_sweep(load_sweep(tmp_path), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert not any("\u2026" in line for line in lines)
    (best,) = [line.split() for line in lines if "37.5 %" in line or line.lstrip().startswith("*  0")][:1]
    assert any(line.startswith((" * ", "\x1b[1m * ", "* ")) for line in lines)
    assert best
