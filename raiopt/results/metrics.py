"""The figures of a job, from its table of samples alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

RIGHT = (pl.col("clean_prediction") == pl.col("label")).fill_null(False)
BROKEN = pl.col("verified").fill_null(False)
DECIDED = ~pl.col("undecided").fill_null(False) & (pl.col("stopped") != "not_finite").fill_null(True)
ROBUST = RIGHT & ~BROKEN & DECIDED
"""What counts as robust, of a row of the table of samples: predicted right, and neither broken nor undecided."""


def metrics(
    samples: pl.LazyFrame, epsilons: Sequence[float] | None = None, *, targeted: bool = False
) -> dict[str, Any]:
    """Returns the figures of a job from its table of samples, of a targeted one how many reached the target.

    Shares are of all samples. Robust are those that are predicted right and neither verified as broken nor undecided;
    norms are over the verified perturbations, None where there is none. With several radii, `robust_accuracies` says
    how many are robust at each of `epsilons`.
    """
    norms = [pl.col(n).filter(pl.col("verified")) for n in ("l0", "l1", "l2", "linf")]
    row = samples.select(
        samples=pl.len(),
        clean_accuracy=RIGHT.mean(),
        robust_accuracy=ROBUST.mean(),
        robust_accuracies=pl.concat_list(
            [(RIGHT & ~(BROKEN & (pl.col("epsilon") <= e)).fill_null(False) & DECIDED).mean() for e in epsilons or []]
        )
        if epsilons
        else None,
        undecided=(~DECIDED).sum(),
        attacked=pl.col("forward_passes").count(),
        claimed=pl.col("claimed").sum(),
        verified=pl.col("verified").sum(),
        verified_8bit=pl.when(pl.col("verified_8bit").count() > 0).then(pl.col("verified_8bit").sum()),
        zero_gradients_at_start=pl.col("zero_at_start").sum(),
        never_a_gradient=((pl.col("zero_gradients") >= pl.col("steps")) & (pl.col("steps") > 0)).sum(),
        reached=(pl.col("verified") & (pl.col("adversarial_prediction") == pl.col("target"))).sum(),
        forward_passes=pl.col("forward_passes").sum(),
        backward_passes=pl.col("backward_passes").sum(),
        **{f"median_{n.meta.output_name()}": n.median() for n in norms},
        **{f"largest_{n.meta.output_name()}": n.max() for n in norms},
    )
    figures = row.collect().row(0, named=True)
    reached = figures.pop("reached")
    if targeted:
        figures["target_reached"] = reached / figures["attacked"] if figures["attacked"] else None
    if epsilons:
        figures["epsilons"] = list(epsilons)
    else:
        del figures["robust_accuracies"]
    return figures


RISING, RISING_AT_LEAST = 0.05, 1e-3
"""A loss still rises if this share of its rise came late, and at least so much of it."""
NEAR = 0.9
"""A perturbation whose norm is a smaller share of epsilon did not come to the surface of its ball."""


def signs_of(samples: pl.LazyFrame, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `signs` for the ball that a job's record tells of; one that bounds no image says nothing of its norm."""
    return signs(samples, None if record["scope"] else record["norm"], record["epsilon"])


def signs(samples: pl.LazyFrame, norm: str | None, epsilon: float | None) -> dict[str, Any]:
    """Returns what a job's table of samples says of the attack's own troubles; see `reports.trust`.

    Args:
        norm: The column of samples that epsilon bounds; None where there is no ball or it says nothing.
        epsilon: The radius; None takes that of each sample.
    """
    attacked = pl.col("forward_passes").is_not_null()
    verified, undecided, claimed = (pl.col(name).fill_null(False) for name in ("verified", "undecided", "claimed"))
    survived = attacked & ~verified & ~undecided
    rises = (pl.col("late_rise") > RISING * pl.col("rise")) & (pl.col("late_rise") > RISING_AT_LEAST)
    share = pl.col(norm or "linf") / (pl.col("epsilon") if epsilon is None else epsilon)
    bounded = norm not in (None, "l0") and (epsilon is None or epsilon > 0)
    figures = samples.select(
        survivors=survived.sum(),
        zero_gradient_share=pl.col("zero_gradients").sum() / pl.col("steps").sum(),
        not_finite=((pl.col("stopped") == "not_finite") | pl.col("not_finite_step").is_not_null()).sum(),
        still_rising=(survived & rises).sum(),
        not_climbed=(survived & (pl.col("steps") > 0) & (pl.col("rise") <= 0)).sum(),
        fooled_not_kept=(pl.col("first_fooled_step").is_not_null() & ~claimed).sum(),
        restarts_differ=pl.when(pl.col("restart_spread").count() > 0).then(
            (survived & (pl.col("restart_spread") > pl.col("rise"))).sum()
        ),
        saturated=(pl.col("clean_confidence") == 1).sum(),
        short_of_ball=(survived & (share < NEAR)).sum() if bounded else None,
        reach=share.filter(survived).max() if bounded else None,
    )
    row = figures.collect().row(0, named=True)
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
