"""`raiopt show`: a run on the terminal, or one of its samples with its picture, or the table of a sweep."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raiopt.reports.runs import Run, load_run, load_runs
from raiopt.reports.series import class_names, class_results, confusion
from raiopt.reports.trust import WORDS, Verdict, judge
from raiopt.results.pictures import around_grey, fitted, half_blocks, picture
from raiopt.results.terminal import percent, print_summary, print_sweep
from raiopt.verbs import Parser

WIDEST, AROUND = 64, 16
"""So many characters a picture is wide at most, and so many lines are left for what stands around it."""
FEW = 3
"""So many classes are named."""
COLOURS = {"amber": "yellow", "unknown": None}


class Seen(NamedTuple):
    """The pixels of a sample and what was added to them, (C, H, W)."""

    image: np.ndarray
    delta: np.ndarray


def main(words: list[str]) -> int:
    """Prints what there is to see of a folder."""
    parser = Parser("show", "Shows a run, one of its samples, or the table of a sweep.")
    parser.add_argument("folder", type=Path, help="of a run or of a sweep")
    parser.add_argument("--sample", type=int, metavar="ID", help="a sample of the run, by its id")
    parser.add_argument("--allow", action="append", default=[], metavar="TARGET", help="code that the config may run")
    asked = parser.parse_args(words)
    if not (asked.folder / "run.json").exists():
        if asked.sample is not None:
            raise ValueError(f"{asked.folder} is no run: --sample needs the folder of one, as in outputs/NAME/JOB.")
        return _show_sweep(asked.folder)
    run = load_run(asked.folder)
    if run.job.status != "finished":
        return _show_unfinished(run)
    if asked.sample is None:
        _show_run(run)
    else:
        _show_sample(run, asked.sample, asked.allow)
    return 0


def _show_sweep(folder: Path) -> int:
    from raiopt.results.tables import load_sweep

    if folder.is_dir() and not (folder / "sweep.json").exists() and not any(folder.glob("*/run.json")):
        raise ValueError(f"{folder} is the folder of no run and of no sweep: see raiopt list runs {folder}")
    print_sweep(load_sweep(folder), folder)
    return 0


def _show_unfinished(run: Run) -> int:
    console = Console()
    _line(console, f"{run.folder} {run.job.status}: {run.job.error or 'no reason was noted'}", "red")
    if (run.folder / "run.log").exists():
        _line(console, f"more in {run.folder / 'run.log'}")
    _show_origin(console, run.record)
    return 0


def _show_run(run: Run) -> None:
    console = Console()
    print_summary(run.record, run.folder)
    try:
        _show_classes(console, run)
    except ValueError as error:
        _line(console, str(error), "red")
    print_verdict(judge(run, _beside(run)))
    _show_origin(console, run.record)


def print_verdict(verdict: Verdict) -> None:
    """Prints whether a result can be believed; if not, which signs speak against it, and what to try next."""
    console = Console()
    worst = [sign for sign in verdict.signs if sign.level in ("amber", "red")]
    _line(console, f"{verdict.level.upper()}: {WORDS[verdict.level]}" if worst else verdict.words(), verdict.level)
    for sign in worst:
        remedy = f" Try: {shlex.join(sign.remedy)}" if sign.remedy else ""
        _line(console, f"  {sign.name}: {sign.found}{remedy}", sign.level)


def _beside(run: Run) -> list[Run]:
    """Returns the runs of the same sweep or name."""
    try:
        return [other for other in load_runs([run.folder.absolute().parent]) if other.folder.name != run.folder.name]
    except ValueError:  # a sweep.json that cannot be read
        return []


def _show_classes(console: Console, run: Run) -> None:
    """Says which classes break most, and what they are mostly taken for."""
    classes = class_results(run).sort("robust_accuracy", maintain_order=True)
    if len(classes) < 2:
        return
    columns = classes.head(FEW).select("name", "robust_accuracy", "samples")
    weakest = [f"{name} ({percent(robust)} of {count:,})" for name, robust, count in columns.iter_rows()]
    _line(console, f"least robust classes: {', '.join(weakest)}")
    wrong = confusion(run, "adversarial").filter(pl.col("label") != pl.col("prediction"))
    pairs = wrong.sort("count", descending=True, maintain_order=True).head(FEW)
    if taken := [f"{_name(run, one)} for {_name(run, other)} ({count:,})" for one, other, count in pairs.iter_rows()]:
        _line(console, f"most often taken: {', '.join(taken)}")


def _show_origin(console: Console, record: dict[str, Any]) -> None:
    """Says when and where a run began, and by which command."""
    device, commit = record.get("device") or {}, (record.get("git") or {}).get("commit")
    where = [str(record.get("started", ""))[:16].replace("T", " "), *filter(None, [device.get("name")])]
    where += [
        f"raiopt {(record.get('versions') or {}).get('raiopt', '?')}",
        *([f"commit {commit[:10]}"] if commit else []),
    ]
    _line(console, ", ".join(where))
    if record.get("note"):
        _line(console, f"note: {record['note']}")
    _line(console, shlex.join(map(str, record.get("command") or [])), "bold")


def _line(console: Console, text: str, style: str | None = None) -> None:
    """Prints a line; a terminal breaks it between words, but for a command, which is to be copied."""
    whole = not console.is_terminal or style == "bold"
    console.print(escape(text), style=COLOURS.get(style, style) if style else None, soft_wrap=whole, highlight=False)


def _show_sample(run: Run, number: int, allow: Sequence[str]) -> None:
    row = _row(run, number)
    console = Console()
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in _told(run, row):
        table.add_row(name, escape(value))
    _line(console, f"sample {number}, {row['name']}", "bold")
    console.print(table)
    if row["forward_passes"] is None:
        return
    if console.is_terminal and console.color_system in ("truecolor", "256"):
        try:
            _draw(console, run, row, _seen(run, row, allow))
        except ValueError as error:
            _line(console, f"No picture: {error}", "yellow")
    else:
        _line(console, "A terminal with colours would show it.")
        _line(console, f"Some samples are in {run.folder / 'gallery.png'}; all: raiopt export {run.folder} --png DIR")


def _row(run: Run, number: int) -> dict[str, Any]:
    found = run.samples().filter(pl.col("id") == number).collect()
    if not len(found):
        low, high, count = run.samples().select(a=pl.col("id").min(), b=pl.col("id").max(), c=pl.len()).collect().row(0)
        what = "they are" if count == high - low + 1 else f"there are {count:,}, from"
        raise ValueError(f"--sample {number} is no id of {run.folder}: {what} {low} to {high}.")
    return found.row(0, named=True)


def _told(run: Run, row: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns name and text of what the table of samples says of one sample."""

    def said(prediction: str, confidence: str) -> str:
        sure = row.get(confidence)
        return _name(run, row[prediction]) + ("" if sure is None else f", sure by {percent(sure)}")

    told = [("label", _name(run, row["label"])), ("clean prediction", said("clean_prediction", "clean_confidence"))]
    if row["forward_passes"] is None:
        return [*told, ("attacked", f"no: {row['stopped']}")]
    left = row.get("label_confidence")
    stage, first = row.get("stage"), next(iter(run.record.get("stages") or []), {}).get("name")
    before = f"{row['clean_loss']:.4g}, " if stage == first else ""  # of the first stage, whose loss may be another
    verdict = "undecided" if row["undecided"] else "broken, verified" if row["verified"] else "not broken"
    told += [
        ("under attack", said("adversarial_prediction", "adversarial_confidence")),
        ("verdict", verdict + (", claimed only" if row["claimed"] and not row["verified"] else "")),
        ("stage", stage or "-"),
        ("left for the label", percent(left)),
        ("loss", f"{before}under attack {row['adversarial_loss']:.4g}"),
        ("target", "-" if row["target"] is None else _name(run, row["target"])),
        ("perturbation", f"Linf {row['linf']:.4g}, L2 {row['l2']:.4g}, L1 {row['l1']:,.4g}, L0 {row['l0']:,}"),
        ("stopped", f"{row['stopped']}, after {row['steps']:,} steps, the best of which was {row['best_step']:,}"),
        ("passes", f"{row['forward_passes']:,} forward, {row['backward_passes']:,} backward"),
    ]
    if row["epsilon"] is not None:
        told.append(("broken at", f"epsilon {row['epsilon']:g}"))
    return [(name, text) for name, text in told if text != "-"]


