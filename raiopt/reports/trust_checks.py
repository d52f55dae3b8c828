"""Checks for a failed attack, which makes robust accuracy too high, from the record of a single run."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from raiopt.reports.runs import Run
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


ANY = 0.0
"""Any share above 0, because this never happens in a working attack."""
RED_UNVERIFIED = 0.01
"""Share of attacked samples: model rankings often differ by as little."""
RED_NOT_KEPT = 0.01
"""Share of attacked samples: they have an adversarial example, but count as robust."""
RED_NO_GRADIENT = 0.05
"""Share of attacked samples: these effectively were not attacked, and the attack was probably weak on the others."""
AMBER_ZERO_STEPS, RED_ZERO_STEPS = 0.1, 0.5
"""Shares of all steps: a tenth is more than occasional saturation of the loss; at half, the attack hardly moved."""
RED_NOT_FINITE = 0.05
"""Share of all samples: robust accuracy is uncertain by this amount."""
AMBER_SATURATED = 0.05
"""Share of all samples: their losses round to 0, and their gradients may be lost to rounding."""
AMBER_RISING, RED_RISING = 0.1, 0.5
"""Shares of survivors: constant sign steps oscillate at the end for a few samples; at half, the search was cut off."""
AMBER_STUCK, RED_STUCK = 0.1, 0.5
"""Shares of survivors: a random start may be the best point by chance; at half, the search did nothing."""
AMBER_SHORT, RED_SHORT = 0.1, 0.5
"""Share of survivors: the best point in a ball is nearly always on its surface; few get stuck in a maximum inside."""
RED_MASKED = math.nextafter(0.002, 1)
"""Share of all samples: AutoAttack warns if its last stage gains more than 0.2 points (Croce and Hein, 2020)."""
AMBER_RESTARTS = 0.1
"""Share of survivors: if the start matters more than the search, more restarts find more adversarial examples."""


@dataclass(frozen=True)
class Rule:
    """Maps a share to the outcome of a check. Texts are format strings with the names of facts.

    Args:
        count: The fact with the number of problematic samples, or with their share if `of` is empty.
        of: The fact with the total number.
        amber: The smallest share that is AMBER; a share of 0 is always GREEN.
        red: The smallest share that is RED; None: never.
        needs_survivors: Whether the check is meaningless if no sample survived, because it counts survivors.
        needs_independent: Whether the check is meaningless if the samples of a batch share a perturbation.
        missing: Shown if the run lacks this value and the remedy would produce it.
    """

    name: str
    count: str
    of: str
    amber: float
    red: float | None
    found: str
    meaning: str
    remedy: tuple[str, ...] = ()
    needs_survivors: bool = False
    needs_independent: bool = False
    missing: str = ""


RULES = (
    Rule(
        "verification",
        "unverified",
        "attacked",
        ANY,
        RED_UNVERIFIED,
        "The search claims {claimed:,} successes, the verification confirms {verified:,}.",
        "What the original model does not confirm counts as robust, although its faster copy was fooled.",
        ("model.precision=float32", "model.fold=false"),
    ),
    Rule(
        "kept iterate",
        "fooled_not_kept",
        "attacked",
        ANY,
        RED_NOT_KEPT,
        "{fooled_not_kept:,} of {attacked:,} samples were fooled at a step, but not by the kept iterate.",
        "These samples have an adversarial example and count as robust.",
        ("solver.use_best=true",),
        needs_independent=True,
    ),
    Rule(
        "determinism",
        "nondeterministic",
        "",
        ANY,
        ANY,
        "Two outputs of the model for the same images differ by {nondeterministic:.2g} of the largest logit.",
        "The gradients differ each time, and an adversarial example may not be one again.",
    ),
    Rule(
        "probabilities",
        "probabilities",
        "",
        ANY,
        None,
        "The model returns {answer}.",
        "Gradients through softmax vanish at high confidence. Let the model return logits.",
        needs_survivors=True,
    ),
    Rule(
        "no gradient",
        "never_a_gradient",
        "attacked",
        ANY,
        RED_NO_GRADIENT,
        "{never_a_gradient:,} of {attacked:,} samples never had a gradient.",
        "These samples never moved: their survival says nothing about the model.",
        ("criterion=margin", "{start}"),
        needs_survivors=True,
    ),
    Rule(
        "zero gradients",
        "zero_gradient_share",
        "",
        AMBER_ZERO_STEPS,
        RED_ZERO_STEPS,
        "The gradient was exactly zero in {zero_steps} of the steps.",
        "The network or the loss masks gradients, and the attack does not move there.",
        ("criterion=margin", "{start}"),
        needs_survivors=True,
    ),
    Rule(
        "not finite",
        "not_finite",
        "samples",
        ANY,
        RED_NOT_FINITE,
        "{not_finite:,} of {samples:,} samples had an output or a gradient that was not finite.",
        "Their search ended there; without an earlier success they count neither as robust nor as successful.",
        ("model.precision=float32",),
    ),
    Rule(
        "saturation",
        "saturated",
        "samples",
        AMBER_SATURATED,
        None,
        "{saturated:,} of {samples:,} clean predictions have a probability of exactly 1 in float32; "
        "the loss is {criterion}.",
        "A loss of probabilities rounds to 0 there, and its gradient may too.",
        ("criterion=margin",),
        needs_survivors=True,
    ),
    Rule(
        "progress",
        "not_climbed",
        "survivors",
        AMBER_STUCK,
        RED_STUCK,
        "The loss of {not_climbed:,} of {survivors:,} survivors never rose above its value at the start.",
        "No step helped: the step size is 0 or far too large, or the gradients are misleading.",
        ("criterion=margin",),
        needs_independent=True,
    ),
    Rule(
        "convergence",
        "still_rising",
        "survivors",
        AMBER_RISING,
        RED_RISING,
        "The loss of {still_rising:,} of {survivors:,} survivors still rose in the last tenth of the steps.",
        "The search ended too early: more steps would find more adversarial examples.",
        ("{more_steps}", "{more_passes}"),
        needs_independent=True,
    ),
    Rule(
        "reach",
        "short_of_ball",
        "survivors",
        AMBER_SHORT,
        RED_SHORT,
        "The perturbation of {short_of_ball:,} of {survivors:,} survivors is shorter than 90 % of epsilon.",
        "The attack does not use its ball: steps are too small or too few, or gradients are misleading.",
        ("{more_steps}", "{more_passes}", "{start}"),
    ),
    Rule(
        "restarts",
        "restarts_differ",
        "survivors",
        AMBER_RESTARTS,
        None,
        "For {restarts_differ:,} of {survivors:,} survivors, restarts differ by more than the search gained.",
        "The start matters more than the search: more restarts or more steps would find more.",
        ("solver.restarts={more_restarts}", "{start}"),
        needs_independent=True,
        missing="Each sample had one start only.",
    ),
    Rule(
        "gradient free",
        "without_gradients",
        "samples",
        ANY,
        RED_MASKED,
        "A stage without gradients succeeded on {without_gradients:,} of {samples:,} samples that resisted gradients.",
        "The network masks its gradients: an attack that follows them misses adversarial examples.",
        missing="No stage without gradients ran after one with gradients.",
        needs_survivors=True,
    ),
)
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
