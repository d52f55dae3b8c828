"""From outcomes of batches to the tables of a job: a row a sample, a row a step, and the figures of the whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from raiopt.attacks import Claim, Outcome, Search

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


@dataclass(frozen=True)
class Verdict:
    """What verification says of the attacked samples (n,) of an outcome."""

    broken: Tensor
    prediction: Tensor


def samples_frame(outcome: Outcome, verdict: Verdict | None) -> pl.DataFrame:
    """Returns one row a sample of a batch; what concerns an attack is null where there was none."""
    attacked = outcome.attacked.cpu()
    goals = _list(outcome.goals)
    frame = pl.DataFrame(
        {
            "id": list(outcome.ids),
            "name": list(outcome.names),
            "label": _list(outcome.labels),
            "clean_prediction": _where(outcome.finite, outcome.clean_prediction),
            "clean_loss": _list(outcome.clean_loss.float()),
            "stopped": [_why_not(*row) for row in zip(*map(_list, _conditions(outcome)), strict=True)],
        },
        schema_overrides={"id": pl.Int64, "label": pl.Int64, "clean_prediction": pl.Int64, "clean_loss": pl.Float32},
    )
    target = [goal if goal != label else None for goal, label in zip(goals, frame["label"], strict=True)]
    columns = dict.fromkeys(_ATTACKED)
    if outcome.search is not None and verdict is not None:
        columns = _attacked_columns(outcome.search, verdict, outcome.labels[outcome.attacked])
    rows = {name: _spread(values, attacked.tolist()) for name, values in columns.items()}
    return frame.with_columns(
        pl.Series("target", target, pl.Int64), *(pl.Series(name, rows[name], _ATTACKED[name]) for name in _ATTACKED)
    ).with_columns(stopped=pl.when("undecided").then(pl.lit("not_finite")).otherwise("stopped"))


_ATTACKED: dict[str, Any] = {
    "adversarial_prediction": pl.Int64,
    "adversarial_loss": pl.Float32,
    "claimed": pl.Boolean,
    "verified": pl.Boolean,
    "undecided": pl.Boolean,
    "not_finite_step": pl.Int64,
    "best_step": pl.Int64,
    "first_fooled_step": pl.Int64,
    "l0": pl.Int64,
    "l1": pl.Float64,
    "l2": pl.Float64,
    "linf": pl.Float64,
    "steps": pl.Int64,
    "forward_passes": pl.Int64,
    "backward_passes": pl.Int64,
}


def _conditions(outcome: Outcome) -> tuple[Tensor, Tensor, Tensor]:
    return outcome.finite, outcome.clean_prediction == outcome.labels, outcome.attacked


def _why_not(finite: bool, right: bool, attacked: bool) -> str:
    """Returns why the search for a sample ended, or why there was none."""
    if attacked:
        return "steps"
    return "not_finite" if not finite else "is_target" if right else "misclassified"


def _attacked_columns(search: Search, verdict: Verdict, labels: Tensor) -> dict[str, list[Any]]:
    n, steps = len(labels), len(search.losses) - 1
    claimed = search.loss.isfinite() & (search.prediction != labels)
    return {
        "adversarial_prediction": _list(verdict.prediction),
        "adversarial_loss": _list(search.loss.float()),
        "claimed": _list(claimed),
        "verified": _list(verdict.broken),
        "undecided": _list((search.not_finite >= 0) & ~verdict.broken),
        "not_finite_step": _where(search.not_finite >= 0, search.not_finite),
        "best_step": _list(search.best_step),
        "first_fooled_step": _where(search.first_fooled >= 0, search.first_fooled),
        **{name: _list(norm.expand(n)) for name, norm in _norms(search.claim).items()},
        "steps": [steps] * n,
        "forward_passes": [steps + 1] * n,
        "backward_passes": [steps] * n,
    }


def _norms(claim: Claim) -> dict[str, Tensor]:
    """Returns the norms of each sample's own parameter (n,), or of the one that all share (1,), in float64."""
    x = claim.parameter
    counted = x.abs().amax(-3) if claim.ball.pixels else x
    counted, rows = (entries.reshape(1 if claim.shared else len(x), -1) for entries in (counted, x))
    norms = {f"l{p}": torch.linalg.vector_norm(rows.double(), float(p), dim=1) for p in ("1", "2", "inf")}
    return {"l0": counted.count_nonzero(1), **norms}


