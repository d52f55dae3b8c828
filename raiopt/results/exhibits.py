"""The samples of a run that are kept as examples: easy and hard successes, and the most robust samples."""

import torch
from torch import Tensor

from raiopt.attacks import Outcome, ProbeResult

SAMPLES_PER_KIND = 4


class Exhibits:
    """The examples from all batches so far, as rows of tensors in display order."""

    def __init__(self) -> None:
        self.rows: dict[str, Tensor] = {}

    def offer(self, candidates: dict[str, Tensor]) -> bool:
        """Keeps candidates that are easier, harder or more robust than before; returns whether there were any."""
        if not candidates:
            return False
        together = {
            name: torch.cat([self.rows[name], value]) if self.rows else value for name, value in candidates.items()
        }
        kept = len(self.rows.get("ids", ()))
        chosen = _chosen(together["score"], together["broken"])
        self.rows = {name: value[chosen] for name, value in together.items()}
        return bool((chosen >= kept).any())

    def stored(self) -> dict[str, Tensor]:
        """Returns the examples as stored in the run's folder: 8-bit pixels, perturbations in half precision.

        `kind` is an index into `raiopt.results.pictures.KINDS`.
        """
        if not self.rows:
            return {}
        rows = {name: value for name, value in self.rows.items() if name != "score"}
        broken = rows["broken"]
        rank = torch.arange(len(broken))
        kind = torch.where(broken, (rank >= SAMPLES_PER_KIND).long(), 2)
        image = (rows["image"].float().clamp(0, 1) * 255).round().to(torch.uint8)
        return {**rows, "kind": kind, "image": image, "delta": rows["delta"].half()}


def candidates_of(outcome: Outcome, *, by_norm: bool) -> dict[str, Tensor]:
    """Returns the samples of a batch that are candidates for examples, as rows.

    A success is easy if its radius or norm is small, or, without these, if it took few steps and ends with a small
    probability of the label. A robust sample is kept if it ends with a high probability of the label.

    Args:
        by_norm: Whether the attack minimizes the norm.
    """
    trial = outcome.result
    if trial is None:
        return {}
    broken, firmness = trial.verification.broken, trial.verification.label_confidence
    score = torch.where(broken, _difficulty(trial, by_norm), -firmness)
    decided = broken | (trial.search.not_finite < 0)
    index = decided.nonzero().flatten()
    chosen = index[_chosen(score[index], broken[index])]
    of_batch = outcome.attacked.nonzero().flatten()[chosen]
    rows = {
        "ids": torch.tensor(outcome.ids, dtype=torch.int64)[of_batch.cpu()],
        "score": score[chosen],
        "broken": broken[chosen],
        "image": outcome.images[of_batch],
        "delta": trial.delta[chosen],
        "label": outcome.labels[of_batch],
        "clean_prediction": outcome.clean_prediction[of_batch],
        "prediction": trial.verification.prediction[chosen],
        "clean_confidence": outcome.clean_confidence[of_batch],
        "adversarial_confidence": trial.verification.confidence[chosen],
    }
    return {name: tensor.cpu().contiguous() for name, tensor in rows.items()}


def _difficulty(trial: ProbeResult, by_norm: bool) -> Tensor:
    firmness = trial.verification.label_confidence
    if by_norm:
        return trial.ball.norms(trial.bounded).to(firmness).expand_as(firmness)
    if trial.epsilon is not None:
        return trial.epsilon.to(firmness)
    return trial.search.first_fooled.to(firmness) + firmness


def _chosen(score: Tensor, broken: Tensor) -> Tensor:
    """Returns the positions of the samples that are kept: successes by score, then the others."""
    order = score.argsort(stable=True)
    won, lost = order[broken[order]], order[~broken[order]]
    ends = won if len(won) <= 2 * SAMPLES_PER_KIND else torch.cat([won[:SAMPLES_PER_KIND], won[-SAMPLES_PER_KIND:]])
    return torch.cat([ends, lost[:SAMPLES_PER_KIND]])
