"""A grid is the product of the values of each option."""

import itertools

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from raiopt.sweep.grid import MAX_JOBS, combinations

VALUES = ["1", "0.5", "-1", "null", "true", "abc", "'a,b'", "[1,2]", "{a:1}", "${seed}", "1e-3", "inf"]
OPTIONS = ["seed", "optim.lr", "optim", "+extra", "++note", "optim/InnerOpt"]
parser = OverridesParser.create()


def parsed(words):
    return parser.parse_overrides(list(words))


def value(word):
    (override,) = parsed([word])
    return override.get_key_element(), repr(override.value())


@given(st.dictionaries(st.sampled_from(OPTIONS), st.lists(st.sampled_from(VALUES), min_size=1, max_size=4), max_size=4))
def test_every_combination_once_the_last_option_fastest(values):
    jobs = combinations(parsed(f"{key}={','.join(found)}" for key, found in values.items()))
    expected = itertools.product(*([value(f"{key}={one}") for one in found] for key, found in values.items()))
    assert [tuple(map(value, job)) for job in jobs] == list(expected)


@given(st.integers(-5, 5), st.integers(1, 6), st.integers(1, 3))
def test_ranges_agree_with_python(start, count, step):
    stop = start + count * step
    (override,) = parsed([f"seed=range({start},{stop},{step})"])
    found = combinations([override])
    assert found == [[f"seed={number}"] for number in range(start, stop, step)]


def test_the_option_given_last_counts():
    assert combinations(parsed(["seed=1,2,3", "note=a", "seed=4,5"])) == [["seed=4", "note=a"], ["seed=5", "note=a"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=interval(0,1)"], "seed=interval\\(0,1\\) is no list of values. Search it with hydra/sweeper=optuna"),
        (["seed=range(1,1)"], "The sweep has no jobs"),
        (
            [f"seed=range(0,{MAX_JOBS // 2})", "optim.lr=1,2,3", "note=a"],
            r"15,000 jobs: 5000 \(seed\) x 3 \(optim.lr\)",
        ),
    ],
)
def test_invalid_grids_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        combinations(parsed(words))


def test_very_large_grids_are_accepted_if_confirmed():
    words = [f"seed=range(0,{MAX_JOBS + 1})"]
    assert len(combinations(parsed(words), is_confirmed=True)) == MAX_JOBS + 1
    assert len(combinations(parsed([f"seed=range(0,{MAX_JOBS})"]))) == MAX_JOBS
