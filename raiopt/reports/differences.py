"""Two folders of one question: whether the later run repeats the earlier one, and in what they differ."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open

from raiopt.reports.runs import Run, load_run
from raiopt.results.files import own
from raiopt.results.records import is_volatile

FIGURES = ("samples", "clean_accuracy", "robust_accuracy", "robust_accuracies", "undecided")
"""The figures that follow from the verdicts."""
TOLD = 10
"""So many samples are told by their ids."""
Pair = tuple[Any, Any]


class Flip(NamedTuple):
    """A sample with two verdicts: robust, broken, undecided, misclassified or missing."""

    id: int
    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Stored:
    """The perturbations of two folders.

    Args:
        count: So many samples have one in both.
        equal: Of these, so many are equal bit for bit.
        unmatched: So many have one in one of them alone.
        largest: The largest difference of two entries; None if there is none to be told.
    """

    count: int
    equal: int
    unmatched: int
    largest: float | None


@dataclass(frozen=True)
class Comparison:
    """What a run and its repetition have in common; of what differs, each entry is the value before and after.

    Args:
        before, after: The folders.
        question: What was asked: options, or else the job keys; the hashes of weights and data.
        conditions: Under which it was computed: versions, device, threads, batch size, how the model was run.
        figures: Of run.json.
        samples: So many are in both tables.
        flips: The samples whose verdicts differ.
        columns: In how many samples each column of samples.parquet differs, of those that both tables have.
        changed: The ids of the samples of which any column differs.
        stored: The perturbations.
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
        """How the later run repeats the earlier one: "bitwise", or "verdicts" if the conditions differ; None: not."""
        if self.question or self.flips or any(name in self.figures for name in FIGURES):
            return None
        if not self.changed and not self.figures and self.stored.equal == self.stored.count + self.stored.unmatched:
            return "bitwise"
        return "verdicts" if self.conditions else None

    @property
    def conclusion(self) -> str:
        """Whether it is repeated, and if not, why, in a sentence."""
        if self.repeated == "bitwise":
            return "Repeated bit for bit."
        if self.repeated == "verdicts":
            return f"Repeated: all verdicts are the same. Not bit for bit, for {_names(self.conditions)} differ."
        if self.question:
            return f"Not repeated: {_names(self.question)} differ, so that it is another question."
        if self.flips:
            told = [f"{flip.id} ({flip.name}): {flip.before}, now {flip.after}" for flip in self.flips[:TOLD]]
            more = [f"and {len(self.flips) - TOLD} more"] if len(self.flips) > TOLD else []
            return f"Not repeated: {_count(self.flips)} another verdict: {'; '.join([*told, *more])}."
        if any(name in self.figures for name in FIGURES):
            return f"Not repeated: the verdicts are the same, but run.json has another {_names(self.figures)}."
        unknown = "Nothing that is recorded says why; code of one's own is not recorded."
        return f"Not repeated: the verdicts are the same, but not all bits. {unknown}"

    def rows(self) -> list[tuple[str, str]]:
        """Returns what was compared, and how it came out, as lines of a table."""
        stored = self.stored
        off = "" if stored.largest is None else f", largest difference {stored.largest:.2g}"
        alone = f", {stored.unmatched} in one run alone" if stored.unmatched else ""
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
        """Returns all of it as JSON can hold it."""
        content = asdict(self) | {"flips": [flip._asdict() for flip in self.flips]}
        text = json.dumps({"repeated": self.repeated, "conclusion": self.conclusion, **content}, default=str)
        return json.loads(text, parse_constant=str)  # a stranger's figures may be NaN


def compare(before: Path | str, after: Path | str) -> Comparison:
    """Returns what two runs of one question have in common.

    Tables and perturbations are read whatever `run.json` says of them. Columns and figures that only one of the runs
    has, of another version, are left out, and so are seconds.

    Raises:
        FileNotFoundError: If a folder holds no run.
        ValueError: If a run is not finished, or a file cannot be read; the message names it.

    >>> import tempfile
    >>> record = {"schema": 1, "status": "finished", "metrics": {"robust_accuracy": 0.5}}
    >>> folders = [Path(tempfile.mkdtemp()) for _ in range(2)]
    >>> for folder, second in zip(folders, [False, True]):
    ...     _ = (folder / "run.json").write_text(json.dumps(record))
    ...     table = pl.DataFrame({"id": [7, 9], "name": ["a", "b"], "label": 0, "clean_prediction": 0,
    ...                           "stopped": "steps", "verified": [True, second], "undecided": False, "epsilon": None})
    ...     table.write_parquet(folder / "samples.parquet")
    >>> compare(folders[0], folders[0]).repeated
    'bitwise'
    >>> compare(*folders).conclusion
    'Not repeated: 1 sample has another verdict: 9 (b): robust, now broken.'
    """
    first, second = load_run(before), load_run(after)
    for run in (first, second):
        if run.job.status != "finished":
            raise ValueError(f"{run.folder} cannot be compared: its run is {run.job.status}, and not finished.")
    conditions, question = _conditions(first.record, second.record), _options(first.record, second.record)
    if "raiopt" in conditions:  # it may have other options
        conditions, question = conditions | question, {}
    return Comparison(
        before=first.folder,
        after=second.folder,
        question=question | _differing(part(first.record, "hashes"), part(second.record, "hashes")),
        conditions=conditions,
        figures=_differing(first.metrics, second.metrics, both=True),
        stored=_compared(_Perturbations(first.folder), _Perturbations(second.folder)),
        **_rows(_judged(first), _judged(second)),
    )


