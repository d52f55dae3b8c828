"""Uncertainty of results: confidence intervals, paired comparisons, bands of curves, the spread over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from raiopt.reports.runs import Run
from raiopt.results.metrics import ROBUST
from raiopt.results.records import settings_key

LEVEL = 0.95
"""The default confidence level of all intervals; a difference is within noise if its p-value is at least 1 - LEVEL."""
MAX_WEIGHTS = 2**22
"""The largest number of bootstrap weights in memory at once."""
Numbers = NDArray[np.float64]
Many = NDArray[Any] | pl.Series | Sequence[float]


@overload
def wilson(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]: ...
@overload
def wilson(successes: Many, trials: Many | int, level: float = LEVEL) -> tuple[Numbers, Numbers]: ...
def wilson(successes: Any, trials: Any, level: float = LEVEL) -> tuple[Any, Any]:
    """Returns the ends, in [0, 1], of the Wilson score interval of a share (Wilson 1927, doi.org/10.2307/2276774).

    Args:
        successes: Numbers, arrays or Series that broadcast, between 0 and `trials`.
        trials: Numbers of trials; where it is 0, the interval is from 0 to 1.
        level: The confidence level, in (0, 1).

    Raises:
        ValueError: If an argument is out of range.

    >>> low, high = wilson(369, 500)
    >>> f"{369 / 500:.1%}, {low:.1%} to {high:.1%}"
    '73.8%, 69.8% to 77.5%'
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1.")
    s, n = np.broadcast_arrays(np.asarray(successes, np.float64), np.asarray(trials, np.float64))
    if not ((s >= 0) & (s <= n)).all():
        raise ValueError(f"successes={successes} must lie between 0 and trials={trials}.")
    z, some = NormalDist().inv_cdf((1 + level) / 2), np.maximum(n, 1)
    share = s / some
    center, half = share + z**2 / some / 2, z * np.sqrt(share * (1 - share) / some + (z / some / 2) ** 2)
    low, high = (center - half) / (1 + z**2 / some), (center + half) / (1 + z**2 / some)
    low, high = np.where(s == 0, 0.0, low), np.where(s == n, 1.0, high)
    return (low, high) if low.ndim else (low.item(), high.item())


@dataclass(frozen=True)
class Comparison:
    """Two runs, a and b, on their shared samples. Every sample that is not robust counts as broken.

    Args:
        shared: The number of samples in both runs.
        only_in_a: The number of samples of a that are not in b.
        only_in_b: The number of samples of b that are not in a.
        both_broken: The number of shared samples that are robust in neither run.
        only_a_broke: The number of shared samples that are robust only in b.
        only_b_broke: The number of shared samples that are robust only in a.
        neither: The number of shared samples that are robust in both runs.
        p_value: The result of McNemar's exact two-sided test of equal robust accuracies (1947,
            doi.org/10.1007/BF02295996).
        difference: Robust accuracy of a minus that of b, on the shared samples.
        interval: 95 % interval of the paired difference: Newcombe 1998, method 10 (Statistics in Medicine 17,
            2635-2650).
        doubts: Sentences about differences between the runs that make the comparison doubtful.
    """

    shared: int
    only_in_a: int
    only_in_b: int
    both_broken: int
    only_a_broke: int
    only_b_broke: int
    neither: int
    p_value: float
    difference: float
    interval: tuple[float, float]
    doubts: tuple[str, ...] = ()

    @property
    def within_noise(self) -> bool:
        """Whether chance can explain the difference."""
        return self.p_value >= 1 - LEVEL

    def words(self, name_a: str, name_b: str) -> str:
        """Returns the comparison in a few sentences.

        >>> print(of_counts(300, 25, 7, 168).words("A", "B"))
        On 500 shared samples A leaves 35.0 % robust and B 38.6 %. That is 3.6 points less (95 % interval 1.4 to
        5.8, p = 0.0021): 7 samples are robust only under A, 25 only under B.
        """
        a, b = ((self.neither + kept) / self.shared for kept in (self.only_b_broke, self.only_a_broke))
        found = (
            f"On {self.shared:,} shared samples {name_a} leaves {100 * a:.1f} % robust and {name_b} {100 * b:.1f} %."
        )
        missing = [
            f"{count:,} samples of {name} are not in the other and do not count."
            for count, name in ((self.only_in_a, name_a), (self.only_in_b, name_b))
            if count
        ]
        return " ".join([found, self._difference(name_a, name_b), *missing, *self.doubts])

    def _difference(self, name_a: str, name_b: str) -> str:
        if not self.only_a_broke and not self.only_b_broke:
            return "The same samples are robust under both."
        low, high = (100 * end for end in self.interval)
        p = "p < 0.0001" if self.p_value < 1e-4 else f"p = {self.p_value:.2g}"
        alone = (
            f"{self.only_b_broke:,} samples are robust only under {name_a}, {self.only_a_broke:,} only under {name_b}"
        )
        if self.within_noise:
            points = f"{100 * abs(self.difference):.1f} points"
            return f"The difference of {points} is within noise (95 % interval {low:.1f} to {high:.1f}, {p}): {alone}."
        less = self.difference < 0
        ends = (-high, -low) if less else (low, high)
        return (
            f"That is {100 * abs(self.difference):.1f} points {'less' if less else 'more'} "
            f"(95 % interval {ends[0]:.1f} to {ends[1]:.1f}, {p}): {alone}."
        )


