"""Statistics against scipy, exact enumeration, and tables of the literature."""

import itertools
import json
from math import comb

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import binom, binomtest, multinomial

from raiopt.reports.runs import Run, load_run, load_runs
from raiopt.reports.statistics import ROBUST, compare, curve_band, of_counts, seed_spread, wilson
from raiopt.results.metrics import metrics
from tests.results.sweeps import LINF, make

COUNTS = st.tuples(*[st.integers(0, 60)] * 4).filter(any)


def table(broken, start=0, labels=None, names=None):
    """Samples with consecutive ids, all predicted right."""
    n = len(broken)
    labels = [0] * n if labels is None else labels
    ids = range(start, start + n)
    return pl.DataFrame(
        {
            "id": ids,
            "name": [f"d/{i}" for i in ids] if names is None else names,
            "label": labels,
            "clean_prediction": labels,
            "verified": broken,
            "undecided": [False] * n,
            "stopped": ["fooled" if b else "steps" for b in broken],
        },
        schema_overrides={"id": pl.Int64, "label": pl.Int64, "clean_prediction": pl.Int64, "verified": pl.Boolean},
    )


def run_of(root, name, samples, **fields) -> Run:
    robust = float(samples.select(ROBUST.mean()).item())
    folder = make(root, name, robust, **{"data": {"name": "d", "samples": len(samples)}, **fields})
    record = json.loads((folder / "run.json").read_text())
    record["hashes"] = {"weights": "w", "data": fields.get("digest", "h")}
    record["data"] = {"name": fields.get("source", "d")}
    (folder / "run.json").write_text(json.dumps(record))
    samples.write_parquet(folder / "samples.parquet")
    return load_run(folder)


