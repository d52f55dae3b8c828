"""Signs, in the record of one run, that its attack failed: then robust accuracy is too high."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from raiopt.reports.runs import Run
from raiopt.results.terminal import percent


class Level(StrEnum):
    """How bad a sign or a verdict is; UNKNOWN: nothing was recorded that tells."""

    UNKNOWN = "unknown"
    GREEN = "green"
    AMBER = "amber"
    RED = "red"


@dataclass(frozen=True)
class Sign:
    """One reason to believe a number or not.

    Args:
        name: The same in all versions.
        level: GREEN: nothing wrong. AMBER: the number may well be too high. RED: it cannot be believed.
        found: What was found, a sentence with numbers.
        meaning: What it means if the sign is not green.
        remedy: Words to add to the command to find out more, as in ["criterion=margin"]; none if it is green.
    """

    name: str
    level: Level
    found: str
    meaning: str
    remedy: Sequence[str] = ()


ANY = 0.0
"""From this share on, if it is not 0: what no working attack does even once."""
UNVERIFIED = 0.01
"""Of attacked samples: as much as rankings of models differ by is lost between search and check."""
NOT_KEPT = 0.01
"""Of attacked samples: they are broken for certain, and counted as robust."""
NO_GRADIENT = 0.05
"""Of attacked samples: those were not attacked at all, and most likely others barely were."""
ZERO_STEPS, MOSTLY_ZERO = 0.1, 0.5
"""Of all steps: a tenth is more than a loss that saturates now and then; with half, the attack hardly moved."""
NOT_FINITE = 0.05
"""Of all samples: robust accuracy is open by that much."""
SATURATED = 0.05
"""Of all samples: their losses round to 0, and gradients may be lost to rounding though they exist."""
RISING, MOSTLY_RISING = 0.1, 0.5
"""Of survivors: a sign step of constant length rattles at the end, in a few samples; with half, the search was cut."""
STUCK, MOSTLY_STUCK = 0.1, 0.5
"""Of survivors: a random start may be the best point by luck; with half, there was no search."""
SHORT, MOSTLY_SHORT = 0.1, 0.5
"""Of survivors: the best point of a ball nearly always lies on its border; few are stuck in a maximum inside."""
MASKED = math.nextafter(0.002, 1)
"""Of all samples: AutoAttack warns where its last stage breaks more than 0.2 points (Croce and Hein, 2020)."""
RESTARTS = 0.1
"""Of survivors: where the start decides more than the search, more starts find more."""


@dataclass(frozen=True)
class Rule:
    """How a share of the record becomes a sign. Texts are formats with the names of the facts.

    Args:
        count: The fact that counts what is wrong, or the share of it where `of` is empty.
        of: The fact that counts all of them.
        amber: From this share on; a share of 0 is always green.
        red: From this share on; None: never.
        moot: It says nothing where no sample survived, as one that counts survivors.
        alone: It says nothing of samples that act together.
        missing: What keeps a run from having the fact that the remedy would give it.
    """

    name: str
    count: str
    of: str
    amber: float
    red: float | None
    found: str
    meaning: str
    remedy: tuple[str, ...] = ()
    moot: bool = False
    alone: bool = False
    missing: str = ""


RULES = (
    Rule(
        "verification",
        "unverified",
        "attacked",
        ANY,
        UNVERIFIED,
        "The search claims to have broken {claimed:,} samples, the check confirms {verified:,}.",
        "What the plain model does not confirm counts as robust, though a faster copy of it was fooled.",
        ("model.precision=float32", "model.fold=false"),
    ),
    Rule(
        "kept iterate",
        "fooled_not_kept",
        "attacked",
        ANY,
        NOT_KEPT,
        "{fooled_not_kept:,} of {attacked:,} samples were fooled on the way, and what was kept does not fool.",
        "These samples are broken and count as robust.",
        ("solver.use_best=true",),
        alone=True,
    ),
    Rule(
        "determinism",
        "nondeterministic",
        "",
        ANY,
        ANY,
        "Two answers of the model to the same images differ by {nondeterministic:.2g} of the largest logit.",
        "The gradients point elsewhere each time, and what broke once may not break again.",
    ),
    Rule(
        "probabilities",
        "probabilities",
        "",
        ANY,
        None,
        "The model returns {answer}.",
        "Gradients through softmax vanish where the model is sure. Let it return logits.",
        moot=True,
    ),
    Rule(
        "no gradient",
        "never_a_gradient",
        "attacked",
        ANY,
        NO_GRADIENT,
        "{never_a_gradient:,} of {attacked:,} samples never had a gradient.",
        "Nothing moved these samples: that they were not broken says nothing of the model.",
        ("criterion=margin", "{start}"),
        moot=True,
    ),
    Rule(
        "zero gradients",
        "zero_gradient_share",
        "",
        ZERO_STEPS,
        MOSTLY_ZERO,
        "The gradient was exactly zero in {zero_steps} of the steps.",
        "The network or the loss masks gradients, and the attack stands still there.",
        ("criterion=margin", "{start}"),
        moot=True,
    ),
    Rule(
        "not finite",
        "not_finite",
        "samples",
        ANY,
        NOT_FINITE,
        "{not_finite:,} of {samples:,} samples had an output or a gradient that was not finite.",
        "Their search ended there; those that were not broken before count neither as robust nor as broken.",
        ("model.precision=float32",),
    ),
    Rule(
        "saturation",
        "saturated",
        "samples",
        SATURATED,
        None,
        "{saturated:,} of {samples:,} clean predictions have a probability of exactly 1 in float32; "
        "the loss is {criterion}.",
        "A loss on probabilities rounds to 0 there, and its gradient may as well.",
        ("criterion=margin",),
        moot=True,
    ),
    Rule(
        "progress",
        "not_climbed",
        "survivors",
        STUCK,
        MOSTLY_STUCK,
        "The loss of {not_climbed:,} of {survivors:,} survivors never rose above that at the start.",
        "No step helped: the step size is 0 or far too large, or the gradients point the wrong way.",
        ("criterion=margin",),
        alone=True,
    ),
    Rule(
        "convergence",
        "still_rising",
        "survivors",
        RISING,
        MOSTLY_RISING,
        "The loss of {still_rising:,} of {survivors:,} survivors still rose in the last tenth of the steps.",
        "The search ended too early: with more steps, more would break.",
        ("{more_steps}", "{more_passes}"),
        alone=True,
    ),
    Rule(
        "reach",
        "short_of_ball",
        "survivors",
        SHORT,
        MOSTLY_SHORT,
        "The perturbation of {short_of_ball:,} of {survivors:,} survivors is shorter than 90 % of epsilon.",
        "The attack does not use its ball: steps too small or too few, or gradients that lead nowhere.",
        ("{more_steps}", "{more_passes}", "{start}"),
    ),
    Rule(
        "restarts",
        "restarts_differ",
        "survivors",
        RESTARTS,
        None,
        "For {restarts_differ:,} of {survivors:,} survivors the restarts end further apart than the search climbed.",
        "Where it starts decides more than the search: more starts or more steps would find more.",
        ("solver.restarts={more_restarts}", "{start}"),
        alone=True,
        missing="Each sample had one start.",
    ),
    Rule(
        "gradient free",
        "without_gradients",
        "samples",
        ANY,
        MASKED,
        "A stage without gradients broke {without_gradients:,} of {samples:,} samples that held against gradients.",
        "The network masks its gradients: what follows them misses examples that are there.",
        missing="No stage without gradients ran behind one with them.",
        moot=True,
    ),
)
NOT_SATURATING = ("margin", "dlr", "targeted_dlr")
"""Losses of logits, which do not round to 0 where the model is sure."""
STARTS = {"linf": "uniform_linf", "l2": "uniform_l2", "l1": "uniform_l1"}


def own_signs(run: Run) -> list[Sign]:
    """Returns what the run's own record tells, a sign a rule."""
    facts = facts_of(run)
    return [_judged(rule, facts) for rule in RULES]