def compare(a: Run, b: Run) -> Comparison:
    """Returns the comparison of two runs (of two attacks or two models) on their shared samples.

    Samples are the same if their ids and labels are equal, and, if the data hashes differ, also their names.

    Raises:
        ValueError: If they share no samples, or a run did not finish, or its table of samples cannot be read.
    """
    for run in (a, b):
        if not run.metrics:
            raise ValueError(f"{run.folder} is {run.job.status}: only finished runs can be compared.")
    same = a.record.hashes.data == b.record.hashes.data
    keys = ["id", "label"] if same else ["id", "label", "name"]
    tables = [run.samples() for run in (a, b)]
    in_a, in_b = (table.select(pl.len()).collect().item() for table in tables)
    one, other = (table.select(*keys, robust=ROBUST) for table in tables)
    if a.record.data.name != b.record.data.name:
        one = one.head(0)
    pairs = one.join(other, on=keys, nulls_equal=True).group_by("robust", "robust_right").len()
    found = {(row[0], row[1]): row[2] for row in pairs.collect(engine="streaming").iter_rows()}
    counts = [found.get(pair, 0) for pair in ((False, False), (False, True), (True, False), (True, True))]
    shared = sum(counts)
    if not shared:
        names = " and ".join(f"{in_:,} of {run.record.data.name}" for in_, run in ((in_a, a), (in_b, b)))
        raise ValueError(
            f"{a.folder} and {b.folder} share 0 samples: they have {names}. Compare runs on the same data."
        )
    doubts = []
    if not same and shared == in_a == in_b:
        doubts.append("The hashes of their data differ: the images or their order are not the same.")
    if a.record.ball.key != b.record.ball.key:
        doubts.append(f"The balls differ: {a.record.ball} and {b.record.ball}.")
    return of_counts(*counts, only_in=(in_a - shared, in_b - shared), doubts=tuple(doubts))


def of_counts(
    both_broken: int,
    only_a_broke: int,
    only_b_broke: int,
    neither: int,
    *,
    only_in: tuple[int, int] = (0, 0),
    doubts: tuple[str, ...] = (),
) -> Comparison:
    """Returns the comparison with these counts of samples; see `Comparison` for their meaning."""
    from scipy.special import bdtr  # the import takes half a second, and is rarely needed

    shared, discordant = both_broken + only_a_broke + only_b_broke + neither, only_a_broke + only_b_broke
    return Comparison(
        shared,
        *only_in,
        both_broken,
        only_a_broke,
        only_b_broke,
        neither,
        p_value=min(1.0, 2 * float(bdtr(min(only_a_broke, only_b_broke), discordant, 0.5))),
        difference=(only_b_broke - only_a_broke) / shared,
        interval=_newcombe(neither, only_b_broke, only_a_broke, both_broken),
        doubts=doubts,
    )


