"""The tables of a job, made from the outcomes of its batches: one row per sample, and one row per step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from raiopt.attacks import STOPPED, Attack, Outcome, ProbeResult
from raiopt.results.parquet import scan_parquet

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
_ATTACKED: dict[str, Any] = {
    "stage": pl.String,
    "target": pl.Int64,
    "adversarial_prediction": pl.Int64,
    "adversarial_loss": pl.Float32,
    "adversarial_confidence": pl.Float32,
    "label_confidence": pl.Float32,
    "rise": pl.Float32,
    "late_rise": pl.Float32,
    "restart_spread": pl.Float32,
    "claimed": pl.Boolean,
    "verified": pl.Boolean,
    "verified_8bit": pl.Boolean,
    "undecided": pl.Boolean,
    "epsilon": pl.Float64,
    "broken_at": pl.List(pl.Boolean),
    "not_finite_step": pl.Int64,
    "best_step": pl.Int64,
    "first_fooled_step": pl.Int64,
    "restart": pl.Int64,
    "l0": pl.Int64,
    "l1": pl.Float64,
    "l2": pl.Float64,
    "linf": pl.Float64,
    "steps": pl.Int64,
    "forward_passes": pl.Int64,
    "backward_passes": pl.Int64,
    "zero_gradients": pl.Int64,
    "zero_at_start": pl.Boolean,
}


def samples_frame(outcome: Outcome) -> pl.DataFrame:
    """Returns one row for each sample of a batch; attack columns are null if the sample was not attacked.

    `epsilon` and `broken_at` (a list with one entry per radius) are null unless several radii were tried.
    """
    attacked, trial = outcome.attacked.cpu(), outcome.result
    why = ["not_finite" if not finite else "misclassified" for finite in _list(outcome.finite)]
    right = _list(outcome.clean_prediction == outcome.labels)
    frame = pl.DataFrame(
        {
            "id": list(outcome.ids),
            "name": list(outcome.names),
            "label": _list(outcome.labels),
            "clean_prediction": _where(outcome.finite, outcome.clean_prediction),
            "clean_loss": _list(outcome.clean_loss.float()),
            "clean_confidence": _where(outcome.finite, outcome.clean_confidence),
            "stopped": [
                "is_target" if is_right and reason != "not_finite" else reason
                for is_right, reason in zip(right, why, strict=True)
            ],
        },
        schema_overrides={
            **dict.fromkeys(("id", "label", "clean_prediction"), pl.Int64),
            **dict.fromkeys(("clean_loss", "clean_confidence"), pl.Float32),
        },
    )
    columns = {} if trial is None else _attacked_columns(trial, outcome.labels[outcome.attacked], outcome.stages)
    assert not columns or columns.keys() == {"stopped", *_ATTACKED}, "each column of the attack has a type and a value"
    stopped = pl.Series("_stopped", _spread(columns.pop("stopped", None), attacked.tolist()), pl.String)
    rows = [pl.Series(n, _spread(columns.get(n), attacked.tolist()), kind) for n, kind in _ATTACKED.items()]
    return (
        frame.with_columns(stopped, *rows)
        .with_columns(pl.coalesce("_stopped", "stopped").alias("stopped"))
        .drop("_stopped")
    )


def _attacked_columns(trial: ProbeResult, labels: Tensor, stages: Sequence[str]) -> dict[str, list[Any] | None]:
    found, verification, n = trial.search, trial.verification, len(labels)
    undecided = (found.not_finite >= 0) & ~verification.broken
    rise, late_rise = rises(found.gains.cpu(), found.steps.cpu(), trial.stride.cpu())
    reasons = [STOPPED[number] for number in _list(found.stopped)]
    return {
        "stage": None if trial.stage is None else [stages[number] for number in _list(trial.stage)],
        "stopped": ["not_finite" if lost else reason for lost, reason in zip(_list(undecided), reasons, strict=True)],
        "target": _where(found.goal != labels, found.goal),
        "adversarial_prediction": _list(verification.prediction),
        "adversarial_loss": _list(found.loss),
        "adversarial_confidence": _finite(verification.confidence),
        "label_confidence": _finite(verification.label_confidence),
        "rise": _finite(rise),
        "late_rise": _finite(late_rise),
        "restart_spread": _finite(found.spread),
        "claimed": _list(found.claimed),
        "verified": _list(verification.broken),
        "verified_8bit": None if verification.broken_8bit is None else _list(verification.broken_8bit),
        "undecided": _list(undecided),
        "epsilon": None if trial.epsilon is None else _list(trial.epsilon),
        "broken_at": None if trial.broken_at is None else _list(trial.broken_at),
        "not_finite_step": _where(found.not_finite >= 0, found.not_finite),
        "best_step": _list(found.best_step),
        "first_fooled_step": _where(found.first_fooled >= 0, found.first_fooled),
        "restart": _list(found.restart),
        **{name: _list(norm.expand(n)) for name, norm in _norms(trial).items()},
        "steps": _list(found.steps),
        "forward_passes": _list(found.forward_passes),
        "backward_passes": _list(found.backward_passes),
        "zero_gradients": _list(found.zero_gradients),
        "zero_at_start": _list(found.zero_at_start),
    }


def rises(gains: Tensor, steps: Tensor, stride: Tensor | int = 1) -> tuple[Tensor, Tensor]:
    """Returns by how much each sample's best loss rose over all steps, and in the last tenth of the steps, each (n,).

    Args:
        gains: The loss at every `stride`-th step, negated if the attack minimizes it; n rows.
        steps: The number of steps taken, (n,).
    """
    best = gains.nan_to_num(nan=float("-inf")).cummax(1).values
    early, late = (best.gather(1, (at // stride)[:, None])[:, 0] for at in (steps * 9 // 10, steps))
    return late - gains[:, 0], late - early


def _norms(trial: ProbeResult) -> dict[str, Tensor]:
    """Returns the norms of each sample's parameter (n,), or of the shared one (1,), in float64."""
    x = trial.bounded.cpu()
    counted = x.abs().amax(-3) if trial.ball.pixels else x
    counted, rows = (entries.reshape(1 if trial.shared else len(x), -1) for entries in (counted, x))
    norms = {f"l{p}": torch.linalg.vector_norm(rows.double(), float(p), dim=1) for p in ("1", "2", "inf")}
    return {"l0": counted.count_nonzero(1), **norms}