def _name(run: Run, number: int | None) -> str:
    """Returns a class by its name, or by its number where no other is known."""
    return "-" if number is None else class_names(run, [number])[0]


def _exhibited(run: Run) -> list[int]:
    return run.exhibits().get("ids", np.zeros(0)).tolist()


def _seen(run: Run, row: dict[str, Any], allow: Sequence[str]) -> Seen:
    """Returns the pixels of a sample: as the run kept them, or of the data that its config describes.

    Raises:
        ValueError: If they are not to be had; the message says why.
    """
    kept = run.exhibits()
    if row["id"] in (ids := _exhibited(run)):
        place = ids.index(row["id"])
        return Seen(kept["image"][place].astype(np.float32) / 255, kept["delta"][place].astype(np.float32))
    delta = _stored_delta(run.folder, row["id"])
    if delta is None:
        remedy = "save=all stores every one" if row["verified"] else "save=all stores those that did not break too"
        raise ValueError(f"the run did not store what was added to this sample; {remedy}.")
    return Seen(_clean(run, row, allow), delta)


def _stored_delta(folder: Path, number: int) -> np.ndarray | None:
    """Returns the stored perturbation (C, H, W) of a sample; reads no other. None if there is none."""
    from safetensors import SafetensorError, safe_open

    from raiopt.results.files import own

    single = folder / "perturbations.safetensors"
    for path in [single] if single.exists() else sorted((folder / "perturbations").glob("*.safetensors")):
        try:
            with safe_open(own(path), framework="numpy") as file:
                (places,) = np.nonzero(file.get_tensor("ids") == number)
                if len(places):
                    return file.get_slice("delta")[int(places[0]) : int(places[0]) + 1][0]
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
    return None


