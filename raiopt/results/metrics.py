"""The figures of a job, from its table of samples alone."""

from collections.abc import Sequence
from typing import Any

import polars as pl


def metrics(samples: pl.LazyFrame, epsilons: Sequence[float] | None = None) -> dict[str, Any]:
    """Returns the figures of a job from its table of samples.

    Shares are of all samples. Robust are those that are predicted right and neither verified as broken nor undecided;
    norms are over the verified perturbations, None where there is none. With several radii, `robust_accuracies` says
    how many are robust at each of `epsilons`.
    """
    right = (pl.col("clean_prediction") == pl.col("label")).fill_null(False)
    broken, undecided = (pl.col(name).fill_null(False) for name in ("verified", "undecided"))
    undecided = undecided | (pl.col("stopped") == "not_finite")
    norms = [pl.col(n).filter(pl.col("verified")) for n in ("l0", "l1", "l2", "linf")]
    row = samples.select(
        samples=pl.len(),
        clean_accuracy=right.mean(),
        robust_accuracy=(right & ~broken & ~undecided).mean(),
        robust_accuracies=pl.concat_list(
            [
                (right & ~(broken & (pl.col("epsilon") <= e)).fill_null(False) & ~undecided).mean()
                for e in epsilons or []
            ]
        )
        if epsilons
        else None,
        undecided=undecided.sum(),
        attacked=pl.col("forward_passes").count(),
        claimed=pl.col("claimed").sum(),
        verified=pl.col("verified").sum(),
        verified_8bit=pl.when(pl.col("verified_8bit").count() > 0).then(pl.col("verified_8bit").sum()),
        zero_gradients_at_start=pl.col("zero_at_start").sum(),
        never_a_gradient=((pl.col("zero_gradients") >= pl.col("steps")) & (pl.col("steps") > 0)).sum(),
        targets=pl.col("target").count(),
        reached=(pl.col("verified") & (pl.col("adversarial_prediction") == pl.col("target"))).sum(),
        forward_passes=pl.col("forward_passes").sum(),
        backward_passes=pl.col("backward_passes").sum(),
        **{f"median_{n.meta.output_name()}": n.median() for n in norms},
        **{f"largest_{n.meta.output_name()}": n.max() for n in norms},
    )
    figures = row.collect().row(0, named=True)
    reached, targets = figures.pop("reached"), figures.pop("targets")
    if targets:
        figures["target_reached"] = reached / figures["attacked"] if figures["attacked"] else None
    if epsilons:
        figures["epsilons"] = list(epsilons)
    else:
        del figures["robust_accuracies"]
    return figures
