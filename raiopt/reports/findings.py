"""What runs come to: for each question that was asked, the run that found most, in numbers and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raiopt.reports.runs import Run, differing_options, labels
from raiopt.reports.statistics import compare, wilson
from raiopt.results.tables import question
from raiopt.results.terminal import percent


@dataclass(frozen=True)
class Finding:
    """Runs that asked the same question: of one model, on the same data, in the same ball.

    Args:
        runs: Finished ones, the smallest robust accuracy first; the first is what was found.
    """

    runs: tuple[Run, ...]

    @property
    def best(self) -> Run:
        """The run that broke most."""
        return self.runs[0]

    @property
    def bounded(self) -> bool:
        """Whether the perturbations were held in a ball; without one, robust accuracy says little."""
        return self.best.record.get("ball") != "unbounded"

    @property
    def subject(self) -> str:
        """The question, in words."""
        record, samples = self.best.record, samples_of(self.best)
        model, data = ((record.get(part) or {}).get("name", part) for part in ("model", "data"))
        ball = record.get("ball") or "unbounded"
        return f"{model} on {samples:,} images of {data}, " + ("without a ball" if ball == "unbounded" else ball)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the best run's robust accuracy."""
        samples = samples_of(self.best)
        return wilson(round(self.best.metrics["robust_accuracy"] * samples), samples)

    @property
    def interval_words(self) -> str:
        """Its 95 % interval as one writes it."""
        low, high = self.interval
        return f"{100 * low:.1f} to {percent(high)}"

    def sentence(self) -> str:
        """Returns what was found in one line."""
        robust, runs = percent(self.best.metrics["robust_accuracy"]), len(self.runs)
        among = f"best of {runs:,} jobs" if runs > 1 else self.best.record.get("attack", "one job")
        return f"{self.subject}: {robust} robust ({self.interval_words}); {among}"

    def comparisons(self, defaults: Mapping[str, Any]) -> list[str]:
        """Returns how the best run compares with the second, and with the one that has the default settings.

        Args:
            defaults: The value of each option that is not given.
        """
        if len(self.runs) < 2:
            return []
        default = self._default(defaults)
        others = {1: "the second best"}
        if default:
            others[default] = (
                "the default settings" if default > 1 else "the second best, which has the default settings"
            )
        names, told = labels(self.runs), []
        for number, role in others.items():
            try:
                words = compare(self.best, self.runs[number]).words("the best", "the other")
            except ValueError as error:
                words = str(error)
            told.append(f"Against {role} ({names[number]}): {words}")
        return told

    def _default(self, defaults: Mapping[str, Any]) -> int | None:
        """Returns which run has the default settings where the runs differ."""
        options = differing_options(self.runs)
        has = [all(n in defaults and run.job.option(n) == defaults[n] for n in options) for run in self.runs]
        return has.index(True) if True in has else None


def find(runs: Sequence[Run]) -> list[Finding]:
    """Returns what the finished runs found, those questions first that have a ball, and of them those of most runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.metrics.get("robust_accuracy") is not None:
            groups.setdefault(question(run.job), []).append(run)
    found = [Finding(tuple(sorted(group, key=lambda run: run.metrics["robust_accuracy"]))) for group in groups.values()]
    return sorted(found, key=lambda finding: (not finding.bounded, -len(finding.runs)))


def samples_of(run: Run) -> int:
    """Returns on how many samples the run's figures are; 0 if it does not say."""
    return run.metrics.get("samples") or (run.record.get("data") or {}).get("samples") or 0
