"""A sweep as a grid: every metric at the option values of its job."""

import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raiopt.results.arrays import to_xarray
from raiopt.results.tables import METRICS, load_sweep
from tests.results.sweeps import list_jobs, make

LR, NDIM = "optim.lr", "optim.param_ndim"


def sweep(root, rows, **fields):
    """Writes a job for each of the rows (robust accuracy or None, options); None fails."""
    for number, (robust, options) in enumerate(rows):
        status = "failed" if robust is None else "finished"
        make(root, f"job{number}", robust, status, number=number, overrides={"data.limit": 8, **options}, **fields)
    return root


KINDS = st.sampled_from(
    [st.integers(-3, 3), st.booleans(), st.sampled_from(["next", "a b"]), st.integers(0, 1) | st.just("x")]
)
LABELS = KINDS.flatmap(lambda kind: st.lists(st.none() | kind, unique=True, max_size=4))


@given(data=st.data(), lrs=st.lists(st.floats(0, 1), unique=True, max_size=3), labels=LABELS)
def test_every_job_is_at_its_option_values_in_any_order_and_with_gaps(tmp_path_factory, data, lrs, labels):
    """Against a dictionary of the jobs; a random part of the grid was run, in random order."""
    cells = [(lr, label) for lr in lrs or [0.5] for label in labels or [1]]
    kept = data.draw(st.lists(st.sampled_from(cells), unique=True, min_size=1))
    asked = {cell: data.draw(st.none() | st.floats(0, 1)) for cell in kept}
    rows = [(robust, {LR: lr, NDIM: label}) for (lr, label), robust in asked.items()]
    grid = to_xarray(sweep(tmp_path_factory.mktemp("sweep"), rows))
    varying = {name for name, position in ((LR, 0), (NDIM, 1)) if len({cell[position] for cell in kept}) > 1}
    assert set(grid.dims) == varying == set(grid.coords)
    assert grid.attrs["data.limit"] == 8
    assert varying | grid.attrs.keys() == {LR, NDIM, "data.limit"}
    filled = 0
    for number, ((lr, label), robust) in enumerate(asked.items()):
        at = {LR: lr, NDIM: label}
        if NDIM not in varying:
            assert grid.attrs[NDIM] == label
        elif any(isinstance(other, str) for _, other in kept):
            at[NDIM] = "null" if label is None else str(label)
        cell = grid.sel({name: value for name, value in at.items() if name in varying})
        assert cell["job"] == f"job{number}"
        assert cell["status"] == ("failed" if robust is None else "finished")
        np.testing.assert_equal(float(cell["robust_accuracy"]), np.nan if robust is None else robust)
        filled += robust is not None
    assert int(grid["robust_accuracy"].notnull().sum()) == int((grid["status"] == "finished").sum()) == filled
    assert int((grid["status"] == "missing").sum()) == grid["status"].size - len(kept)
    assert list(grid.data_vars) == [*METRICS, "status", "job"]
    if LR in varying:
        assert grid[LR].values.tolist() == sorted({lr for lr, _ in kept})


def test_three_dimensions_and_missing_jobs(tmp_path):
    options = {
        f"{optim}{lr}{seed}": {"optim": optim, LR: lr, "solver.steps": steps}
        for optim in ("signed", "l2_normed")
        for lr in (0.5, 0.1)
        for seed, steps in enumerate((5, 10, 20))
    }
    list_jobs(tmp_path, options)
    for number, (name, given_) in enumerate(list(options.items())[:-1]):
        make(tmp_path, name, number / 16, overrides=given_)
    grid = to_xarray(str(tmp_path))
    assert dict(grid.sizes) == {"optim": 2, LR: 2, "solver.steps": 3}
    assert grid["optim"].values.tolist() == ["signed", "l2_normed"]
    assert grid[LR].values.tolist() == [0.1, 0.5]
    expected = np.array([*range(11), np.nan]).reshape(2, 2, 3)[:, ::-1] / 16
    np.testing.assert_array_equal(grid["robust_accuracy"].values, expected)
    assert grid["status"].values[1, 0].tolist() == ["finished", "finished", "missing"]
    assert grid["undecided"].dtype == float


def test_a_part_of_the_table_is_a_smaller_grid(tmp_path):
    rows = [(0.5, {LR: 0.1, NDIM: 1}), (0.25, {LR: 0.2, NDIM: 1}), (0.75, {LR: 0.2, NDIM: 2})]
    grid = to_xarray(load_sweep(sweep(tmp_path, rows)).filter(pl.col(NDIM) == 1))
    assert grid["robust_accuracy"].dims == (LR,)
    assert grid["robust_accuracy"].values.tolist() == [0.5, 0.25]
    assert grid.attrs == {NDIM: 1}


def test_machine_fields_are_not_dimensions_and_damaged_records_have_no_cell(tmp_path):
    sweep(tmp_path, [(0.5, {LR: 0.1, "device": "cpu"}), (0.25, {LR: 0.2, "device": "cuda"})])
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "run.json").write_text("{")
    grid = to_xarray(tmp_path)
    assert grid["robust_accuracy"].dims == (LR,)
    assert grid[LR].values.tolist() == [0.1, 0.2]


def test_one_job_is_a_grid_without_dimensions(tmp_path):
    grid = to_xarray(sweep(tmp_path, [(0.5, {LR: None})]))
    assert (grid["robust_accuracy"].item(), dict(grid.sizes), grid.attrs) == (0.5, {}, {"data.limit": 8, LR: None})


def test_two_jobs_in_one_cell_are_an_error_that_names_the_differing_option(tmp_path):
    sweep(tmp_path, [(0.5, {LR: 0.1, NDIM: None}), (0.25, {LR: 0.2}), (0.75, {LR: 0.1, NDIM: None})])
    message = r"Jobs job0 and job2 belong to one cell \(optim\.lr=0\.1\): they differ in %s, which is not swept"
    for source in (tmp_path, load_sweep(tmp_path)):
        with pytest.raises(ValueError, match=message % "an option that is no column of the table"):
            to_xarray(source)
    for job, steps in (("job0", 20), ("job2", 40)):
        (tmp_path / job / ".hydra").mkdir()
        (tmp_path / job / ".hydra" / "config.yaml").write_text(f"seed: 0\nsolver:\n  stop: never\n  steps: {steps}\n")
    with pytest.raises(ValueError, match=message % r"solver\.steps" + ".*Filter the table"):
        to_xarray(tmp_path)


def test_sweeps_that_are_not_a_grid_are_refused(tmp_path):
    rows = [("job", "finished", *(index + number for number in range(3)), "Linf 0.1") for index in range(300)]
    frame = pl.DataFrame(rows, schema=["job", "status", "a", "b", "c", "ball"], orient="row")
    with pytest.raises(ValueError, match=r"300 jobs would fill 1e-05 of a grid over a, b, c: they are not a grid"):
        to_xarray(frame)
    for wrong in (pl.DataFrame(), frame.drop("ball"), frame.head(0)):
        with pytest.raises(ValueError, match="sweep must be a table of load_sweep"):
            to_xarray(wrong)
    with pytest.raises(ValueError, match="contains no jobs"):
        to_xarray(tmp_path)


def test_without_xarray_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"^to_xarray needs xarray: pip install raiopt\[xarray\]\.$"):
        to_xarray(tmp_path)