def _list(values: Tensor) -> list[Any]:
    return values.detach().cpu().tolist()


def _where(known: Tensor, values: Tensor) -> list[Any]:
    return [value if is_known else None for is_known, value in zip(_list(known), _list(values), strict=True)]


def _spread(values: Sequence[Any] | None, mask: Sequence[bool]) -> list[Any]:
    """Returns the values at the places that the mask marks, None elsewhere."""
    rest = iter(values or [])
    return [next(rest) if marked and values is not None else None for marked in mask]


def trace_frame(searches: Sequence[Search]) -> pl.DataFrame:
    """Returns one row a step over all attacked samples: the loss, and the share that is fooled then or was before."""
    if not searches:
        return pl.DataFrame(schema=_TRACE)
    losses = torch.cat([s.losses.float().cpu() for s in searches], 1).numpy().astype(np.float64)
    fooled = torch.cat([s.fooled_at.cpu() for s in searches], 1).numpy()
    losses[~np.isfinite(losses)] = np.nan
    known = ~np.isnan(losses).all(1)
    summary = {name: np.full(len(losses), np.nan) for name in ("mean", *QUANTILES)}
    summary["mean"][known] = np.nanmean(losses[known], 1)
    for name, q in QUANTILES.items():
        summary[name][known] = np.nanquantile(losses[known], q, axis=1)
    return pl.DataFrame(
        {
            "step": np.arange(len(losses)),
            "samples": np.full(len(losses), losses.shape[1]),
            **{f"loss_{name}": values for name, values in summary.items()},
            "fooled": fooled.mean(1),
            "fooled_so_far": np.maximum.accumulate(fooled, 0).mean(1),
        },
        schema=_TRACE,
    )


_TRACE = {
    "step": pl.Int64,
    "samples": pl.Int64,
    **dict.fromkeys([f"loss_{name}" for name in ("mean", *QUANTILES)], pl.Float64),
    "fooled": pl.Float64,
    "fooled_so_far": pl.Float64,
}


def metrics(samples: pl.DataFrame) -> dict[str, Any]:
    """Returns the figures of a job from its table of samples.

    Shares are of all samples. Robust are those that are predicted right and neither verified as broken nor undecided;
    norms are over the verified perturbations, None where there is none.
    """
    right = pl.col("clean_prediction") == pl.col("label")
    broken, undecided = (pl.col(name).fill_null(False) for name in ("verified", "undecided"))
    undecided = undecided | (pl.col("stopped") == "not_finite")
    norms = [pl.col(n).filter(pl.col("verified")) for n in ("l0", "l1", "l2", "linf")]
    row = samples.select(
        samples=pl.len(),
        clean_accuracy=right.fill_null(False).mean(),
        robust_accuracy=(right.fill_null(False) & ~broken & ~undecided).mean(),
        undecided=undecided.sum(),
        attacked=pl.col("forward_passes").count(),
        claimed=pl.col("claimed").sum(),
        verified=pl.col("verified").sum(),
        reached=(pl.col("verified") & (pl.col("adversarial_prediction") == pl.col("target"))).sum(),
        forward_passes=pl.col("forward_passes").sum(),
        backward_passes=pl.col("backward_passes").sum(),
        **{f"median_{n.meta.output_name()}": n.median() for n in norms},
        **{f"largest_{n.meta.output_name()}": n.max() for n in norms},
    ).row(0, named=True)
    reached = row.pop("reached")
    if samples["target"].is_not_null().any():
        row["target_reached"] = reached / row["attacked"] if row["attacked"] else None
    return row
