"""What each stage of an attack came to, counted batch by batch: those that were finished before a restart count too."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a process that only reads records does without torch
    from raiopt.attacks import Outcome

COUNTS = ("attacked", "broken", "robust", "forward_passes", "backward_passes")


def counted(outcomes: "Sequence[Outcome]") -> list[dict[str, int]]:
    """Returns for each stage, in order, what it did to the samples of a batch; an empty list without stages.

    `attacked` are those that it tried, `broken` those that it broke and no earlier one did, `robust` those that are
    left then.
    """
    return _summed([list(_of_outcome(outcome)) for outcome in outcomes])


def _of_outcome(outcome: "Outcome") -> Iterator[dict[str, int]]:
    trial, attacked = outcome.trial, outcome.attacked.nonzero().flatten()
    robust = outcome.finite & (outcome.clean_prediction == outcome.labels)
    broken = attacked < 0  # none so far
    if trial is not None:
        undecided = (trial.search.not_finite >= 0) & ~trial.verdict.broken
        robust = robust.index_fill(0, attacked[undecided], False)
    for number, _ in enumerate(outcome.stages):
        counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        past = trial.past[number] if trial is not None else None
        if past is not None:
            newly = past.broke & ~broken
            broken = broken | newly
            robust = robust.index_fill(0, attacked[newly], False)
            passes = {name: int(getattr(past, name).sum()) for name in ("forward_passes", "backward_passes")}
            counts.update({"attacked": int(past.tried.sum()), "broken": int(newly.sum()), **passes})
        yield {**counts, "robust": int(robust.sum())}


def _summed(parts: Sequence[Sequence[dict[str, int]]]) -> list[dict[str, int]]:
    return [{name: sum(part[name] for part in stage) for name in COUNTS} for stage in zip(*parts, strict=True)]


def with_counts(
    stages: Sequence[dict[str, Any]], noted: Sequence[Sequence[dict[str, int]]], samples: int
) -> list[dict[str, Any]]:
    """Returns the record of each stage, with what all batches noted of it.

    Args:
        stages: What is known of each before: name, words, steps, gradient_free.
        samples: How many there are in all.
    """
    told = []
    for stage, counts in zip(stages, _summed(noted), strict=True):
        robust = counts.pop("robust")
        told.append({**stage, **counts, "robust_accuracy": robust / samples})
    return told


def merged_stages(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the record of each stage over the shards of one question, from their records."""
    samples = [record["metrics"]["samples"] for record in records]
    noted = [
        [{**stage, "robust": round(stage["robust_accuracy"] * count)} for stage in record.get("stages") or []]
        for record, count in zip(records, samples, strict=True)
    ]
    return with_counts(records[0].get("stages") or [], noted, sum(samples))
