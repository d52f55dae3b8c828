"""A cache of loaded models and data, shared by the jobs of a sweep in the same process."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
MAX_RESULTS = 8


def once(load: Callable[P, R]) -> Callable[P, R]:
    """Decorates a loader with a cache of its last results: equal arguments return the same object.

    A file named by an argument is loaded again after it has changed.
    """
    parameters = signature(load)
    kept: dict[Hashable, R] = {}

    @wraps(load)
    def loaded(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = parameters.bind(*args, **kwargs)
        bound.apply_defaults()
        key = _hashable(bound.arguments)
        try:
            hash(key)
        except TypeError:  # an unhashable argument such as an array, which only Python code can pass
            return load(*args, **kwargs)
        if key not in kept:
            result = load(*args, **kwargs)
            if len(kept) == MAX_RESULTS:
                del kept[next(iter(kept))]
            kept[key] = result
        return kept[key]

    return loaded


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple((key, _hashable(entry)) for key, entry in value.items())
    if isinstance(value, (str, Path)) and (file := Path(value)).is_file():
        return (str(value), file.stat().st_mtime_ns, file.stat().st_size)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_hashable(entry) for entry in value)
    return value