def _newcombe(both: int, first: int, second: int, none: int) -> tuple[float, float]:
    """Returns the interval of a paired difference, from the counts of samples in both, in only one, and in neither."""
    n = both + first + second + none
    share_1, share_2 = (both + first) / n, (both + second) / n
    (low_1, high_1), (low_2, high_2) = wilson(both + first, n), wilson(both + second, n)
    margins = (both + first) * (second + none) * (both + second) * (first + none)
    product = both * none - first * second
    correlation = (max(product - n / 2, 0) if product > 0 else product) / sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return sqrt(max(x * x - 2 * correlation * x * y + y * y, 0))

    difference = share_1 - share_2
    low = difference - reach(share_1 - low_1, high_2 - share_2)
    return low, difference + reach(high_1 - share_1, share_2 - low_2)


def curve_band(matrix: Many, draws: int = 1000, seed: int = 0) -> tuple[Numbers, Numbers]:
    """Returns the ends of a 95 % band, (points,), around the mean of each column.

    It is the percentile bootstrap over samples, pointwise (Efron 1979, doi.org/10.1214/aos/1176344552). Where all
    samples agree, all resamples would be equal, so Wilson's interval is used instead.

    Args:
        matrix: (samples, points): whether each sample is robust (or broken) at each point.
        draws: The number of resamplings.
        seed: The seed of the draws.

    Raises:
        ValueError: If the matrix does not have two dimensions, or has no samples.

    >>> robust = np.arange(100)[:, None] >= [0, 20, 50]
    >>> low, high = curve_band(robust)
    >>> bool((low <= robust.mean(0)).all() and (robust.mean(0) <= high).all())
    True
    """
    values = np.asarray(matrix, bool)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"matrix of shape {values.shape} must be (samples, points), with a sample at least.")
    n, generator = len(values), np.random.default_rng(seed)
    packed, counts = np.unique(np.packbits(values, axis=1), axis=0, return_counts=True)
    rows = np.unpackbits(packed, axis=1, count=values.shape[1]).astype(np.float64)  # equal rows are grouped
    block = max(1, MAX_WEIGHTS // len(rows))
    parts = [
        generator.multinomial(n, counts / n, size=min(block, draws - done)) @ rows / n
        for done in range(0, draws, block)
    ]
    ends = np.quantile(np.concatenate(parts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    number = values.sum(0)
    low, high = np.where((number == 0) | (number == n), wilson(number, n), ends)
    return low, high


def seed_spread(runs: Sequence[Run]) -> pl.DataFrame:
    """Returns one row for each group of two or more finished runs that differ only in their seed.

    Columns: `folder` (of the first run), `seeds`, `n` (the number of runs), `samples`; `mean`, `std` (divisor n - 1),
    `min` and `max` of their robust accuracies; `robust_against_all` (the share of samples that are robust in all runs).

    Raises:
        ValueError: If a table of samples cannot be read.
    """
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.metrics:
            groups.setdefault(settings_key(run.job, without=("seed",)), {}).setdefault(run.record.seed, run)
    rows = [_spread(group) for group in groups.values() if len(group) > 1]
    return pl.DataFrame(rows, schema=_SPREAD, orient="row")


_SPREAD = {
    "folder": pl.String,
    "seeds": pl.List(pl.Int64),
    "n": pl.Int64,
    "samples": pl.Int64,
    **dict.fromkeys(["mean", "std", "min", "max", "robust_against_all"], pl.Float64),
}


def _spread(by_seed: dict[int, Run]) -> list[Any]:
    members = list(by_seed.values())
    robust = np.array([run.robust for run in members])
    tables = [run.samples().select("id", robust=ROBUST) for run in members]
    robust_in_all = (
        pl.concat(tables).group_by("id").agg(pl.col("robust").all()).select(pl.col("robust").mean(), count=pl.len())
    )
    share, samples = robust_in_all.collect(engine="streaming").row(0)
    figures = [robust.mean(), robust.std(ddof=1), robust.min(), robust.max()]
    return [str(members[0].folder), sorted(by_seed), len(members), samples, *map(float, figures), share]
