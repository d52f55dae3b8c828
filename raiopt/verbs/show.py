"""`raiopt show`: prints a run, one of its samples, or the table of a sweep."""

import shlex
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape

from raiopt import checks
from raiopt.reports.runs import Run, load_run, load_runs
from raiopt.reports.series import class_names, class_results, confusion
from raiopt.reports.trust import WORDS, Verdict, judge
from raiopt.results.record import Record
from raiopt.results.terminal import grid_of, print_summary, print_sweep
from raiopt.results.words import percent, plural
from raiopt.verbs import Parser

MAX_CLASSES = 3
"""The largest number of classes that are listed."""
COLOURS = {"amber": "yellow", "unknown": None}


def main(words: list[str]) -> int:
    """Prints the results in a folder."""
    parser = Parser("show", "Shows a run, one of its samples, or the table of a sweep.")
    parser.add_argument("folder", type=Path, help="of a run or of a sweep")
    parser.add_argument("--sample", type=int, metavar="ID", help="a sample of the run, by its id")
    given = parser.parse_args(words)
    if not (given.folder / "run.json").exists():
        if given.sample is not None:
            raise ValueError(f"{given.folder} is not a run: --sample needs the folder of one, as in outputs/NAME/JOB.")
        return _show_sweep(given.folder)
    run = load_run(given.folder)
    if run.job.status != "finished" or run.metrics is None:
        _show_unfinished(run)
    elif given.sample is None:
        _show_run(run)
    else:
        _show_sample(run, given.sample)
    return 0


def _show_sweep(folder: Path) -> int:
    from raiopt.results.tables import load_sweep

    if folder.is_dir() and not (folder / "sweep.json").exists() and not any(folder.glob("*/run.json")):
        raise ValueError(f"{folder} contains neither a run nor a sweep: see raiopt list runs {folder}")
    print_sweep(load_sweep(folder), folder)
    return 0


def _show_unfinished(run: Run) -> None:
    _line(f"{run.folder} {run.job.status}: {run.job.error or 'no reason was recorded'}", "red")
    if (run.folder / "run.log").exists():
        _line(f"more in {run.folder / 'run.log'}")
    _show_origin(run.record)


def _show_run(run: Run) -> None:
    print_summary(run.record, run.folder)
    try:
        _show_classes(run)
    except ValueError as error:
        _line(str(error), "red")
    if problems := run.record.problems:
        more = f", and {plural(len(problems) - 1, 'more problem')}" * (len(problems) > 1)
        _line(f"{problems[0].rstrip('.')}{more}", "yellow")
    print_verdict(judge(run, _same_sweep(run)))
    _show_origin(run.record)


def print_verdict(verdict: Verdict) -> None:
    """Prints whether a result can be trusted; if not, which checks fired and what to try next."""
    text = f"{verdict.level.upper()}: {WORDS[verdict.level]}" if verdict.worst else verdict.words()
    _line(text, verdict.level)
    for check in verdict.worst:
        remedy = f" Try: {shlex.join(check.remedy)}" if check.remedy else ""
        _line(f"  {check.name}: {check.found}{remedy}", check.level)


def _same_sweep(run: Run) -> list[Run]:
    """Returns the other runs of the same sweep, or with the same name."""
    try:
        return [other for other in load_runs([run.folder.absolute().parent]) if other.folder.name != run.folder.name]
    except ValueError:  # a sweep.json that cannot be read
        return []


def _show_classes(run: Run) -> None:
    """Prints the least robust classes, and their most frequent confusions."""
    classes = class_results(run).sort("robust_accuracy", maintain_order=True)
    if len(classes) < 2:
        return
    columns = classes.head(MAX_CLASSES).select("name", "robust_accuracy", "samples")
    weakest = [f"{name} ({percent(robust)} of {count:,})" for name, robust, count in columns.iter_rows()]
    _line(f"least robust classes: {', '.join(weakest)}")
    wrong = confusion(run, "adversarial").filter(pl.col("label") != pl.col("prediction"))
    pairs = wrong.sort("count", descending=True, maintain_order=True).head(MAX_CLASSES)
    if taken := [f"{_name(run, one)} as {_name(run, other)} ({count:,})" for one, other, count in pairs.iter_rows()]:
        _line(f"most frequent confusions: {', '.join(taken)}")


