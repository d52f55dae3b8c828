"""Whether the robust accuracy of a run can be believed: the signs of a failed attack, in it and in runs beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from raiopt.reports.peers import Peers
from raiopt.reports.runs import Run
from raiopt.reports.signs import Level, Sign, own_signs

WORDS = {
    Level.GREEN: "No sign of a failed attack. This is no proof: robust accuracy is what this attack could not break, "
    "and a stronger one may break more.",
    Level.AMBER: "Robust accuracy may well be too high",
    Level.RED: "Robust accuracy cannot be believed",
    Level.UNKNOWN: "The run left nothing to judge it by.",
}


@dataclass(frozen=True)
class Verdict:
    """What to think of a run's robust accuracy.

    Args:
        level: The worst of its signs; what is unknown makes it no worse.
        signs: All of them, always in the same order.
    """

    level: Level
    signs: Sequence[Sign]

    def words(self) -> str:
        """Returns the verdict in a line or two, for people.

        >>> Verdict(Level.RED, [Sign("reach", Level.RED, "All 5 survivors are short of epsilon.", "")]).words()
        'RED: Robust accuracy cannot be believed (reach). All 5 survivors are short of epsilon.'
        """
        worst = [sign for sign in self.signs if sign.level is self.level]
        unknown = sum(sign.level is Level.UNKNOWN for sign in self.signs)
        told = f"{self.level.upper()}: {WORDS[self.level]}"
        if self.level in (Level.AMBER, Level.RED):
            told += f" ({', '.join(sign.name for sign in worst)}). {worst[0].found}"
        elif self.level is Level.GREEN and unknown:
            told += f" {unknown} of {len(self.signs)} signs could not be looked for."
        return told


def judge(run: Run, others: Sequence[Run] = ()) -> Verdict:
    """Returns the verdict on a run's robust accuracy, from records alone.

    Args:
        others: Runs to compare it with, as those of its sweep; of other weights, data or norms they do not count. Those
            of many runs at once are `verdicts`.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from raiopt import load_run
    >>> folder = Path(tempfile.mkdtemp())
    >>> figures = {"samples": 50, "attacked": 50, "claimed": 40, "verified": 30, "robust_accuracy": 0.4}
    >>> _ = (folder / "run.json").write_text(json.dumps({"schema": 1, "status": "finished", "metrics": figures}))
    >>> verdict = judge(load_run(folder))
    >>> print(verdict.words())
    RED: Robust accuracy cannot be believed (verification). The search claims to have broken 40 samples, the check
    confirms 30.
    >>> verdict.signs[0].remedy
    ['model.precision=float32', 'model.fold=false']
    """
    return _verdict(run, Peers([run, *others]))


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    """Returns the verdict on each of the runs, with all of them as the others; see `judge`."""
    peers = Peers(runs)
    return [_verdict(run, peers) for run in runs]


def _verdict(run: Run, peers: Peers) -> Verdict:
    return verdict_of([*own_signs(run), *peers.signs(run)])


def verdict_of(signs: Sequence[Sign]) -> Verdict:
    """Returns the verdict that signs come to."""
    order = list(Level)
    return Verdict(max((sign.level for sign in signs), key=order.index), signs)
