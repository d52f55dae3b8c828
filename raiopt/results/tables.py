"""The table of a sweep, read from its jobs' folders, and the jobs in it that stand out."""

import json
from pathlib import Path
from typing import Any

import polars as pl

from raiopt.results.folder import read_record

METRICS = {
    "clean_accuracy": pl.Float64,
    "robust_accuracy": pl.Float64,
    "undecided": pl.Int64,
    "target_reached": pl.Float64,
    "median_l0": pl.Float64,
    "median_l1": pl.Float64,
    "median_l2": pl.Float64,
    "median_linf": pl.Float64,
    "forward_passes": pl.Int64,
    "backward_passes": pl.Int64,
    "attack_seconds": pl.Float64,
}


def load_sweep(folder: Path) -> pl.DataFrame:
    """Returns one row for each job folder below `folder`, in the order in which the jobs were numbered.

    Columns: `job` (its folder's name), `status`, the options that differ between jobs, `ball`,
    the metrics (null where a job has none), `best` and `error`. A job is best if no other with the same ball, model
    and data leaves a smaller robust accuracy.
    """
    records = [(path.parent, read_record(path.parent)) for path in sorted(folder.glob("*/run.json"))]
    records.sort(key=lambda pair: (pair[1].get("job_number") or 0, pair[0].name))
    swept = _swept([record for _, record in records])
    rows = [_row(path, record, swept) for path, record in records]
    if not rows:
        return pl.DataFrame()
    frame = pl.DataFrame({name: _column([row[name] for row in rows]) for name in rows[0]})
    frame = frame.cast({**METRICS, "error": pl.String, "ball": pl.String})
    return _mark_best(frame, [record for _, record in records])


def _swept(records: list[dict[str, Any]]) -> list[str]:
    """Returns the options that the jobs were given and that differ between them; all of them if none does."""
    given = [record["overrides"] for record in records if "overrides" in record]
    keys = list(dict.fromkeys(key for overrides in given for key in overrides))
    return [key for key in keys if len({json.dumps(overrides.get(key)) for overrides in given}) > 1] or keys


def _row(path: Path, record: dict[str, Any], swept: list[str]) -> dict[str, Any]:
    metrics = record.get("metrics", {})
    return {
        "job": path.name,
        "status": record.get("status", "unreadable"),
        **{key: record.get("overrides", {}).get(key) for key in swept},
        "ball": record.get("ball"),
        **{name: metrics.get(name) for name in METRICS},
        "error": record.get("error", {}).get("message"),
    }


def _column(values: list[Any]) -> list[Any]:
    """Returns the values as one type: numbers, booleans or texts; mixtures and nested values become JSON texts."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or (len(kinds) <= 1 and not kinds & {list, dict}):
        return values
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def _mark_best(frame: pl.DataFrame, records: list[dict[str, Any]]) -> pl.DataFrame:
    """Adds the column `best`; jobs without a ball are compared with none."""
    peers = [_question(record) for record in records]
    robust = pl.col("robust_accuracy").cast(pl.Float64)
    return (
        frame.with_columns(_peers=pl.Series(peers))
        .with_columns(best=(robust == robust.min().over("_peers")) & (pl.col("ball") != "unbounded"))
        .with_columns(pl.col("best").fill_null(False))
        .drop("_peers")
    )


def _question(record: dict[str, Any]) -> str:
    """Returns what must be equal for two robust accuracies to be comparable."""
    own = {key: value for key, value in record.get("overrides", {}).items() if key.startswith("perturbation")}
    radii = record.get("metrics", {}).get("epsilons")
    return json.dumps([record.get(part) for part in ("ball", "model", "hashes", "perturbation")] + [own, radii])


def save_sweep(frame: pl.DataFrame, folder: Path) -> None:
    """Writes sweep.parquet and sweep.csv into the folder of the sweep."""
    frame.write_parquet(folder / "sweep.parquet")
    frame.write_csv(folder / "sweep.csv")
