"""A sweep as arrays with named dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import yaml

from raiopt.results.files import read_file
from raiopt.results.options import flat
from raiopt.results.records import is_volatile, read_jobs
from raiopt.results.shards import merged_shards
from raiopt.results.tables import METRICS, given_options, jobs_frame, options_of

if TYPE_CHECKING:
    from xarray import Dataset

MAX_CELLS = 10**7
"""The largest number of cells of a grid; beyond it, values were probably drawn at random."""


def to_xarray(sweep: pl.DataFrame | Path | str) -> Dataset:
    """Returns a sweep as an xarray Dataset: one variable per metric, with the varying options as dimensions.

    Each varying option is a dimension named by its full name. Its coordinates are its values: numbers in ascending
    order, others in the order of the jobs; null is None, or "null" among strings. Constant options are attributes. A
    metric is NaN where there is no job, or a job without results. `status` is the table's status, or missing where
    there is no job; `job` is the name of the folder.

    Args:
        sweep: The folder of a sweep, or its table, which may be filtered.

    Raises:
        ImportError: If xarray is not installed.
        ValueError: If two jobs belong to one cell, the jobs are not a grid, or the frame is not that of `load_sweep`.

    >>> import polars
    >>> rows = [("a", 0.1, None, 0.75), ("b", 0.5, None, 0.5), ("c", 0.1, 1, 0.25)]
    >>> frame = polars.DataFrame(
    ...     [(job, "finished", lr, ndim, "Linf 0.1", robust) for job, lr, ndim, robust in rows],
    ...     schema=["job", "status", "optim.lr", "optim.param_ndim", "ball", "robust_accuracy"], orient="row")
    >>> grid = to_xarray(frame)
    >>> grid["robust_accuracy"].sel({"optim.param_ndim": None}).values.tolist()
    [0.75, 0.5]
    >>> grid["robust_accuracy"].sel({"optim.param_ndim": 1}).values.tolist()
    [0.25, nan]
    """
    try:
        import xarray
    except ImportError:
        raise ImportError("to_xarray needs xarray: pip install raiopt[xarray].") from None
    frame, folder = (sweep, None) if isinstance(sweep, pl.DataFrame) else (_all_options(sweep), Path(sweep))
    if not {"job", "status", "ball"} <= set(frame.columns) or frame.is_empty():
        raise ValueError("sweep must be a table of load_sweep with rows and the columns job, status and ball.")
    options = options_of(frame)
    if options:  # a job with a damaged record may have no options, and then belongs to no cell
        frame = frame.filter((pl.col("status") != "unreadable") | ~pl.all_horizontal(pl.col(options).is_null()))
    axes = {name: _labels(frame[name]) for name in options if not is_volatile(name) and frame[name].n_unique() > 1}
    shape = tuple(map(len, axes.values()))
    cells = _cells(frame, axes, shape, folder)

    def filled(values: Any, empty: Any, dtype: type) -> tuple[list[str], np.ndarray]:
        array = np.full(shape, empty, dtype)
        array.reshape(-1)[cells] = values
        return list(axes), array

    metrics = [name for name in METRICS if name in frame.columns]
    variables = {name: filled(frame[name].cast(pl.Float64).to_numpy(), np.nan, float) for name in metrics}
    for name, empty in (("status", "missing"), ("job", "")):
        dims, array = filled(frame[name].to_list(), empty, object)
        variables[name] = dims, array.astype(str)
    coordinates = {name: _coordinate(labels) for name, labels in axes.items()}
    fixed = {name: frame[name][0] for name in options if name not in axes and frame[name].n_unique() == 1}
    return xarray.Dataset(variables, coordinates, fixed)


def _all_options(folder: Path | str) -> pl.DataFrame:
    jobs = merged_shards(folder, read_jobs(folder))
    return jobs_frame(jobs, given_options(jobs))


def _labels(column: pl.Series) -> list[Any]:
    values = column.unique(maintain_order=True)
    return (values.sort() if values.dtype.is_numeric() and not values.null_count() else values).to_list()


def _coordinate(labels: Sequence[Any]) -> np.ndarray:
    if None not in labels:
        return np.array(labels)
    if any(isinstance(label, str) for label in labels):  # pandas turns None among texts into NaN
        return np.array(["null" if label is None else label for label in labels])
    mixed = np.empty(len(labels), dtype=object)
    mixed[:] = labels
    return mixed


def _cells(
    frame: pl.DataFrame, axes: dict[str, list[Any]], shape: tuple[int, ...], folder: Path | None
) -> np.ndarray | list[int]:
    """Returns the index of each row's cell in the flattened grid."""
    size = np.prod([1.0, *shape])
    if size > MAX_CELLS:
        raise ValueError(
            f"{len(frame)} jobs would fill {len(frame) / size:.1g} of a grid over {', '.join(axes)}: they are not a "
            "grid. Use the table of load_sweep."
        )
    numbers = {name: {label: number for number, label in enumerate(labels)} for name, labels in axes.items()}
    places = [[numbers[name][value] for value in frame[name]] for name in axes]
    cells = np.ravel_multi_index(places, shape) if axes else np.zeros(len(frame), dtype=int)
    if len(set(cells.tolist())) < len(cells):
        order = np.argsort(cells, kind="stable")
        again = int(np.flatnonzero(np.diff(cells[order]) == 0)[0])
        one, other = (frame.row(int(row), named=True) for row in order[again : again + 2])
        raise ValueError(_conflict(one, other, list(axes), folder))
    return cells


def _conflict(one: dict[str, Any], other: dict[str, Any], axes: list[str], folder: Path | None) -> str:
    """Returns the error message for two jobs in the same cell."""
    cell = ", ".join(f"{name}={'null' if one[name] is None else one[name]}" for name in axes) or "the only one"
    names = [] if folder is None else _apart(folder / one["job"], folder / other["job"])
    what = ", ".join(names) or "an option that is no column of the table"
    return (
        f"Jobs {one['job']} and {other['job']} belong to one cell ({cell}): they differ in {what}, which is not swept. "
        "Filter the table of load_sweep so that one of them remains, and pass the table."
    )


def _apart(one: Path, other: Path) -> list[str]:
    """Returns the options in which the configs of two jobs differ; empty if the configs cannot be read."""
    try:
        first, second = (flat(yaml.safe_load(read_file(job / ".hydra" / "config.yaml"))) for job in (one, other))
    except (OSError, yaml.YAMLError):
        return []
    return [name for name in {**first, **second} if first.get(name, ...) != second.get(name, ...)]
