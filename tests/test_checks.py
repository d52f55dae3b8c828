import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raiopt import checks


@given(value=st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_a_finite_number_is_returned_as_it_is(value: float) -> None:
    assert checks.number("x", value) is value


@given(value=st.floats(-10, 10), low=st.floats(-10, 10), high=st.floats(-10, 10), above=st.floats(-10, 10))
def test_the_limits_hold_alike_for_numbers_arrays_and_tensors(
    value: float, low: float, high: float, above: float
) -> None:
    allowed = low <= value <= high and value > above
    for form in (value, np.float64(value), np.array([value]), torch.tensor([[value]], dtype=torch.float64)):
        if allowed:
            assert checks.number("x", form, low=low, high=high, above=above) is form
        else:
            with pytest.raises(ValueError, match=r"^x"):
                checks.number("x", form, low=low, high=high, above=above)


@pytest.mark.parametrize("value", [True, None, "1", [1.0], 1j, torch.tensor([True]), torch.tensor([1j])])
def test_values_that_are_not_numbers_are_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="must be a finite number"):
        checks.number("lr", value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_everywhere(value: float) -> None:
    with pytest.raises(ValueError, match="lr"):
        checks.number("lr", value)
    with pytest.raises(ValueError, match=f"1 of its 3 entries break this, first {value}"):
        checks.number("lr", torch.tensor([1.0, value, 2.0]))


@pytest.mark.parametrize("value", [1.0, True, "1", None])
def test_integer_arguments_refuse_floats(value: object) -> None:
    assert checks.number("steps", 3, integer=True) == 3
    assert checks.number("steps", np.int64(3), integer=True) == 3
    with pytest.raises(TypeError, match=r"steps=.* must be an integer"):
        checks.number("steps", value, integer=True)


@pytest.mark.parametrize("value", [torch.tensor(3), torch.tensor([3, 4]), np.array([3])])
def test_a_tensor_is_refused_where_a_single_number_is_expected(value: object) -> None:
    with pytest.raises(TypeError, match=r"(?s)steps=.* must be an integer"):
        checks.number("steps", value, integer=True)
    with pytest.raises(TypeError, match=r"(?s)q=.* must be a finite number"):
        checks.number("q", value, scalar=True)


def test_the_message_names_argument_value_rule_and_remedy() -> None:
    with pytest.raises(ValueError, match=re.escape("q=1.5 must be a finite number, above 0, at most 1. Try 0.9.")):
        checks.number("q", 1.5, high=1, above=0, remedy="Try 0.9.")


def test_a_tensor_without_values_passes() -> None:
    checks.number("epsilon", torch.empty(3, device="meta"), low=0)


def test_a_choice_is_returned_or_the_options_are_named() -> None:
    assert checks.choice("p", 2.0, (1, 2)) == 2.0
    with pytest.raises(ValueError, match=r"optim='sgdd' must be one of 'adam', 'sgd'\. Did you mean 'sgd'\?"):
        checks.choice("optim", "sgdd", ["adam", "sgd"])
    with pytest.raises(ValueError, match=r"p=3 must be one of 1, 2\.$"):
        checks.choice("p", 3, (1, 2))


def test_suggestions_are_sorted_by_similarity() -> None:
    assert checks.near("l2_projectd", ["l1_normed", "linf_projected", "l2_projected"])[0] == "l2_projected"
    assert checks.near("xyz", ["adam"]) == []


def test_importing_the_checks_does_not_import_torch() -> None:
    code = "import sys, raiopt.checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
