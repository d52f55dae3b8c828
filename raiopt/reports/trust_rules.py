"""The rules of the checks for a failed attack, and their thresholds."""

import math
from dataclasses import dataclass

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
