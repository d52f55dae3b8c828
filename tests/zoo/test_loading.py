import os

import pytest

from raiopt.zoo.loading import MAX_RESULTS, once


def counted():
    calls = []

    @once
    def load(name, *, options=None, mapping=None):
        calls.append(name)
        return object()

    return load, calls


def test_equal_arguments_give_the_same_object_however_they_are_written():
    load, calls = counted()
    first = load("a", options=[1, [2, 3]], mapping={"k": [1]})
    assert load(name="a", mapping={"k": (1,)}, options=(1, (2, 3))) is first
    assert load("a", options=[1, [2, 4]], mapping={"k": [1]}) is not first
    assert load("b") is load("b", options=None)
    assert calls == ["a", "a", "b"]


def test_only_the_last_few_are_kept():
    load, calls = counted()
    first = load(0)
    for number in range(1, MAX_RESULTS + 1):
        load(number)
    assert load(0) is not first
    assert load(MAX_RESULTS) is load(MAX_RESULTS)
    assert len(calls) == MAX_RESULTS + 2


def test_arguments_that_cannot_be_a_key_are_loaded_each_time():
    load, calls = counted()
    unhashable = {1}
    assert load("a", options=unhashable) is not load("a", options=unhashable)
    assert calls == ["a", "a"]


def test_a_failure_is_not_cached():
    results = iter([ValueError("broken"), "fine"])

    @once
    def load():
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    with pytest.raises(ValueError, match="broken"):
        load()
    assert load() == load() == "fine"


def test_a_file_that_changed_is_loaded_again(tmp_path):
    load, _ = counted()
    file = tmp_path / "weights"
    file.write_text("one")
    first = load(str(file))
    assert load(str(file)) is first
    os.utime(file, ns=(1, 1))
    assert load(str(file)) is not first


def test_name_and_docstring_are_kept():
    @once
    def load(name: str) -> str:
        """Returns the name."""
        return name

    assert (load.__name__, load.__doc__, load.__annotations__["name"]) == ("load", "Returns the name.", str)