@given(n=st.integers(1, 10**6), data=st.data(), level=st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_wilson_agrees_with_scipy(n, data, level):
    s = data.draw(st.integers(0, n))
    expected = binomtest(s, n).proportion_ci(level, method="wilson")
    assert_allclose(wilson(s, n, level), [expected.low, expected.high], rtol=1e-9, atol=1e-15)


def test_wilson_accepts_columns_and_is_exact_at_0_and_1():
    frame = pl.DataFrame({"s": [0, 0, 3, 7], "n": [0, 7, 7, 7]})
    low, high = wilson(frame["s"], frame["n"])
    assert (low[0], high[0]) == (0, 1)
    assert (low[1], high[3]) == (0, 1)
    assert_allclose([low[2], high[2]], wilson(3, 7))
    assert_allclose(wilson(np.arange(8), 7)[0][3], low[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((3, 2), "successes=3 must lie between 0 and trials=2"), ((-1, 2), "successes=-1"), ((1, 2, 1.0), "level=1.0")],
)
def test_wilson_refuses_values_that_are_not_shares(arguments, message):
    with pytest.raises(ValueError, match=message):
        wilson(*arguments)


@pytest.mark.parametrize("n", [20, 100, 500])
def test_wilson_covers_the_true_share(n):
    """Exactly: over all outcomes, weighted with their probability."""
    outcomes, shares = np.arange(n + 1), np.linspace(0.02, 0.98, 97)
    low, high = wilson(outcomes, n)
    held = (low[:, None] <= shares) & (shares <= high[:, None])
    coverage = (binom.pmf(outcomes[:, None], n, shares) * held).sum(0)
    assert abs(coverage.mean() - 0.95) < 0.01
    assert coverage.min() > 0.83  # near 0 and 1 no such interval holds its level everywhere


@given(counts=COUNTS)
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(counts):
    found = of_counts(*counts)
    b, c = counts[1], counts[2]
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert_allclose(found.p_value, expected, rtol=1e-9)


@pytest.mark.parametrize("discordant", range(1, 60))
def test_mcnemar_rejects_equal_attacks_in_one_of_twenty_at_most(discordant):
    rejected = [k for k in range(discordant + 1) if of_counts(5, k, discordant - k, 5).p_value <= 0.05]
    assert sum(comb(discordant, k) for k in rejected) / 2**discordant <= 0.05


@pytest.mark.parametrize(
    ("both", "first", "second", "none", "low", "high"),
    [
        (36, 12, 2, 0, 0.0569, 0.3404),  # Newcombe 1998, Statistics in Medicine 17, 2635-2650
        (1, 1, 7, 12, -0.507, -0.026),  # Fagerland, Lydersen, Laake 2014, doi.org/10.1002/sim.6148, airway response
    ],
)
def test_the_paired_interval_agrees_with_the_literature(both, first, second, none, low, high):
    found = of_counts(none, second, first, both)  # here a count of robust samples is the share
    assert_allclose(found.interval, (low, high), atol=6e-4 if low < 0 else 6e-5)
    assert found.difference == (first - second) / (both + first + second + none)


@given(counts=COUNTS)
def test_swapping_the_runs_negates_the_difference(counts):
    one, other = of_counts(*counts), of_counts(counts[0], counts[2], counts[1], counts[3])
    assert_allclose(one.interval, [-end for end in other.interval][::-1], atol=1e-12)
    assert one.difference == -other.difference
    assert one.p_value == other.p_value
    assert -1 - 1e-12 <= one.interval[0] <= one.difference <= one.interval[1] <= 1 + 1e-12


@pytest.mark.parametrize("shares", [(0.2, 0.05, 0.1, 0.65), (0.25, 0.25, 0.25, 0.25), (0.5, 0.02, 0.02, 0.46)])
def test_the_paired_interval_covers_the_true_difference(shares):
    """Exactly, over all tables of 30 pairs."""
    n, coverage = 30, 0.0
    tables = [t for t in itertools.product(range(n + 1), repeat=3) if sum(t) <= n]
    rows = np.array([(*t, n - sum(t)) for t in tables])
    probability = multinomial.pmf(rows, n, shares)
    truth = shares[2] - shares[1]
    for row, weight in zip(rows[probability > 1e-7].tolist(), probability[probability > 1e-7], strict=True):
        low, high = of_counts(*row).interval
        coverage += weight * (low <= truth <= high)
    assert coverage > 0.93  # the correction of the correlation makes it wide where few pairs differ


@given(
    broken=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12),
    more=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_runs_are_compared_on_the_samples_that_both_have(tmp_path_factory, broken, more):
    root = tmp_path_factory.mktemp("pairs")
    n, (more_a, more_b) = len(broken), more
    a = run_of(root, "a", table([one for one, _ in broken] + [True] * more_a), digest="a")
    b = run_of(root, "b", table([True] * more_b + [other for _, other in broken], start=-more_b), digest="b")
    found = compare(a, b)
    assert (found.shared, found.only_in_a, found.only_in_b) == (n, more_a, more_b)
    counts = {pair: broken.count(pair) for pair in itertools.product([True, False], repeat=2)}
    assert found.both_broken == counts[True, True]
    assert found.only_a_broke == counts[True, False]
    assert found.only_b_broke == counts[False, True]
    assert found.neither == counts[False, False]


def test_robust_samples_agree_with_the_metrics_of_the_job(tmp_path):
    values = [None, True, False]
    rows = itertools.product([0, 1, None], values, values, ["fooled", "not_finite", "misclassified"])
    names = ("clean_prediction", "verified", "undecided", "stopped")
    others = "forward_passes backward_passes zero_gradients steps target adversarial_prediction l0 l1 l2 linf"
    nothing = dict.fromkeys(others.split(), 0)
    samples = pl.DataFrame(
        [dict(zip(names, row, strict=True)) for row in rows], schema_overrides={"verified": pl.Boolean}
    )
    samples = samples.with_columns(label=pl.lit(1), **{name: pl.lit(value) for name, value in nothing.items()})
    samples = samples.with_columns(claimed=False, zero_at_start=False, verified_8bit=False)
    robust = samples.select(ROBUST.mean()).item()
    assert robust > 0
    assert metrics(samples.lazy()).robust_accuracy == robust


def test_samples_with_other_labels_or_names_are_not_the_same(tmp_path):
    a = run_of(tmp_path, "a", table([True] * 4), digest="a")
    b = run_of(tmp_path, "b", table([True] * 4, labels=[0, 1, 0, 0], names=["d/0", "d/1", "x", "d/3"]), digest="b")
    assert (compare(a, b).shared, compare(a, b).only_in_a) == (2, 2)
    assert "2 samples of A are not in the other and do not count" in compare(a, b).words("A", "B")


def test_runs_without_common_samples_cannot_be_compared(tmp_path):
    a, far = (
        run_of(tmp_path, name, table([True] * 3, start=start), digest=name) for name, start in (("a", 0), ("b", 9))
    )
    with pytest.raises(ValueError, match="share 0 samples: they have 3 of d and 3 of d"):
        compare(a, far)
    other = run_of(tmp_path, "c", table([True] * 3), digest="c", source="e")
    with pytest.raises(ValueError, match="3 of d and 3 of e"):
        compare(a, other)
    failed = load_run(make(tmp_path, "f", status="failed"))
    with pytest.raises(ValueError, match="f is failed: only finished runs can be compared"):
        compare(a, failed)


def test_a_difference_is_reported_with_its_noise(tmp_path):
    runs = [
        run_of(tmp_path, name, table([True] * broken + [False] * (100 - broken)), digest=digest, ball=ball)
        for name, broken, digest, ball in (
            ("a", 20, "h", LINF),
            ("b", 22, "h", LINF),
            ("c", 40, "i", {"norm": "l2", "epsilon": 1, "finite": True}),
        )
    ]
    same, noise, clear = (compare(runs[0], other).words("A", "B") for other in runs)
    assert same == "On 100 shared samples A leaves 80.0 % robust and B 80.0 %. The same samples are robust under both."
    assert "The difference of 2.0 points is within noise (95 % interval" in noise
    assert "p = 0.5): 2 samples are robust only under A, 0 only under B." in noise
    assert "That is 20.0 points more (95 % interval" in clear
    assert "p < 0.0001" in clear
    assert clear.endswith(
        "The hashes of their data differ: the images or their order are not the same. "
        "The balls differ: Linf 0.1 and L2 1."
    )
    assert "That is 20.0 points less (95 % interval" in compare(runs[2], runs[0]).words("B", "A")


def test_the_band_agrees_with_a_plain_bootstrap():
    generator = np.random.default_rng(0)
    matrix = generator.random((300, 4)) < [0.1, 0.4, 0.8, 0.95]
    draws = np.stack([matrix[generator.integers(0, 300, 300)].mean(0) for _ in range(4000)])
    assert_allclose(curve_band(matrix, draws=4000), np.quantile(draws, [0.025, 0.975], axis=0), atol=0.007)


def test_the_band_is_as_wide_as_the_spread_of_new_data():
    generator = np.random.default_rng(1)
    new = [(generator.random((200, 1)) < 0.3).mean() for _ in range(4000)]
    low, high = curve_band(np.arange(200)[:, None] < 60)
    assert_allclose((high - low).item(), np.subtract(*np.quantile(new, [0.975, 0.025])), atol=0.012)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 3))