def _show_origin(record: Record) -> None:
    """Prints when and where a run started, and its command."""
    where = [record.started[:16].replace("T", " "), record.device.name]
    where += [f"raiopt {record.versions.get('raiopt', '?')}", record.git and f"commit {record.git.commit[:10]}"]
    _line(", ".join(filter(None, where)))
    if record.note:
        _line(f"note: {record.note}")
    _line(shlex.join(record.command), "bold")


def _line(text: str, style: str | None = None) -> None:
    """Prints a line, wrapped between words, except for commands, which should be copyable."""
    console = Console()
    whole = not console.is_terminal or style == "bold"
    console.print(
        escape(checks.printable(text)),
        style=COLOURS.get(style, style) if style else None,
        soft_wrap=whole,
        highlight=False,
    )


def _show_sample(run: Run, number: int) -> None:
    row = _row(run, number)
    _line(f"sample {number}, {row['name']}", "bold")
    Console().print(grid_of(_sample_rows(run, row)))
    if row["forward_passes"] is None:
        return
    if number in run.perturbations.rows:
        everything = "" if row["verified"] else " --all"
        _line(f"its adversarial image as PNG: raiopt export {shlex.quote(str(run.folder))} --png DIR{everything}")
    else:
        _line(f"its perturbation was not stored: save={'fooled' if row['verified'] else 'all'} stores it")
    _line(f"pictures of some samples are in {run.folder / 'gallery.png'}")


def _row(run: Run, number: int) -> dict[str, Any]:
    found = run.samples().filter(pl.col("id") == number).collect()
    if not len(found):
        low, high, count = run.samples().select(a=pl.col("id").min(), b=pl.col("id").max(), c=pl.len()).collect().row(0)
        ids = f"{low} to {high}" if count == high - low + 1 else f"{count:,} numbers from {low} to {high}"
        raise ValueError(f"--sample {number} is not a sample of {run.folder}: its ids are {ids}.")
    return found.row(0, named=True)


def _sample_rows(run: Run, row: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns name and text of each result of one sample."""

    def predicted(prediction: str, confidence: str) -> str:
        share = row.get(confidence)
        return _name(run, row[prediction]) + ("" if share is None else f", confidence {percent(share)}")

    rows = [
        ("label", _name(run, row["label"])),
        ("clean prediction", predicted("clean_prediction", "clean_confidence")),
    ]
    if row["forward_passes"] is None:
        return [*rows, ("attacked", f"no: {row['stopped']}")]
    stage, first = row.get("stage"), next((stage.name for stage in run.record.stages), None)
    before = f"{row['clean_loss']:.4g}, " if stage == first else ""  # of the first stage; another may have another loss
    verdict = "undecided" if row["undecided"] else "attacked successfully" if row["verified"] else "robust"
    rows += [
        ("adversarial prediction", predicted("adversarial_prediction", "adversarial_confidence")),
        ("verdict", verdict + (", claimed but not verified" if row["claimed"] and not row["verified"] else "")),
        ("stage", stage or "-"),
        ("probability of the label", percent(row.get("label_confidence"))),
        ("loss", f"{before}under attack {row['adversarial_loss']:.4g}"),
        ("target", "-" if row["target"] is None else _name(run, row["target"])),
        ("perturbation", f"Linf {row['linf']:.4g}, L2 {row['l2']:.4g}, L1 {row['l1']:,.4g}, L0 {row['l0']:,}"),
        ("stopped", f"{row['stopped']}, after {plural(row['steps'], 'step')}, the best was step {row['best_step']:,}"),
        ("passes", f"{row['forward_passes']:,} forward, {row['backward_passes']:,} backward"),
    ]
    if row["epsilon"] is not None:
        rows.append(("smallest radius", f"epsilon {row['epsilon']:g}"))
    return [(name, text) for name, text in rows if text != "-"]


def _name(run: Run, number: int | None) -> str:
    """Returns the name of a class, or its number if it has no name."""
    return "-" if number is None else class_names(run, [number])[0]
