"""The strongest attack for each combination of model, data and ball, in numbers and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raiopt.reports.runs import Run, differing_options, labels
from raiopt.reports.statistics import compare, wilson
from raiopt.results.records import comparison_key
from raiopt.results.words import percent


@dataclass(frozen=True)
class Finding:
    """The runs with the same model, data and ball.

    Args:
        runs: The finished runs, in ascending order of robust accuracy.
    """

    runs: tuple[Run, ...]

    @property
    def best(self) -> Run:
        """The run with the smallest robust accuracy."""
        return self.runs[0]

    @property
    def bounded(self) -> bool:
        """Whether a ball bounds the perturbations; without a ball, robust accuracy means little."""
        return self.best.record.ball.norm is not None

    @property
    def subject(self) -> str:
        """Model, data and ball, in words."""
        record, samples = self.best.record, self.best.count
        ball = str(record.ball) if self.bounded else "without a ball"
        return f"{record.model.name or 'model'} on {samples:,} images of {record.data.name or 'data'}, {ball}"

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the best run's robust accuracy."""
        samples = self.best.count
        return wilson(round(self.best.robust * samples), samples)

    @property
    def interval_words(self) -> str:
        """The interval as text."""
        low, high = self.interval
        return f"{100 * low:.1f} to {percent(high)}"

    def sentence(self) -> str:
        """Returns the result in one line."""
        robust, runs = percent(self.best.robust), len(self.runs)
        among = f"best of {runs:,} jobs" if runs > 1 else self.best.record.attack_words
        return f"{self.subject}: {robust} robust ({self.interval_words}); {among}"

    def comparisons(self, defaults: Mapping[str, Any]) -> list[str]:
        """Returns comparisons of the best run with the second best, and with the run with default settings.

        Args:
            defaults: The default value of each option.
        """
        if len(self.runs) < 2:
            return []
        default = self._default(defaults)
        others = {1: "the second best"}
        if default:
            others[default] = (
                "the default settings" if default > 1 else "the second best, which has the default settings"
            )
        names, lines = labels(self.runs), []
        for number, role in others.items():
            try:
                words = compare(self.best, self.runs[number]).words("the best", "the other")
            except ValueError as error:
                words = str(error)
            lines.append(f"Against {role} ({names[number]}): {words}")
        return lines

    def _default(self, defaults: Mapping[str, Any]) -> int | None:
        """Returns the index of the run with defaults in all options in which the runs differ; None if there is none."""
        options = differing_options(self.runs)
        has = [all(n in defaults and run.job.option(n) == defaults[n] for n in options) for run in self.runs]
        return has.index(True) if True in has else None


def find(runs: Sequence[Run]) -> list[Finding]:
    """Returns the findings of finished runs: those with a ball first, then by decreasing number of runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.metrics and run.metrics.robust_accuracy is not None:
            groups.setdefault(comparison_key(run.job), []).append(run)
    found = [Finding(tuple(sorted(group, key=lambda run: run.robust))) for group in groups.values()]
    return sorted(found, key=lambda finding: (not finding.bounded, -len(finding.runs)))
