"""Attacks at several radii: bisection finds the smallest radius at which the attack on each sample succeeds."""

from dataclasses import replace

import torch
from torch import Tensor

from raiopt.attacks.attack import Attack
from raiopt.attacks.prober import Prober, ProbeResult
from raiopt.attacks.rows import take_rows, with_rows
from raiopt.attacks.stages import Stages
from raiopt.attacks.verify import TOLERANCE

Probe = Prober | Stages


def one_radius(attack: Attack, count: int, device: torch.device, probe: Probe) -> ProbeResult:
    """Attacks all samples once, in the ball of the optimizer."""
    every = torch.arange(count, device=device)
    return probe(every, None, torch.zeros_like(every))


def by_norm(attack: Attack, count: int, device: torch.device, probe: Probe) -> ProbeResult:
    """Attacks all samples once, in the largest ball; a sample counts as broken at every radius of at least its norm.

    For optimizers that minimize the norm: a single run gives the whole curve.
    """
    every, radii = torch.arange(count, device=device), _radii(attack, device)
    result = probe(every, radii[-1].float().expand(count), torch.zeros_like(every))
    broken, last = result.verification.broken, len(radii) - 1
    least = torch.where(broken, _smallest_containing_radius(result, radii).clamp(max=last), last)
    broken_at = broken[:, None] & (torch.arange(len(radii), device=device) >= least[:, None])
    return replace(result, epsilon=radii[least], broken_at=broken_at)


def smallest_radius(attack: Attack, count: int, device: torch.device, probe: Probe) -> ProbeResult:
    """Bisects `attack.epsilons`; the result of each sample is that of the smallest radius at which it was broken.

    An adversarial example for one radius also counts for every larger radius, and for each smaller radius that is at
    least its norm. A sample that was never broken keeps the result of the largest radius that was tried.
    """
    radii = _radii(attack, device)
    low = torch.zeros(count, dtype=torch.int64, device=device)  # the sample was robust at all radii before this index
    high = torch.full_like(low, len(radii))  # the sample was broken at this index
    broken_at = torch.zeros(count, len(radii), dtype=torch.bool, device=device)
    passes, record = torch.zeros(2, count, dtype=torch.int64, device=device), None
    while len(chosen := ((low < high) & probe.can_go_on(passes.sum(0))).nonzero().flatten()):
        at = (low[chosen] + high[chosen]) // 2
        result = probe(chosen, radii[at].float(), passes.sum(0)[chosen])
        broken = result.verification.broken
        broken_at[chosen, at] = broken
        passes[:, chosen] += torch.stack([result.search.forward_passes, result.search.backward_passes])
        least = torch.where(broken, torch.minimum(at, _smallest_containing_radius(result, radii)), at)
        taken = (broken | (high[chosen] == len(radii))).nonzero().flatten()
        result = replace(result, epsilon=radii[least])
        record = result if record is None else with_rows(record, chosen[taken], take_rows(result, taken))
        high[chosen] = torch.where(broken, least, high[chosen])
        low[chosen] = torch.where(broken, low[chosen], at + 1)
    assert record is not None  # the first iteration attacks all samples
    search = replace(record.search, forward_passes=passes[0], backward_passes=passes[1])
    return replace(record, search=search, broken_at=broken_at)


def _radii(attack: Attack, device: torch.device) -> Tensor:
    return torch.tensor(attack.epsilons, dtype=torch.float64, device=device)


def _smallest_containing_radius(result: ProbeResult, radii: Tensor) -> Tensor:
    """Returns the position of the smallest radius that is at least the norm of each sample's perturbation."""
    return torch.searchsorted(radii * (1 + TOLERANCE), result.ball.norms(result.bounded))
