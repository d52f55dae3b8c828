"""Checks for a failed attack, which makes robust accuracy too high, from the record of a single run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from raiopt.reports.runs import Run
from raiopt.reports.trust_rules import RULES, Rule
from raiopt.results.record import Record, StageRecord
from raiopt.results.words import percent


class Level(StrEnum):
    """The outcome of one check or of all checks; UNKNOWN: the check could not run."""

    UNKNOWN = "unknown"
    GREEN = "green"
    AMBER = "amber"
    RED = "red"


@dataclass(frozen=True)
class TrustCheck:
    """The outcome of one check of a run's robust accuracy.

    Args:
        name: The name of the check, which is the same in all versions.
        level: GREEN: nothing wrong. AMBER: robust accuracy may be too high. RED: it cannot be trusted.
        found: The result, a sentence with numbers.
        meaning: The consequence if the check is not green.
        remedy: Options to add to the command, as in ["criterion=margin"]; empty if it is green.
    """

    name: str
    level: Level
    found: str
    meaning: str
    remedy: Sequence[str] = ()


NOT_SATURATING = ("margin", "dlr", "targeted_dlr")
"""Losses on logits, which do not round to 0 at high confidence."""
STARTS = {"linf": "uniform_linf", "l2": "uniform_l2", "l1": "uniform_l1"}


def own_checks(run: Run) -> list[TrustCheck]:
    """Returns the checks that need only the run's own record, one for each rule."""
    facts = facts_of(run)
    return [_checked(rule, facts) for rule in RULES]


def facts_of(run: Run) -> dict[str, Any]:
    """Returns the facts used by rules and texts, by name; facts that the record lacks are left out."""
    record, metrics = run.record, run.metrics
    facts = asdict(metrics) if metrics else {}
    facts |= asdict(record.checks) if record.checks else {}
    facts = {name: value for name, value in facts.items() if value is not None and (value or name != "samples")}
    if "claimed" in facts and "verified" in facts:
        facts["unverified"] = abs(facts["claimed"] - facts["verified"])
    if metrics and record.inference is not None:
        facts["nondeterministic"] = record.inference.nondeterministic
        facts["probabilities"] = float(record.inference.probabilities)
        facts["answer"] = "probabilities" if record.inference.probabilities else "logits"
    if (successes := _without_gradients(record.stages)) is not None:
        facts["without_gradients"] = successes
    facts["zero_steps"] = percent(facts.get("zero_gradient_share"))
    facts["criterion"] = record.choices.get("criterion", "not known")
    restarts, limit = record.attack.restarts, record.attack.max_passes
    is_random = record.choices.get("init", "zero") != "zero"
    return {
        **facts,
        "harmless": "saturated" if facts["criterion"] in NOT_SATURATING else "",
        "coupled": record.coupled,
        "more_steps": _more_steps(record),
        "more_passes": "" if limit is None else f"solver.max_passes={4 * limit}",
        "more_restarts": 4 * restarts if restarts and restarts > 1 else 5,
        "start": "" if is_random else f"init={STARTS.get(record.ball.norm or '', 'gaussian')}",
    }


def _more_steps(record: Record) -> str:
    """Returns the option for a longer search; with several stages, for the stage that traced the survivors."""
    stages = [stage for stage in record.stages if stage.attacked != 0] or [StageRecord(steps=record.attack.steps)]
    stage = next((each for each in reversed(stages) if not each.gradient_free), stages[-1])
    words = {word.partition("=")[0]: word for word in stage.words}
    word = f"solver.steps={4 * max(10, stage.steps or record.attack.steps or 100)}"
    changed = ",".join({**words, "solver.steps": word}.values())
    return f"stages.{stage.name}=[{changed}]" if "solver.steps" in words else word


def _without_gradients(stages: Sequence[StageRecord]) -> int | None:
    """Returns the successes of gradient-free stages after gradient-based ones; None if these attacked no sample."""
    is_free = [stage.gradient_free for stage in stages]
    later = stages[is_free.index(False) :] if False in is_free else []
    successes = [stage.broken for stage in later if stage.gradient_free and stage.attacked]
    return sum(successes) if successes else None


def _checked(rule: Rule, facts: dict[str, Any]) -> TrustCheck:
    count, of = facts.get(rule.count), facts.get(rule.of) if rule.of else 1
    if facts.get("survivors") == 0 and (rule.needs_survivors or rule.of == "survivors"):
        return TrustCheck(rule.name, Level.GREEN, "No sample survived the attack.", rule.meaning)
    if rule.needs_independent and facts["coupled"]:
        why = "The samples of a batch share a perturbation, which is kept whatever becomes of one of them."
        return TrustCheck(rule.name, Level.UNKNOWN, why, rule.meaning)
    words = [text.format_map(facts) for text in rule.remedy]
    remedy = [word for word in words if word not in ("", f"criterion={facts['criterion']}")]
    if count is None or of is None:
        if of is None or not rule.missing:
            return TrustCheck(rule.name, Level.UNKNOWN, _why_unknown(facts), rule.meaning)
        return TrustCheck(rule.name, Level.UNKNOWN, rule.missing, rule.meaning, remedy)
    share = count / of if of and facts["harmless"] != rule.count else 0.0
    level = level_of(share, rule.amber, rule.red)
    found = rule.found.format_map(facts)
    return TrustCheck(rule.name, level, found, rule.meaning, [] if level is Level.GREEN else remedy)


def _why_unknown(facts: dict[str, Any]) -> str:
    return "It does not apply to this attack." if "survivors" in facts else "The run did not record it."


def level_of(share: float, amber: float, red: float | None) -> Level:
    """Returns the level of a share; 0 is always GREEN."""
    if share <= 0 or share < amber:
        return Level.GREEN
    return Level.RED if red is not None and share >= red else Level.AMBER
