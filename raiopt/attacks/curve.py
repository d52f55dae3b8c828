"""Several radii in one attack: for each sample the smallest that breaks it, found by bisection."""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from raiopt.attacks.question import Attack
from raiopt.attacks.rows import take_rows, with_rows
from raiopt.attacks.trial import Trial
from raiopt.attacks.verify import TOLERANCE


class Try(Protocol):
    """What tries samples: see `Trier`."""

    def __call__(self, chosen: Tensor, epsilon: Tensor | None, spent: Tensor) -> Trial: ...

    def can_go_on(self, spent: Tensor) -> Tensor: ...


def one_radius(attack: Attack, count: int, device: torch.device, try_samples: Try) -> Trial:
    """Tries all samples once, in the ball of the optimizer."""
    every = torch.arange(count, device=device)
    return try_samples(every, None, torch.zeros_like(every))


def by_norm(attack: Attack, count: int, device: torch.device, try_samples: Try) -> Trial:
    """Tries all samples once, in the largest ball; the smallest of `attack.epsilons` that holds what broke one counts.

    For optimizers that look for the smallest perturbation: one run is the whole curve.
    """
    assert attack.epsilons is not None
    every, radii = torch.arange(count, device=device), torch.tensor(attack.epsilons, dtype=torch.float64, device=device)
    trial = try_samples(every, radii[-1].float().expand(count), torch.zeros_like(every))
    least = torch.searchsorted(radii * (1 + TOLERANCE), trial.ball.norms(trial.bounded)).clamp(max=len(radii) - 1)
    least = torch.where(trial.verdict.broken, least, len(radii) - 1)
    broken_at = trial.verdict.broken[:, None] & (torch.arange(len(radii), device=device) >= least[:, None])
    return replace(trial, epsilon=radii[least], broken_at=broken_at)


def smallest_radius(attack: Attack, count: int, device: torch.device, try_samples: Try) -> Trial:
    """Tries all samples with `attack.epsilons`; the record of each is that of the smallest radius that broke it.

    By bisection over the list, or with all of them: an example for one radius is one for every larger one, and where
    its norm is smaller than a smaller radius, for that as well. A sample that nothing broke keeps the largest tried.
    """
    assert attack.epsilons is not None
    radii = torch.tensor(attack.epsilons, dtype=torch.float64, device=device)
    low = torch.zeros(count, dtype=torch.int64, device=device)  # below, all radii are known to hold
    high = torch.full_like(low, len(radii))  # this one is known to break
    broken_at = torch.zeros(count, len(radii), dtype=torch.bool, device=device)
    passes, record, bisect = torch.zeros(2, count, dtype=torch.int64, device=device), None, attack.curve == "bisect"
    for turn in range(len(radii)):
        position = (low + high) // 2 if bisect else torch.full_like(low, turn)
        spent = passes.sum(0)
        chosen = (((low < high) | (not bisect)) & try_samples.can_go_on(spent)).nonzero().flatten()
        if not len(chosen):
            break
        at = position[chosen]
        trial = try_samples(chosen, radii[at].float(), spent[chosen])
        broken, was_broken = trial.verdict.broken, high[chosen] < len(radii)
        broken_at[chosen, at] = broken
        passes[:, chosen] += torch.stack([trial.search.forward_passes, trial.search.backward_passes])
        holds = torch.searchsorted(radii * (1 + TOLERANCE), trial.ball.norms(trial.bounded))
        least = torch.minimum(at, holds)  # the perturbation may fit into a smaller ball than that it was found in
        taken = ~was_broken | (broken & (least < high[chosen]))
        high[chosen] = torch.where(broken & taken, least, high[chosen])
        low[chosen] = torch.where(broken, low[chosen], at + 1)
        trial = replace(trial, epsilon=radii[torch.where(broken, least, at)])
        index = taken.nonzero().flatten()
        record = trial if record is None else with_rows(record, chosen[index], take_rows(trial, index))
    assert record is not None  # the first turn tries all samples
    search = replace(record.search, forward_passes=passes[0], backward_passes=passes[1])
    return replace(record, search=search, broken_at=broken_at)
