"""The best iterate of each sample."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Best:
    """Keeps, for each sample, the values passed together with its highest scores.

    >>> best = Best()
    >>> best.update([torch.tensor([1.0, 5.0])], step=torch.tensor([0, 0]))
    >>> best.update([torch.tensor([2.0, 4.0])], step=torch.tensor([1, 1]))
    >>> best.values["step"]
    tensor([1, 0])
    """

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, scores: Sequence[Tensor], among: Tensor | None = None, **values: Tensor) -> None:
        """Replaces the values of each sample whose scores are higher; ties are broken by the next score.

        Args:
            scores: Tensors of one shape, such as (N,); NaN counts as lowest.
            among: Mask of the samples that may change; the first update ignores it and takes all values. None: all.
            values: Tensors whose leading dimensions are those of the scores.
        """
        scores = [_without_nan(score) if score.is_floating_point() else score for score in scores]
        if not self.scores:
            self.scores = [score.clone() for score in scores]
            self.values = {name: value.clone() for name, value in values.items()}
            return
        *pairs, last = zip(scores, self.scores, strict=True)
        better = last[0] > last[1]
        for new, old in reversed(pairs):
            better = (new > old) | ((new == old) & better)
        if among is not None:
            better = better & among
        for new, old in [*zip(scores, self.scores, strict=True), *((v, self.values[n]) for n, v in values.items())]:
            more_dims = old.ndim - better.ndim
            torch.where(better.view(better.shape + (1,) * more_dims) if more_dims else better, new, old, out=old)

    def take(self, index: Tensor) -> None:
        """Keeps only the samples with these numbers."""
        self.scores = [score.index_select(0, index) for score in self.scores]
        self.values = {name: value.index_select(0, index) for name, value in self.values.items()}


def _without_nan(score: Tensor) -> Tensor:
    return score.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
