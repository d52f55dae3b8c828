"""`raiopt report`: writes an HTML report on runs, and figures for a paper."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raiopt.processes import python_command
from raiopt.reports.report import Report, check_free, make_report
from raiopt.reports.runs import Run, load_runs
from raiopt.reports.trust_checks import Level
from raiopt.results.options import flat
from raiopt.results.words import plural
from raiopt.verbs import Parser

WHAT = """Writes report.html, one page that needs no other file: the results, whether to trust them, the jobs, plots,
samples, and the commands that repeat them. The folder figures/ next to it has the plots as PNG and PDF."""
DRAW = """
import sys
from raiopt.reports.figures import save_figures
from raiopt.reports.runs import load_runs
save_figures(load_runs(sys.argv[2:]), sys.argv[1])
"""


def main(words: list[str]) -> int:
    """Writes the report on the folders given by the words; returns the exit status."""
    parser = Parser("report", WHAT)
    parser.add_argument("folder", nargs="+", type=Path, help="of a run, of a sweep, or one with such folders in it")
    place = "the file of the page; default: report.html in the folder, or here if several are given"
    parser.add_argument("--out", type=Path, metavar="FILE", help=place)
    parser.add_argument("--force", action="store_true", help="replace an existing page")
    check = "exit with 1 if the best job of an equal ball is RED, a table cannot be read, or no job has a result"
    parser.add_argument("--check", action="store_true", help=check)
    parser.add_argument("--no-figures", action="store_true", help="write only the page")
    asked = parser.parse_args(words)
    folders = asked.folder
    file = asked.out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    check_free(file, replace=asked.force)
    runs = load_runs(folders)
    drawn = not asked.no_figures and any(run.metrics for run in runs)
    with _figures(folders, file.parent, drawn):
        defaults = default_settings() if len(runs) > 1 else {}
        report = make_report(runs, _title(folders), defaults, "figures/" if drawn else None)
        report.save(file, replace=asked.force)
    _print(report, runs, every=asked.check)
    print(f"report in {file}" + f", figures in {file.parent / 'figures'}" * drawn)
    best = [finding.best for finding in report.findings]
    red = [run for run, verdict in zip(runs, report.verdicts, strict=True) if verdict.level is Level.RED]
    return int(asked.check and (not best or bool(report.problems) or any(run in best for run in red)))


@contextmanager
def _figures(folders: Sequence[Path], place: Path, wanted: bool) -> Iterator[None]:
    """Draws the figures in another process during the context, because they take longer than the page."""
    if not wanted:
        yield
        return
    command = python_command("-c", DRAW, place, *folders)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield
        _, errors = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        why = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise RuntimeError(f"the page is written, the figures are not: {why}. --no-figures leaves them out.")


def _title(folders: Sequence[Path]) -> str:
    names = [folder.resolve().name for folder in folders]
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def default_settings() -> dict[str, Any]:
    """Returns the default of each option, by dotted name, and of each group."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf, open_dict

    with initialize_config_module("raiopt.conf", version_base="1.3"):
        config = compose("raiopt", return_hydra_config=True)
    with open_dict(config):
        choices = config.pop("hydra").runtime.choices
    return {**flat(OmegaConf.to_container(config, resolve=True)), **choices}


def _print(report: Report, runs: Sequence[Run], *, every: bool) -> None:
    """Prints the best result, whether to trust it, and what could not be read.

    Args:
        every: Whether to list all runs that are RED.
    """
    judged = list(zip(runs, report.verdicts, strict=True))
    red = [(run, verdict) for run, verdict in judged if verdict.level is Level.RED]
    if report.findings:
        found, more = report.findings[0], len(report.findings) - 1
        print(found.sentence() + f"; {plural(more, 'more result')} in the report" * bool(more))
        print(next(verdict for run, verdict in judged if run is found.best).words())
    lost = len(runs) - sum(bool(run.metrics) for run in runs)
    if lost:
        print(f"{lost} of {len(runs)} jobs {'has' if lost == 1 else 'have'} no result")
    if every:
        for run, verdict in red:
            print(f"{run.folder}: {verdict.words()}")
    elif red and len(runs) > 1:
        print(f"{len(red)} of {len(runs)} runs {'is' if len(red) == 1 else 'are'} RED: --check prints why")
    for folder, why in report.problems.items():
        print(f"{folder}: {why}")
