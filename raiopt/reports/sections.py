"""The content of a report's sections as plain values. Nothing here writes HTML."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from raiopt.reports import series
from raiopt.reports.findings import Finding
from raiopt.reports.runs import Run, differing_options
from raiopt.reports.thumbnails import exhibits
from raiopt.results.record import Record

MAX_PICTURE_CHARACTERS = 2_400_000
"""The largest number of characters of the page used for pictures."""
MAX_CLASSES = 20
"""With more classes than this, only the most frequent confusions are shown."""
MAX_AXIS_VALUES = 40
"""The largest number of values of an option on an axis of the heat map."""


def best_first(findings: Sequence[Finding], count: int) -> list[Run]:
    """Returns at most `count` runs: the best of each finding, then the second of each, and so on."""
    ranked = sorted(
        ((rank, number) for number, finding in enumerate(findings) for rank in range(min(count, len(finding.runs)))),
    )
    return [findings[number].runs[rank] for rank, number in ranked[:count]]


def shares(run: Run) -> list[tuple[str, str, float]]:
    """Returns the outcomes of the samples: key, description and share of each non-empty part."""
    assert run.metrics is not None
    undecided = run.metrics.undecided / max(1, run.count)
    clean, robust = run.metrics.clean_accuracy or 0.0, run.robust
    parts = [
        ("robust", "robust", robust),
        ("broken", "attacked successfully", max(0.0, clean - robust - undecided)),
        ("undecided", "undecided", undecided),
        ("wrong", "misclassified without an attack", max(0.0, 1 - max(clean, robust + undecided))),
    ]
    return [part for part in parts if part[2] > 1e-9]


def closer(
    runs: Sequence[Run], names: Sequence[str], problems: dict[str, str], room: int = MAX_PICTURE_CHARACTERS
) -> list[dict[str, Any]]:
    """Returns classes, confusions and pictures of each run; pictures only for the first runs, as space allows.

    Args:
        names: The names of the runs.
        problems: Collects errors of unreadable files, by the run's folder.
        room: The number of characters available for pictures.
    """
    entries = []
    for run, name in zip(runs, names, strict=True):
        shown: dict[str, Any] = {"run": run, "name": name, "classes": None, "exhibits": [], "left_out": False}
        try:
            shown["classes"] = series.class_results(run).to_dicts()
            shown["confusions"] = {which: _confusion(run, which) for which in ("clean", "adversarial")}
            if room > 0:
                shown["exhibits"] = exhibits(run.exhibits(), run.class_names)
                room -= sum(len(e[part]) for e in shown["exhibits"] for part in ("clean", "delta", "adversarial"))
            else:
                shown["left_out"] = (run.folder / "exhibits.safetensors").exists()
        except ValueError as error:
            known = problems.get(str(run.folder))
            problems[str(run.folder)] = str(error) if known in (None, str(error)) else f"{known}; {error}"
        entries.append(shown)
    return entries


def _confusion(run: Run, which: Any) -> dict[str, Any]:
    """Returns the confusion matrix as rows of counts, or for many classes only the most frequent confusions."""
    frame = series.confusion(run, which)
    classes = sorted({*frame["label"].drop_nulls(), *frame["prediction"].drop_nulls()})
    wrong = frame.filter(pl.col("label").ne_missing(pl.col("prediction"))).sort("count", descending=True)
    name = dict(zip(classes, series.class_names(run, classes), strict=True)).get
    if len(classes) > MAX_CLASSES:
        return {"pairs": [(name(a), name(b, "not finite"), n) for a, b, n in wrong.head(MAX_CLASSES).iter_rows()]}
    count = {(a, b): n for a, b, n in frame.iter_rows()}
    columns = [*classes, None] if frame["prediction"].has_nulls() else classes
    rows = [
        (name(a), sum(count.get((a, b), 0) for b in columns), [count.get((a, b), 0) for b in columns]) for a in classes
    ]
    return {"columns": [name(b, "not finite") for b in columns], "rows": [row for row in rows if row[1]]}


def origin(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Returns the provenance of the runs: each fact with its values, and the number of runs with each value."""
    facts: dict[str, Counter[str]] = {}
    for run in runs:
        for name, value in _facts(run.record):
            facts.setdefault(name, Counter())[value] += 1
    return [(name, values.most_common()) for name, values in facts.items()]


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    data = record.hashes.data
    for part, values in (("weights", [record.hashes.weights]), ("data", data if isinstance(data, list) else [data])):
        yield from ((f"SHA-256 of the {part}", value) for value in values if value)
    if record.device.type:
        yield "device", f"{record.device.name}, {record.device.threads} threads"
    if record.git:
        yield "git commit of raiopt", f"{record.git.commit}{' and changes' * bool(record.git.changed)}"
    yield from ((f"git commit of {module}", commit) for module, commit in record.code.items())
    if record.started:
        yield "seed", str(record.seed)
        yield "date", record.started[:10]
    yield from record.versions.items()


def curves(frame: pl.DataFrame, about: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the rows of each curve as JSON-serializable lists, with numbers rounded to five digits.

    Args:
        about: Columns that are constant within a curve and become single values.
    """
    keys = ["label", *about]
    parts = frame.partition_by(keys, maintain_order=True)
    return [
        {key: part[key][0] for key in keys} | {name: [_short(v) for v in part[name]] for name in columns}
        for part in parts
    ]


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def grid(runs: Sequence[Run], names: Sequence[str], findings: Sequence[Finding]) -> dict[str, Any]:
    """Returns the finished runs as points in the space of the options in which they differ.

    Returns:
        `jobs`, each with its name, robust accuracy and, for each option, the index of its value; `options`, each with
        its values in order, whether they are numbers, whether it is constant within each finding (`asks`), and whether
        it may be an axis.
    """
    finished = [(name, run) for name, run in zip(names, runs, strict=True) if run.metrics]
    options = []
    for option in differing_options([run for _, run in finished]):
        values = {_key(run.job.option(option)) for _, run in finished}
        asks = all(len({_key(run.job.option(option)) for run in finding.runs}) == 1 for finding in findings)
        numbers = all(_is_number(json.loads(value)) for value in values)
        options.append({"name": option, "values": sorted(values, key=_order), "asks": asks, "numbers": numbers})
    jobs = [
        {
            "name": name,
            "robust": run.robust,
            "at": [option["values"].index(_key(run.job.option(option["name"]))) for option in options],
        }
        for name, run in finished
    ]
    for option in options:
        option["name"] = short(option["name"])
        option["axis"] = len(option["values"]) <= MAX_AXIS_VALUES
        option["values"] = [value_words(json.loads(value)) for value in option["values"]]
    return {"jobs": jobs, "options": options}


def value_words(value: Any) -> str:
    """Returns the value of an option as readable text."""
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def short(option: str) -> str:
    """Returns the short name of an option for tables and plots."""
    return option.removeprefix("optim.")


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(key: str) -> tuple[int, float, str]:
    value = json.loads(key)
    return (0, value, "") if _is_number(value) else (2, 0, "") if value is None else (1, 0, key)
