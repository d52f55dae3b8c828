"""Compares two runs with the same options: whether the later one reproduces the earlier one, and how they differ."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from raiopt.reports.runs import Run, load_run
from raiopt.results.metrics import BROKEN, DECIDED, RIGHT
from raiopt.results.perturbation_store import PerturbationStore
from raiopt.results.record import Record
from raiopt.results.records import without_volatile
from raiopt.results.words import joined, plural

VERDICT_METRICS = ("samples", "clean_accuracy", "robust_accuracy", "robust_accuracies", "undecided")
"""The metrics that are determined by the samples' verdicts."""
MAX_LISTED = 10
"""The largest number of samples listed by id."""
Pair = tuple[Any, Any]


class Flip(NamedTuple):
    """A sample with different verdicts in two runs: robust, fooled, undecided, misclassified or missing."""

    id: int
    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Stored:
    """The comparison of the stored perturbations in two folders.

    Args:
        count: The number of samples with a perturbation in both folders.
        equal: The number of these samples whose perturbations are bitwise equal.
        unmatched: The number of samples with a perturbation in only one folder.
        largest: The largest difference of two entries; None if it is not known.
    """

    count: int
    equal: int
    unmatched: int
    largest: float | None


@dataclass(frozen=True)
class Comparison:
    """The differences between a run and its repetition, each with the values before and after.

    Args:
        before, after: The folders.
        question: Differing options (or job keys), and hashes of weights and data.
        conditions: Differing versions, device, threads, batch size and inference settings.
        figures: Differing metrics of run.json.
        samples: The number of samples in either table.
        flips: The samples whose verdicts differ.
        columns: For each column in both tables, the number of samples in which it differs.
        changed: The ids of the samples in which any column differs.
        stored: The comparison of the perturbations.
    """

    before: Path
    after: Path
    question: dict[str, Pair]
    conditions: dict[str, Pair]
    figures: dict[str, Pair]
    samples: int
    flips: list[Flip]
    columns: dict[str, int]
    changed: list[int]
    stored: Stored

    @property
    def repeated(self) -> str | None:
        """How the later run reproduces the earlier one: "bitwise", or "verdicts" if conditions differ; else None."""
        if self.question or self.flips or any(name in self.figures for name in VERDICT_METRICS):
            return None
        if not self.changed and not self.figures and self.stored.equal == self.stored.count + self.stored.unmatched:
            return "bitwise"
        return "verdicts" if self.conditions else None

    @property
    def conclusion(self) -> str:
        """A sentence that states whether the run was repeated, and if not, why."""
        if self.repeated == "bitwise":
            return "Repeated bit for bit."
        if self.repeated == "verdicts":
            return (
                f"Repeated: all verdicts are the same. Not bit for bit, because of different {joined(self.conditions)}."
            )
        if self.question:
            return f"Not repeated: the runs have different {joined(self.question)}."
        if self.flips:
            flips = [f"{flip.id} ({flip.name}): {flip.before}, now {flip.after}" for flip in self.flips[:MAX_LISTED]]
            more = [f"and {len(self.flips) - MAX_LISTED} more"] if len(self.flips) > MAX_LISTED else []
            count = plural(len(self.flips), "sample has", "samples have")
            return f"Not repeated: {count} another verdict: {'; '.join([*flips, *more])}."
        if any(name in self.figures for name in VERDICT_METRICS):
            return f"Not repeated: the verdicts are the same, but run.json has another {joined(self.figures)}."
        return "Not repeated: the verdicts are the same, but not all bits. No recorded difference explains it."

    def rows(self) -> list[tuple[str, str]]:
        """Returns what was compared and the results, as rows of a table."""
        stored = self.stored
        off = "" if stored.largest is None else f", largest difference {stored.largest:.2g}"
        alone = f", {stored.unmatched} in only one run" if stored.unmatched else ""
        some = f"{stored.equal} of {stored.count} the same bit for bit{off}{alone}"
        return [
            *_pairs("question", self.question),
            *_pairs("conditions", self.conditions),
            ("verdicts", f"{self.samples - len(self.flips):,} of {self.samples:,} the same"),
            ("perturbations", some if stored.count or stored.unmatched else "none stored"),
            ("samples.parquet", ", ".join(f"{name} of {n}" for name, n in self.columns.items()) or "the same"),
            *_pairs("figures", self.figures),
        ]

    def as_json(self) -> dict[str, Any]:
        """Returns the comparison as JSON data."""
        content = asdict(self) | {"flips": [flip._asdict() for flip in self.flips]}
        text = json.dumps({"repeated": self.repeated, "conclusion": self.conclusion, **content}, default=str)
        return json.loads(text, parse_constant=str)  # the metrics of an untrusted run may be NaN