def facts_of(run: Run) -> dict[str, Any]:
    """Returns the numbers of the record, under the names that rules and texts use; none is there if it is not known."""
    record, choices = run.record, run.record.get("choices") or {}
    facts: dict[str, Any] = {**run.metrics, **(record.get("signs") or {})}
    if "claimed" in facts and "verified" in facts:
        facts["unverified"] = abs(facts["claimed"] - facts["verified"])
    if run.metrics and "inference" in record:
        told = record["inference"]
        facts["nondeterministic"] = told.get("nondeterministic", 0.0)
        facts["probabilities"] = float(told.get("probabilities", False))
        facts["answer"] = "probabilities" if facts["probabilities"] else "logits"
    if (broken := _without_gradients(record.get("stages") or [])) is not None:
        facts["without_gradients"] = broken
    facts["zero_steps"] = percent(facts.get("zero_gradient_share"))
    facts["criterion"] = choices.get("criterion", "not known")
    restarts, limit = (run.job.options.get(f"solver.{name}") for name in ("restarts", "max_passes"))
    random = choices.get("init", "zero") != "zero"
    return {
        **facts,
        "harmless": "saturated" if facts["criterion"] in NOT_SATURATING else "",
        "coupled": bool(record.get("coupled")),
        "more_steps": _more_steps(record),
        "more_passes": f"solver.max_passes={4 * limit}" if isinstance(limit, int) else "",
        "more_restarts": 4 * restarts if isinstance(restarts, int) and restarts > 1 else 5,
        "start": "" if random else f"init={STARTS.get(record.get('norm') or '', 'gaussian')}",
    }


