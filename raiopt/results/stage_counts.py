"""The counts of each stage of an attack, summed over batches, including those finished by an earlier run."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raiopt.results.record import Record, StageRecord

if TYPE_CHECKING:  # a process that only reads records does not need torch
    from raiopt.attacks import Outcome

COUNTS = ("attacked", "broken", "robust", "forward_passes", "backward_passes")


def counted(outcomes: "Sequence[Outcome]") -> list[dict[str, int]]:
    """Returns the counts of each stage, in order, on the samples of a batch; an empty list without stages.

    `attacked` counts the samples that the stage attacked, `broken` those that it was the first stage to attack
    successfully, `robust` those that are still robust after it.
    """
    return _summed([list(_of_outcome(outcome)) for outcome in outcomes])


def _of_outcome(outcome: "Outcome") -> Iterator[dict[str, int]]:
    trial, attacked = outcome.result, outcome.attacked.nonzero().flatten()
    robust = outcome.finite & (outcome.clean_prediction == outcome.labels)
    broken = attacked < 0  # all False
    if trial is not None:
        undecided = (trial.search.not_finite >= 0) & ~trial.verification.broken
        robust = robust.index_fill(0, attacked[undecided], False)
    for number, _ in enumerate(outcome.stages):
        counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        past = trial.history[number] if trial is not None else None
        if past is not None:
            newly = past.succeeded & ~broken
            broken = broken | newly
            robust = robust.index_fill(0, attacked[newly], False)
            passes = {name: int(getattr(past, name).sum()) for name in ("forward_passes", "backward_passes")}
            counts.update({"attacked": int(past.attacked.sum()), "broken": int(newly.sum()), **passes})
        yield {**counts, "robust": int(robust.sum())}


def _summed(parts: Sequence[Sequence[dict[str, int]]]) -> list[dict[str, int]]:
    return [{name: sum(part[name] for part in stage) for name in COUNTS} for stage in zip(*parts, strict=True)]


def with_counts(
    stages: Sequence[StageRecord], batches: Sequence[Sequence[dict[str, int]]], samples: int
) -> list[StageRecord]:
    """Returns the stages with counts summed over all batches.

    Args:
        samples: The total number of samples.
    """
    return [
        replace(stage, robust_accuracy=counts.pop("robust") / samples, **counts)
        for stage, counts in zip(stages, _summed(batches), strict=True)
    ]


def merged_stages(records: Sequence[Record]) -> list[StageRecord]:
    """Returns the stages of one attack, merged from the records of its shards."""
    samples = [record.metrics.samples if record.metrics else 0 for record in records]
    counts = [
        [
            {name: getattr(stage, name) or 0 for name in COUNTS if name != "robust"}
            | {"robust": round((stage.robust_accuracy or 0) * count)}
            for stage in record.stages
        ]
        for record, count in zip(records, samples, strict=True)
    ]
    return with_counts(records[0].stages, counts, sum(samples))