def test_a_band_contains_its_curve_and_is_deterministic(first_broken, seed):
    robust = np.array(first_broken)[:, None] > np.arange(5)
    low, high = curve_band(robust, draws=300, seed=seed)
    assert (low <= robust.mean(0) + 1e-12).all()
    assert (robust.mean(0) <= high + 1e-12).all()
    assert_allclose(curve_band(robust, draws=300, seed=seed), (low, high))
    sure = (robust == robust[0]).all(0)
    assert ((high - low)[sure] > 0).all()


@pytest.mark.parametrize("matrix", [np.zeros(3, bool), np.zeros((0, 3), bool)])
def test_a_band_needs_samples_and_points(matrix):
    with pytest.raises(ValueError, match=r"must be \(samples, points\), with a sample at least"):
        curve_band(matrix)


def test_only_runs_that_differ_in_the_seed_are_grouped(tmp_path):
    broken = {0: [1, 1, 0, 0, 0], 1: [0, 1, 1, 0, 0], 2: [0, 1, 0, 0, 0]}
    for seed, entries in broken.items():
        options = {"seed": seed, "threads": seed + 1}
        run_of(tmp_path, f"s{seed}", table([bool(b) for b in entries]), seed=seed, overrides=options)
    run_of(tmp_path, "again", table([True] * 5), seed=0, overrides={"note": "again"})
    run_of(tmp_path, "other", table([True] * 5), seed=3, overrides={"seed": 3, "optim.lr": 0.2})
    run_of(tmp_path, "data", table([True] * 5), seed=4, overrides={"seed": 4}, digest="other")
    make(tmp_path, "failed", status="failed", seed=5, overrides={"seed": 5})
    runs = sorted(load_runs([tmp_path]), key=lambda run: not run.folder.name.startswith("s"))
    (row,) = seed_spread(runs).iter_rows(named=True)
    shares = [0.6, 0.6, 0.8]
    assert row.pop("folder").endswith("s0")
    assert (row.pop("seeds"), row.pop("n"), row.pop("samples")) == ([0, 1, 2], 3, 5)
    expected = [np.mean(shares), np.std(shares, ddof=1), 0.6, 0.8, 0.4]
    assert_allclose([row[name] for name in ("mean", "std", "min", "max", "robust_against_all")], expected)


def test_one_seed_has_no_spread(tmp_path):
    frame = seed_spread([run_of(tmp_path, "a", table([True]))])
    assert frame.is_empty()
    assert frame.schema["seeds"] == pl.List(pl.Int64)
