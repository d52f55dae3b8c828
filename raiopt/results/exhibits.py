"""Which samples of a run are kept to be shown: the easiest and the hardest that broke, and the firmest that did not."""

import torch
from torch import Tensor

from raiopt.attacks import Outcome, Trial

EACH = 4
"""So many samples of each kind are kept."""
KINDS = ("easiest to break", "hardest to break", "not broken")


class Exhibits:
    """The samples that are kept of all batches so far, as rows of tensors in the order in which they are shown."""

    def __init__(self) -> None:
        self.rows: dict[str, Tensor] = {}

    def offer(self, candidates: dict[str, Tensor]) -> bool:
        """Keeps those of the candidates that are easier, harder or firmer; says whether there were any."""
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
        """Returns what the run's folder keeps of them: pixels as 8-bit, perturbations in half precision.

        `kind` is a position in `KINDS`.
        """
        if not self.rows:
            return {}
        rows = {name: value for name, value in self.rows.items() if name != "score"}
        broken = rows["broken"]
        rank = torch.arange(len(broken))
        kind = torch.where(broken, (rank >= EACH).long(), 2)
        image = (rows["image"].float().clamp(0, 1) * 255).round().to(torch.uint8)
        return {**rows, "kind": kind, "image": image, "delta": rows["delta"].half()}


def candidates_of(outcome: Outcome, *, by_norm: bool) -> dict[str, Tensor]:
    """Returns the samples of a batch that may be kept, as rows.

    Easy is what a small radius or norm breaks, or else what few steps do, of such the one that ends with less
    probability of its label. Firm is what ends with most of it.

    Args:
        by_norm: The attack is after the smallest norm.
    """
    trial = outcome.trial
    if trial is None:
        return {}
    broken, firmness = trial.verdict.broken, trial.verdict.label_confidence
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
        "prediction": trial.verdict.prediction[chosen],
        "clean_confidence": outcome.clean_confidence[of_batch],
        "adversarial_confidence": trial.verdict.confidence[chosen],
    }
    return {name: tensor.cpu().contiguous() for name, tensor in rows.items()}


def _difficulty(trial: Trial, by_norm: bool) -> Tensor:
    firmness = trial.verdict.label_confidence
    if by_norm:
        return trial.ball.norms(trial.bounded).to(firmness).expand_as(firmness)
    if trial.epsilon is not None:
        return trial.epsilon.to(firmness)
    return trial.search.first_fooled.to(firmness) + firmness


def _chosen(score: Tensor, broken: Tensor) -> Tensor:
    """Returns the positions of those that are kept: broken ones by score, then the others."""
    order = score.argsort(stable=True)
    won, lost = order[broken[order]], order[~broken[order]]
    ends = won if len(won) <= 2 * EACH else torch.cat([won[:EACH], won[-EACH:]])
    return torch.cat([ends, lost[:EACH]])