def compare(before: Path | str, after: Path | str) -> Comparison:
    """Returns how two runs with the same options differ.

    Columns and metrics that only one of the runs has are ignored, and so are durations.

    Raises:
        FileNotFoundError: If a folder contains no run.
        ValueError: If a run is not finished, or a file cannot be read; the message names it.

    >>> import tempfile
    >>> record = {"schema": 2, "status": "finished", "metrics": {"robust_accuracy": 0.5}}
    >>> folders = [Path(tempfile.mkdtemp()) for _ in range(2)]
    >>> for folder, second in zip(folders, [False, True]):
    ...     _ = (folder / "run.json").write_text(json.dumps(record))
    ...     table = pl.DataFrame({"id": [7, 9], "name": ["a", "b"], "label": 0, "clean_prediction": 0,
    ...                           "stopped": "steps", "verified": [True, second], "undecided": False, "epsilon": None})
    ...     table.write_parquet(folder / "samples.parquet")
    >>> compare(folders[0], folders[0]).repeated
    'bitwise'
    >>> compare(*folders).conclusion
    'Not repeated: 1 sample has another verdict: 9 (b): robust, now fooled.'
    """
    first, second = load_run(before), load_run(after)
    for run in (first, second):
        if run.job.status != "finished":
            raise ValueError(f"{run.folder} cannot be compared: its run is {run.job.status}, not finished.")
    conditions, question = _conditions(first.record, second.record), _options(first.record, second.record)
    if "raiopt" in conditions:  # another version may have other options
        conditions, question = conditions | question, {}
    return Comparison(
        before=first.folder,
        after=second.folder,
        question=question | _differing(asdict(first.record.hashes), asdict(second.record.hashes)),
        conditions=conditions,
        figures=_differing(_metrics(first), _metrics(second), both=True),
        stored=_compared(first.perturbations, second.perturbations),
        **_rows(_judged(first), _judged(second)),
    )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], *, both: bool = False) -> dict[str, Pair]:
    """Returns the values that differ, by name; with `both`, only for names in both mappings."""
    names = [name for name in {**one, **other} if not both or (name in one and name in other)]
    pairs = {name: (one.get(name), other.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _metrics(run: Run) -> dict[str, Any]:
    """Returns the recorded metrics of a run, except durations."""
    found = asdict(run.metrics) if run.metrics else {}
    return {
        name: value
        for name, value in found.items()
        if name in VERDICT_METRICS or (value is not None and name != "attack_seconds")
    }


def _options(one: Record, other: Record) -> dict[str, Pair]:
    """Returns the differing options if the job keys differ; the keys themselves if no given option explains it.

    Keys depend on the defaults of their day, so that all values decide where both runs recorded them.
    """
    if one.options and other.options:
        choices = [without_volatile({**record.choices, "experiment": None}) for record in (one, other)]
        return _differing(one.options, other.options) | _differing(*choices, both=True)
    keys = {"options": (one.job_key, other.job_key)} if one.job_key != other.job_key else {}
    given = _differing(without_volatile(one.overrides), without_volatile(other.overrides), both=True)
    return keys and (given or keys)


def _conditions(one: Record, other: Record) -> dict[str, Pair]:
    def conditions(record: Record) -> dict[str, Any]:
        inference = {} if record.inference is None else asdict(record.inference)
        return {**record.versions, **asdict(record.device), **inference, "batch_size": record.batch_size}

    first, second = conditions(one), conditions(other)
    nondeterministic = (first.get("nondeterministic"), second.get("nondeterministic"))
    always = {"nondeterministic": nondeterministic} if any(nondeterministic) else {}
    return _differing(first, second) | always


def _judged(run: Run) -> pl.DataFrame:
    """Returns the table of samples with a column for the verdicts."""
    at = pl.when(pl.col("epsilon").is_null()).then(pl.lit("fooled")).otherwise(pl.format("fooled at {}", "epsilon"))
    verdict = pl.when(~DECIDED).then(pl.lit("undecided")).when(BROKEN).then(at)
    verdict = verdict.when(RIGHT).then(pl.lit("robust")).otherwise(pl.lit("misclassified"))
    frame, file = run.samples(), run.folder / "samples.parquet"
    try:
        table = frame.with_columns(pl.col("id").cast(pl.Int64), verdict=verdict).collect()
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{file} is not a table of samples: {str(error).partition(chr(10))[0]}") from None
    if table["id"].null_count() or table["id"].n_unique() < len(table):
        raise ValueError(f"{file} has a repeated id, or a sample without one.")
    return table


def _rows(before: pl.DataFrame, after: pl.DataFrame) -> dict[str, Any]:
    """Returns the differences between the tables of samples, as fields of `Comparison`."""
    shared = [name for name in after.columns if name in before.columns and name != "id"]
    later = after.select("id", *[pl.col(name).alias(f"now {name}") for name in shared])
    rows = before.select("id", *shared).join(later, on="id", how="full", coalesce=True).sort("id")
    flips = [
        Flip(row["id"], row["name"] or row["now name"], row["verdict"] or "missing", row["now verdict"] or "missing")
        for row in rows.filter(pl.col("verdict").ne_missing(pl.col("now verdict"))).iter_rows(named=True)
    ]
    same_type = {name: before.schema[name] == after.schema[name] for name in shared}
    differs = [
        pl.col(name).ne_missing(pl.col(f"now {name}")).alias(name) if same else pl.lit(True).alias(name)
        for name, same in same_type.items()
        if name != "verdict"
    ]
    both = rows.filter(pl.col("verdict").is_not_null() & pl.col("now verdict").is_not_null())
    table = both.select("id", *differs)
    columns = {name: int(table[name].sum()) for name in table.columns[1:]}
    changed = table.filter(pl.any_horizontal(*table.columns[1:]))["id"].to_list()
    columns = {name: count for name, count in columns.items() if count}
    return {"samples": len(rows), "flips": flips, "columns": columns, "changed": changed}


def _compared(one: PerturbationStore, other: PerturbationStore) -> Stored:
    ids = [number for number in one.rows if number in other.rows]
    equal, largest = 0, None
    for number in ids:
        first, second = one.of(number), other.of(number)
        if first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first):
            equal += 1
        elif "delta" in first and "delta" in second and first["delta"].shape == second["delta"].shape:
            apart = np.abs(first["delta"].astype(np.float64) - second["delta"].astype(np.float64)).max(initial=0)
            largest = max(largest or 0.0, float(np.nan_to_num(apart, nan=np.inf)))
    return Stored(len(ids), equal, len(one.rows.keys() ^ other.rows.keys()), largest)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()


def _pairs(title: str, differing: Mapping[str, Pair]) -> list[tuple[str, str]]:
    lines = [f"{name} {_short(before)}, now {_short(after)}" for name, (before, after) in differing.items()]
    return [(title, "\n".join(lines) or "the same")]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:10]}..."
