"""The metrics of a job and the counts of its checks, from its table of samples."""

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from raiopt.results.record import CheckCounts, Metrics, Norm

RIGHT = (pl.col("clean_prediction") == pl.col("label")).fill_null(False)
BROKEN = pl.col("verified").fill_null(False)
DECIDED = ~pl.col("undecided").fill_null(False) & (pl.col("stopped") != "not_finite").fill_null(True)
ROBUST = RIGHT & ~BROKEN & DECIDED
"""Expression for whether a sample is robust: classified correctly, not attacked successfully, and not undecided."""


def metrics(samples: pl.LazyFrame, epsilons: Sequence[float] | None = None, *, targeted: bool = False) -> Metrics:
    """Returns the metrics of a job from its table of samples.

    Args:
        epsilons: The radii, if there are several.
        targeted: Whether the attack is targeted.
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
    reached, attacked = figures.pop("reached"), figures["attacked"]
    share = reached / attacked if targeted and attacked else None
    return Metrics(target_reached=share, epsilons=list(epsilons) if epsilons else None, **figures)


MIN_LATE_SHARE, MIN_LATE_RISE = 0.05, 1e-3
"""A loss is still rising if the last tenth of steps contributes at least this share, and this amount, of its rise."""
NEAR_SURFACE = 0.9
"""A perturbation whose norm is a smaller share of epsilon did not reach the surface of its ball."""


def check_counts(samples: pl.LazyFrame, norm: Norm | None, epsilon: float | None) -> CheckCounts:
    """Returns the counts needed by the checks of a result, from its table of samples; see `reports.trust`.

    Args:
        norm: The norm (a column of the table) that epsilon bounds; None if no ball bounds each image.
        epsilon: The radius; None: each sample has its own.
    """
    attacked = pl.col("forward_passes").is_not_null()
    verified, undecided, claimed = (pl.col(name).fill_null(False) for name in ("verified", "undecided", "claimed"))
    survived = attacked & ~verified & ~undecided
    rises = (pl.col("late_rise") > MIN_LATE_SHARE * pl.col("rise")) & (pl.col("late_rise") > MIN_LATE_RISE)
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
        short_of_ball=(survived & (share < NEAR_SURFACE)).sum() if bounded else None,
        reach=share.filter(survived).max() if bounded else None,
    )
    row: dict[str, Any] = figures.collect().row(0, named=True)
    return CheckCounts(**{name: value for name, value in row.items() if value is not None and math.isfinite(value)})
