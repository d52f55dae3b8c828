"""The report on runs: a self-contained HTML page."""

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raiopt import __version__
from raiopt.reports import sections, series
from raiopt.reports.findings import Finding, find
from raiopt.reports.runs import Run, differing_options, labels
from raiopt.reports.trust import Verdict, verdicts
from raiopt.reports.trust_checks import Level
from raiopt.results.files import make_folder, replace_file
from raiopt.results.pictures import KINDS
from raiopt.results.tables import jobs_frame
from raiopt.results.terminal import stage_rows
from raiopt.results.words import percent

MAX_CURVES = 12
"""The largest numbers of runs that are drawn step by step and shown in detail, and of curves over the radius."""

RADII = ("norm", "scope"), ("epsilon", "robust", "low", "high")
PROGRESS = (), ("step", "passes", "loss", "loss_low", "loss_high", "fooled_so_far")
"""The columns that are constant within a curve, and the drawn columns."""
WORST_FIRST = [Level.RED, Level.AMBER, Level.GREEN, Level.UNKNOWN]


@dataclass(frozen=True)
class Report:
    """The content of the report, and its HTML page.

    Args:
        findings: The findings, those with most runs first; empty if no run is finished.
        verdicts: The verdict on each run, in the order of the runs.
        problems: Why files of finished runs could not be read, by the run's folder.
        html: The page.
    """

    findings: list[Finding]
    verdicts: list[Verdict]
    problems: dict[str, str]
    html: str = field(repr=False)

    def save(self, file: Path, *, replace: bool = False) -> None:
        """Writes the page.

        Raises:
            FileExistsError: If the file exists and must not be replaced.
        """
        check_free(file, replace=replace)
        make_folder(file.parent, parents=True)
        page = self.html.encode("utf-8", "xmlcharrefreplace")  # a name may contain a lone surrogate
        replace_file(file, lambda temporary: temporary.write_bytes(page))


def check_free(file: Path, *, replace: bool) -> None:
    """Raises FileExistsError if the file exists and must not be replaced."""
    if os.path.lexists(file) and not replace:
        raise FileExistsError(f"{file} exists: --force replaces it, --out FILE writes another one.")


def make_report(
    runs: Sequence[Run], title: str, defaults: Mapping[str, Any] = MappingProxyType({}), figures: str | None = None
) -> Report:
    """Returns the report of runs, finished or not.

    Args:
        title: The heading of the page.
        defaults: The default value of each option; the best run is compared with the run with these values.
        figures: The folder of the figures, relative to the page; None if there are no figures.
    """
    problems: dict[str, str] = {}
    findings, names = find(runs), labels(runs)
    name_of = {run.folder: name for name, run in zip(names, runs, strict=True)}
    judged = verdicts(runs)
    verdict_of = dict(zip(name_of, judged, strict=True))
    drawn = sections.best_first(findings, MAX_CURVES)
    finished = [run for run in runs if run.metrics]
    radii = [c for c in sections.curves(series.epsilon_curves(finished, problems), *RADII) if len(c["epsilon"]) > 2]
    data = {
        "epsilon": sorted(radii, key=lambda curve: curve["robust"][-1])[:MAX_CURVES]
        if len(radii) > MAX_CURVES
        else radii,
        "steps": sections.curves(series.step_curves(drawn, problems), *PROGRESS),
        **sections.grid(finished, [name_of[run.folder] for run in finished], findings),
    }
    options = differing_options(runs)
    frame = jobs_frame([run.job for run in runs], options)
    html = _page(
        title=title,
        made=datetime.now(UTC).strftime("%Y-%m-%d"),
        version=__version__,
        figures=figures,
        findings=findings,
        comparisons=findings[0].comparisons(defaults) if findings else [],
        verdict_of=verdict_of,
        name_of=name_of,
        options=options,
        numeric=[name for name in options if frame[name].dtype.is_numeric()],
        several_balls=len({str(run.record.ball) for run in finished}) > 1,
        jobs=_jobs(runs, frame),
        closer=sections.closer(drawn, [name_of[run.folder] for run in drawn], problems),
        origin=sections.origin(runs),
        command_of={run.folder: shlex.join(run.record.command) for run in runs},
        problems=problems,
        finished=len(finished),
        radii=len(radii),
        data=data,
    )
    return Report(findings, judged, problems, html)


def _jobs(runs: Sequence[Run], frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Returns one row per run: its row in the sweep's table, and the interval of its robust accuracy."""
    points = {point["run"]: point for point in series.job_points(runs).iter_rows(named=True)}
    unknown = {"passes": None, "low": None, "high": None}
    return [
        {**row, **unknown, **points.get(str(run.folder), {}), "run": run, "row": row}
        for run, row in zip(runs, frame.iter_rows(named=True), strict=True)
    ]


def _page(data: dict[str, Any], **content: Any) -> str:
    """Returns the page; its content security policy allows only exactly these scripts, and no network access."""
    page = resources.files("raiopt.reports") / "page"
    plotly = resources.files("plotly") / "package_data" / "plotly.min.js"
    scripts = [file.read_text(encoding="utf-8") for file in (plotly, page / "plots.js", page / "report.js")]
    environment = Environment(
        loader=PackageLoader("raiopt.reports", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _unbroken, "words": sections.value_words, "short": sections.short}
    allowed = " ".join(map(_hash, scripts))
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"
    return environment.get_template("report.html").render(
        **content,
        data=data,
        json=Markup(as_json(data)),
        policy=policy,
        style=Markup((page / "report.css").read_text(encoding="utf-8")),
        scripts=[Markup(script) for script in scripts],
        shares=sections.shares,
        kinds=KINDS,
        stage_rows=stage_rows,
        rank=WORST_FIRST.index,
        quoted=lambda folder: shlex.quote(str(folder)),
    )


def _unbroken(share: float | None) -> str:
    return percent(share).replace(" ", "\u00a0")  # no line break before the percent sign


def as_json(value: Any) -> str:
    """Returns JSON that is safe inside a script element, whatever strings it contains.

    >>> as_json("</script><!--")
    '"\\\\u003c/script\\\\u003e\\\\u003c!--"'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