def part(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns an entry of a record that is a mapping; empty if it is none."""
    part = record.get(name)
    return part if isinstance(part, dict) else {}


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], *, both: bool = False) -> dict[str, Pair]:
    """Returns what differs under which name, but for seconds; `both`: only names that both have."""
    names = [name for name in {**one, **other} if not both or (name in one and name in other)]
    pairs = {name: (one.get(name), other.get(name)) for name in names if name != "attack_seconds"}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _options(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Pair]:
    """Returns the options that differ if the job keys do; the keys, if no option that was given is among them."""
    keys = _differing(*({"options": record.get("job_key")} for record in (one, other)))
    given = _differing(part(one, "overrides"), part(other, "overrides"), both=True)
    return keys and ({name: pair for name, pair in given.items() if not is_volatile(name)} or keys)


def _conditions(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Pair]:
    def told(record: Mapping[str, Any]) -> dict[str, Any]:
        parts = {**part(record, "versions"), **part(record, "device"), **part(record, "inference")}
        return {**parts, "batch_size": record.get("batch_size")}

    first, second = told(one), told(other)
    unsteady = {"nondeterministic": (first.get("nondeterministic"), second.get("nondeterministic"))}
    return _differing(first, second) | (unsteady if any(unsteady["nondeterministic"]) else {})


def _judged(run: Run) -> pl.DataFrame:
    """Returns the table of samples with the verdict of each."""
    right, broken = pl.col("clean_prediction") == pl.col("label"), pl.col("verified").fill_null(False)
    undecided = pl.col("undecided").fill_null(False) | (pl.col("stopped") == "not_finite")
    at = pl.when(pl.col("epsilon").is_null()).then(pl.lit("broken")).otherwise(pl.format("broken at {}", "epsilon"))
    verdict = pl.when(undecided).then(pl.lit("undecided")).when(broken).then(at)
    verdict = verdict.when(right).then(pl.lit("robust")).otherwise(pl.lit("misclassified"))
    frame, file = run.samples(), run.folder / "samples.parquet"
    try:
        table = frame.with_columns(pl.col("id").cast(pl.Int64), verdict=verdict).collect()
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{file} is no table of samples: {str(error).partition(chr(10))[0]}") from None
    if table["id"].null_count() or table["id"].n_unique() < len(table):
        raise ValueError(f"{file} has an id twice, or a sample without one.")
    return table


def _rows(before: pl.DataFrame, after: pl.DataFrame) -> dict[str, Any]:
    """Returns what the tables of samples have in common, under the names of `Comparison`."""
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


class _Perturbations:
    """The stored perturbations of a folder, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        single = folder / "perturbations.safetensors"
        files = [single] if single.exists() else sorted((folder / "perturbations").glob("*.safetensors"))
        self.places: dict[int, tuple[Path, int]] = {}
        self._opened: tuple[Path | None, Any] = None, None
        for path in files:
            with _telling(path):
                ids = self._open(path).get_tensor("ids").tolist()
                self.places |= {number: (path, row) for row, number in enumerate(ids)}

    def of(self, number: int) -> dict[str, np.ndarray]:
        """Returns what is stored of a sample: `delta`, and what else it was made from."""
        path, row = self.places[number]
        with _telling(path):
            file = self._open(path)
            names = set(file.keys()) - {"ids", "batch"}
            batch = file.get_slice("batch")[row : row + 1][0] if "batch" in file.keys() else row  # noqa: SIM118
            rows = {name: int(batch) if name == "parameter" else row for name in names}
            return {name: file.get_slice(name)[at : at + 1] for name, at in rows.items()}

    def _open(self, path: Path) -> Any:
        if self._opened[0] != path:
            self._opened = path, safe_open(own(path), framework="numpy")
        return self._opened[1]


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _compared(one: _Perturbations, other: _Perturbations) -> Stored:
    ids = [number for number in one.places if number in other.places]
    equal, largest = 0, None
    for number in ids:
        first, second = one.of(number), other.of(number)
        if first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first):
            equal += 1
        elif "delta" in first and "delta" in second and first["delta"].shape == second["delta"].shape:
            apart = np.abs(first["delta"].astype(np.float64) - second["delta"].astype(np.float64)).max(initial=0)
            largest = max(largest or 0.0, float(np.nan_to_num(apart, nan=np.inf)))
    return Stored(len(ids), equal, len(one.places.keys() ^ other.places.keys()), largest)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()


def _names(differing: Iterable[str]) -> str:
    *first, last = differing
    return f"{', '.join(first)} and {last}" if first else last


def _count(flips: list[Flip]) -> str:
    return "1 sample has" if len(flips) == 1 else f"{len(flips)} samples have"


def _pairs(title: str, differing: Mapping[str, Pair]) -> list[tuple[str, str]]:
    told = [f"{name} {_short(before)}, now {_short(after)}" for name, (before, after) in differing.items()]
    return [(title, "\n".join(told) or "the same")]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:10]}..."
