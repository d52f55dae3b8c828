"""What the sections of a report show, as plain values. Nothing here writes HTML."""

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

ROOM = 2_400_000
"""So many characters of the page are pictures at most."""
CLASSES = 20
"""Of more classes, the weakest and the most frequent confusions are shown instead of all."""
VALUES = 40
"""An option of more values is no axis of the heat map."""


def best_first(findings: Sequence[Finding], count: int) -> list[Run]:
    """Returns so many runs at most: the best of each question, then the second of each, and so on."""
    ranked = sorted(
        ((rank, number) for number, finding in enumerate(findings) for rank in range(min(count, len(finding.runs)))),
    )
    return [findings[number].runs[rank] for rank, number in ranked[:count]]


def shares(run: Run) -> list[tuple[str, str, float]]:
    """Returns what became of the samples: key, words and share of each part that is not empty."""
    figures, total = run.metrics, max(1, series.job_points([run])["samples"][0])
    undecided = (figures.get("undecided") or 0) / total
    clean, robust = figures["clean_accuracy"], figures["robust_accuracy"]
    parts = [
        ("robust", "robust", robust),
        ("broken", "broken by the attack", max(0.0, clean - robust - undecided)),
        ("undecided", "undecided", undecided),
        ("wrong", "wrong before", max(0.0, 1 - max(clean, robust + undecided))),
    ]
    return [part for part in parts if part[2] > 1e-9]


def closer(
    runs: Sequence[Run], names: Sequence[str], problems: dict[str, str], room: int = ROOM
) -> list[dict[str, Any]]:
    """Returns classes, confusions and pictures of each run; pictures of the first ones, as long as there is room.

    Args:
        names: Of the runs.
        problems: Takes up what cannot be read, by the run's folder.
    """
    told = []
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
        told.append(shown)
    return told


def _confusion(run: Run, which: Any) -> dict[str, Any]:
    """Returns the matrix as rows of counts, or the most frequent confusions of many classes."""
    frame = series.confusion(run, which)
    classes = sorted({*frame["label"].drop_nulls(), *frame["prediction"].drop_nulls()})
    wrong = frame.filter(pl.col("label").ne_missing(pl.col("prediction"))).sort("count", descending=True)
    name = dict(zip(classes, series.class_names(run, classes), strict=True)).get
    if len(classes) > CLASSES:
        return {"pairs": [(name(a), name(b, "not finite"), n) for a, b, n in wrong.head(CLASSES).iter_rows()]}
    count = {(a, b): n for a, b, n in frame.iter_rows()}
    columns = [*classes, None] if frame["prediction"].has_nulls() else classes
    rows = [
        (name(a), sum(count.get((a, b), 0) for b in columns), [count.get((a, b), 0) for b in columns]) for a in classes
    ]
    return {"columns": [name(b, "not finite") for b in columns], "rows": [row for row in rows if row[1]]}


def origin(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Returns where the runs come from: each fact with its values, and how many runs have each."""
    told: dict[str, Counter[str]] = {}
    for run in runs:
        for name, value in _facts(run.record):
            told.setdefault(name, Counter())[value] += 1
    return [(name, values.most_common()) for name, values in told.items()]


def _facts(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for part in ("weights", "data"):
        found = (record.get("hashes") or {}).get(part)
        for value in found if isinstance(found, list) else [found]:
            if value:
                yield f"SHA-256 of the {part}", str(value)
    device, git = record.get("device") or {}, record.get("git") or {}
    if device:
        yield "device", f"{device.get('name')}, {device.get('threads')} threads"
    if git:
        yield "git commit of raiopt", f"{git.get('commit')}{' and changes' * bool(git.get('changed'))}"
    code = record.get("code")
    for module, commit in code.items() if isinstance(code, dict) else ():
        yield f"git commit of {module}", str(commit)
    if "seed" in record:
        yield "seed", str(record["seed"])
    if "started" in record:
        yield "date", str(record["started"])[:10]
    for package, version in (record.get("versions") or {}).items():
        yield package, str(version)


def curves(frame: pl.DataFrame, about: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the rows of each curve as lists that JSON can hold, numbers of five digits.

    Args:
        about: Columns that are the same in a curve and stay single values.
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
        `jobs`, each with its name, robust accuracy and, for each option, the position of its value; `options`, each
        with its values in order, whether they are numbers, whether it changes the question itself (`asks`), and whether
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
            "robust": run.metrics["robust_accuracy"],
            "at": [option["values"].index(_key(run.job.option(option["name"]))) for option in options],
        }
        for name, run in finished
    ]
    for option in options:
        option["name"] = short(option["name"])
        option["axis"] = len(option["values"]) <= VALUES
        option["values"] = [value_words(json.loads(value)) for value in option["values"]]
    return {"jobs": jobs, "options": options}


def value_words(value: Any) -> str:
    """Returns the value of an option as one writes it."""
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def short(option: str) -> str:
    """Returns the name of an option as it stands in tables and plots."""
    return option.removeprefix("optim.")


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(key: str) -> tuple[int, float, str]:
    value = json.loads(key)
    return (0, value, "") if _is_number(value) else (2, 0, "") if value is None else (1, 0, key)