def _list(values: Tensor) -> list[Any]:
    return values.detach().cpu().tolist()


def _finite(values: Tensor) -> list[Any]:
    return _where(values.isfinite(), values)


def _where(known: Tensor, values: Tensor) -> list[Any]:
    return [value if is_known else None for is_known, value in zip(_list(known), _list(values), strict=True)]


def _spread(values: Sequence[Any] | None, mask: Sequence[bool]) -> list[Any]:
    """Returns a list with the values where the mask is true, and None elsewhere."""
    rest = iter(values or [])
    return [next(rest) if marked and values is not None else None for marked in mask]


def steps_frames(outcomes: Sequence[Outcome]) -> dict[str, pl.DataFrame]:
    """Returns one row for each attacked sample: its number of steps, and its loss and success at each step.

    There is one table, `steps`, or one for each stage that attacked a sample: `steps0`, `steps1`, ...
    """
    trials = [outcome.result for outcome in outcomes if outcome.result is not None]
    parts: dict[str, list[tuple[Tensor, ...]]] = {}
    for trial in trials:
        if trial.stage is None:
            parts.setdefault("steps", []).append(tuple(getattr(trial.search, name) for name in STEP_FIELDS))
        for number, past in enumerate(trial.history):
            if past is not None:
                tried = tuple(getattr(past, name)[past.attacked] for name in STEP_FIELDS)
                parts.setdefault(f"steps{number}", []).append(tried)
    return {
        kind: _steps_frame(*(torch.cat(tensors).cpu() for tensors in zip(*part, strict=True)))
        for kind, part in parts.items()
    }


def _steps_frame(steps: Tensor, gains: Tensor, fooled: Tensor) -> pl.DataFrame:
    columns = {"steps": steps.numpy()} | {f"gain_{at}": column.numpy() for at, column in enumerate(gains.unbind(1))}
    return pl.DataFrame(columns | {f"fooled_{at}": column.numpy() for at, column in enumerate(fooled.unbind(1))})


def trace_frame(
    files: list[Path], attack: Attack, *, passes_per_step: int = 2, stage: str | None = None
) -> pl.DataFrame:
    """Returns one row per step, over all attacked samples: passes so far, loss, share fooled at the step and so far.

    Args:
        files: Parquet files of `steps_frames`; they are read one step at a time.
        attack: The attack of these samples.
        passes_per_step: Forward and backward passes per step.
        stage: The name of the stage, if there are several; only its own passes count.
    """
    table, so_far, sign = [], np.zeros(0, dtype=bool), -1 if attack.towards else 1
    taken = scan_parquet(files).select("steps").collect()["steps"].to_numpy() if files else so_far
    for at in range(1 + attack.steps // attack.stride) if files else ():
        step = at * attack.stride
        columns = scan_parquet(files).select(f"gain_{at}", f"fooled_{at}").collect()
        losses = sign * columns[f"gain_{at}"].to_numpy().astype(np.float64)
        fooled = columns[f"fooled_{at}"].to_numpy()
        so_far = fooled | so_far if at else fooled
        losses = losses[np.isfinite(losses)]
        of_losses = [losses.mean(), *np.quantile(losses, list(QUANTILES.values()))] if len(losses) else [np.nan] * 6
        passes = attack.rows * (1 + passes_per_step * np.minimum(taken, step).mean())
        table.append([stage, step, len(fooled), passes, *of_losses, fooled.mean(), so_far.mean()])
    return pl.DataFrame(table, schema=_TRACE, orient="row")


STEP_FIELDS = ("steps", "gains", "fooled_at")
_TRACE = {
    "stage": pl.String,
    "step": pl.Int64,
    "samples": pl.Int64,
    "passes": pl.Float64,
    **dict.fromkeys([f"loss_{name}" for name in ("mean", *QUANTILES)], pl.Float64),
    "fooled": pl.Float64,
    "fooled_so_far": pl.Float64,
}