def _clean(run: Run, row: dict[str, Any], allow: Sequence[str]) -> np.ndarray:
    """Returns the clean image of a sample, from the data that the run's config describes."""
    import torch

    from raiopt import experiment
    from raiopt.saved import saved_job

    _, data, _ = experiment.load(saved_job(run.folder, allow), torch.device("cpu"))
    if row["id"] not in data.ids or data.names[place := data.ids.index(row["id"])] != row["name"]:
        raise ValueError(f"the data have no sample {row['id']} of this name any more.")
    return data.image(place).numpy()


def _draw(console: Console, run: Run, row: dict[str, Any], seen: Seen) -> None:
    """Prints clean image, perturbation and adversarial image side by side."""
    room = min(WIDEST, (console.width - 4) // 3), max(12, 2 * (console.height - AROUND))
    stretched, largest = around_grey(seen.delta)
    parts = {
        f"clean: {_name(run, row['clean_prediction'])}": seen.image,
        f"added, \u00b1{largest:.3g}": stretched,
        f"sees: {_name(run, row['adversarial_prediction'])}": seen.image + seen.delta,
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in parts:
        table.add_column(max_width=room[0], overflow="ellipsis", no_wrap=True)
    table.add_row(*[half_blocks(fitted(picture(pixels), *room)) for pixels in parts.values()])
    table.add_row(*map(escape, parts))
    console.print(table)
