"""The verdict on a run's robust accuracy: checks for a failed attack, using the run itself and comparable runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from raiopt.reports.peers import Peers
from raiopt.reports.runs import Run
from raiopt.reports.trust_checks import Level, TrustCheck, own_checks
from raiopt.results.words import joined, plural

WORDS = {
    Level.GREEN: "No check found a failed attack. This is no proof: a stronger attack may succeed more often.",
    Level.AMBER: "Robust accuracy may be too high",
    Level.RED: "Robust accuracy cannot be trusted",
    Level.UNKNOWN: "The run recorded nothing to check.",
}
NEEDS = {
    "restarts": "restarts",
    "gradient free": "a stage without gradients",
    "larger epsilon": "other radii",
    "huge epsilon": "other radii",
    "stronger attack": "other attacks",
    "seeds": "other seeds",
}
"""What each check needs that a single run may lack."""


@dataclass(frozen=True)
class Verdict:
    """Whether to trust a run's robust accuracy.

    Args:
        level: The worst level of its checks; checks with an unknown outcome do not make it worse.
        checks: All checks, always in the same order.
    """

    level: Level
    checks: Sequence[TrustCheck]

    @property
    def worst(self) -> list[TrustCheck]:
        """The checks that are AMBER or RED."""
        return [check for check in self.checks if check.level in (Level.AMBER, Level.RED)]

    def words(self) -> str:
        """Returns the verdict as a short text.

        >>> Verdict(Level.RED, [TrustCheck("reach", Level.RED, "All 5 survivors are short of epsilon.", "")]).words()
        'RED: Robust accuracy cannot be trusted (reach). All 5 survivors are short of epsilon.'
        """
        worst = [check for check in self.worst if check.level is self.level]
        names = f" ({', '.join(check.name for check in worst)}). {worst[0].found}" if worst else ""
        return f"{self.level.upper()}: {WORDS[self.level]}{names}{self._open_checks()}"

    def _open_checks(self) -> str:
        """Returns how many checks ran, and what the others need; empty unless the verdict is GREEN."""
        missing = [check for check in self.checks if check.level is Level.UNKNOWN]
        if self.level is not Level.GREEN or not missing:
            return ""
        needs = [NEEDS[check.name] for check in missing if check.name in NEEDS]
        idle = len(missing) - len(needs)
        parts = [f"{len(self.checks) - len(missing)} of {plural(len(self.checks), 'check')} ran, none fired"]
        if needs:
            parts.append(f"{len(needs)} need{'s' * (len(needs) == 1)} {joined(dict.fromkeys(needs), 'or')}")
        if idle:
            parts.append(f"{idle} do{'es' * (idle == 1)} not apply")
        return f" {'; '.join(parts)}."


def judge(run: Run, others: Sequence[Run] = ()) -> Verdict:
    """Returns the verdict on a run's robust accuracy, from the records of runs.

    Args:
        others: Runs to compare it with, such as those of its sweep; runs with other weights, data or norms are ignored.
            For many runs at once, see `verdicts`.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from raiopt import load_run
    >>> folder = Path(tempfile.mkdtemp())
    >>> metrics = {"samples": 50, "attacked": 50, "claimed": 40, "verified": 30, "robust_accuracy": 0.4}
    >>> _ = (folder / "run.json").write_text(json.dumps({"schema": 2, "status": "finished", "metrics": metrics}))
    >>> verdict = judge(load_run(folder))
    >>> print(verdict.words())
    RED: Robust accuracy cannot be trusted (verification). The search claims 40 successes, the verification confirms 30.
    >>> verdict.checks[0].remedy
    ['model.precision=float32', 'model.fold=false']
    """
    return _verdict(run, Peers([run, *others]))


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    """Returns the verdict on each run, comparing it with all the others; see `judge`."""
    peers = Peers(runs)
    return [_verdict(run, peers) for run in runs]


def _verdict(run: Run, peers: Peers) -> Verdict:
    return verdict_of([*own_checks(run), *peers.checks(run)])


def verdict_of(checks: Sequence[TrustCheck]) -> Verdict:
    """Returns the verdict that follows from these checks."""
    order = list(Level)
    return Verdict(max((check.level for check in checks), key=order.index), checks)