def _more_steps(record: Mapping[str, Any]) -> str:
    """Returns the word that makes the search longer; of several stages that which survivors have their traces of."""
    stages = [stage for stage in record.get("stages") or [] if stage.get("attacked", True)] or [{}]
    stage = next((each for each in reversed(stages) if not each.get("gradient_free")), stages[-1])
    words = {str(word).partition("=")[0]: str(word) for word in stage.get("words", ())}
    found = re.search(r"(\d+) steps", record.get("attack") or "")
    word = f"solver.steps={4 * max(10, stage.get('steps') or int(found[1] if found else 100))}"
    changed = ",".join({**words, "solver.steps": word}.values())
    return f"stages.{stage['name']}=[{changed}]" if "solver.steps" in words else word


def _without_gradients(stages: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns how many samples broke in stages without gradients behind one with them; None if none tried any."""
    free = [bool(stage.get("gradient_free")) for stage in stages]
    behind = stages[free.index(False) :] if False in free else []
    broken = [stage["broken"] for stage in behind if stage.get("gradient_free") and stage.get("attacked")]
    return sum(broken) if broken else None


def _judged(rule: Rule, facts: dict[str, Any]) -> Sign:
    count, of = facts.get(rule.count), facts.get(rule.of) if rule.of else 1
    if facts.get("survivors") == 0 and (rule.moot or rule.of == "survivors"):
        return Sign(rule.name, Level.GREEN, "No sample survived the attack.", rule.meaning)
    if rule.alone and facts["coupled"]:
        why = "One perturbation is kept for samples that act together, whatever becomes of one of them."
        return Sign(rule.name, Level.UNKNOWN, why, rule.meaning)
    words = [text.format_map(facts) for text in rule.remedy]
    remedy = [word for word in words if word not in ("", f"criterion={facts['criterion']}")]
    if count is None or of is None:
        if of is None or not rule.missing:
            return Sign(rule.name, Level.UNKNOWN, _why_unknown(facts), rule.meaning)
        return Sign(rule.name, Level.UNKNOWN, rule.missing, rule.meaning, remedy)
    share = count / of if of and facts["harmless"] != rule.count else 0.0
    level = level_of(share, rule.amber, rule.red)
    found = rule.found.format_map(facts)
    return Sign(rule.name, level, found, rule.meaning, [] if level is Level.GREEN else remedy)


def _why_unknown(facts: dict[str, Any]) -> str:
    return "It does not apply to this attack." if "survivors" in facts else "The run did not record it."


def level_of(share: float, amber: float, red: float | None) -> Level:
    """Returns how bad a share is; 0 is never bad."""
    if share <= 0 or share < amber:
        return Level.GREEN
    return Level.RED if red is not None and share >= red else Level.AMBER
