"""A tolerant reader of `run.json`, which may be damaged or untrusted."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from raiopt import checks
from raiopt.results.files import read_file
from raiopt.results.record import IN_PYTHON_ONLY, SCHEMA, Record, Status

MAX_RECORD_BYTES = 2**20
UNIONS = (Union, UnionType)
"""The types of `A | B` at runtime, depending on A and B."""


def load_record(folder: Path) -> Record:
    """Returns the record in a folder, which may be untrusted; control characters in strings are escaped.

    Raises:
        FileNotFoundError: If the folder has no run.json.
        ValueError: If it cannot be read at all, or has another schema; the message names the file.
    """
    path = folder / "run.json"
    try:
        text = read_file(path, MAX_RECORD_BYTES + 1)
        if len(text) > MAX_RECORD_BYTES:
            raise ValueError(f"it is larger than {MAX_RECORD_BYTES:,} bytes")
        content = json.loads(text)
    except FileNotFoundError:
        why = f"{path} does not exist: give the folder of one job, as in outputs/NAME/JOB."
        raise FileNotFoundError(why) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {checks.printable(str(error))}.") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA or not isinstance(schema, int):
        raise ValueError(
            f"{path} has the schema {checks.printable(str(schema))}, and this version of raiopt reads {SCHEMA}."
        )
    if content.get("status") not in get_args(Status):
        raise ValueError(f"{path} has no status: it must be one of {', '.join(get_args(Status))}.")
    return record_of(content, str(path))


def read_record(folder: Path) -> Record | None:
    """Returns the record in a folder; None if there is no readable record of this schema."""
    try:
        return load_record(folder)
    except (FileNotFoundError, ValueError):
        return None


def record_of(content: Mapping[str, Any], file: str = "run.json") -> Record:
    """Returns the record described by a dictionary; invalid fields get their defaults and are named in `problems`.

    >>> record_of({"schema": 2, "status": "finished", "batch_size": "many"}).problems[-1]
    "run.json: batch_size='many' must be an integer or null."
    """
    problems: list[str] = []
    record = _read(Record, content, "", problems)
    return replace(record, problems=tuple(f"{file}: {problem}" for problem in problems))


def _read(kind: Any, content: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    """Returns a dataclass, reading each field independently of the others."""
    values = {}
    hints = {name: hint for name, hint in field_types(kind).items() if name not in IN_PYTHON_ONLY}
    if missing := [name for name in hints if name not in content]:
        problems.append(f"{where} lacks {', '.join(missing)}.".lstrip())
    for name, hint in hints.items():
        if name not in content:
            continue
        place = f"{where}.{name}".lstrip(".")
        try:
            values[name] = _fitted(hint, content[name], place, problems)
        except (TypeError, OverflowError):
            problems.append(f"{place}={checks.printable(repr(content[name])[:40])} must be {type_words(hint)}.")
    return kind(**values)


def _fitted(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Converts a JSON value to a type; raises a TypeError if it does not match."""
    if is_dataclass(hint):
        if isinstance(value, dict):
            return _read(hint, value, where, problems)
    elif get_origin(hint) in UNIONS:
        for kind in get_args(hint):
            try:
                return _fitted(kind, value, where, problems)
            except TypeError:
                continue
    elif get_origin(hint) is list:
        if isinstance(value, list):
            return [_fitted(get_args(hint)[0], entry, where, problems) for entry in value]
    elif get_origin(hint) is dict:
        if isinstance(value, dict):
            entry_hint = get_args(hint)[1]
            return {checks.printable(key): _fitted(entry_hint, entry, where, problems) for key, entry in value.items()}
    elif get_origin(hint) is Literal:
        if value in get_args(hint) and isinstance(value, str):
            return value
    elif hint is Any:
        return escaped(value)
    elif hint is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif type(value) is hint:
        return escaped(value)
    raise TypeError(where)


def escaped(value: Any) -> Any:
    """Returns a JSON value with all control characters in its strings escaped."""
    if isinstance(value, dict):
        return {escaped(key): escaped(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [escaped(entry) for entry in value]
    return checks.printable(value) if isinstance(value, str) else value


@cache
def field_types(kind: type) -> dict[str, Any]:
    """Returns the type of each field of a dataclass."""
    hints = get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in fields(kind)}


_WORDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false", NoneType: "null", Any: "anything"}


def type_words(hint: Any) -> str:
    """Returns a readable description of a field's type.

    >>> type_words(float | list[float] | None)
    'a number, a list (a number) or null'
    """
    if hint in _WORDS:
        return _WORDS[hint]
    arguments: Sequence[Any] = get_args(hint)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(arguments)}"
    if get_origin(hint) in UNIONS:
        *first, last = map(type_words, arguments)
        return f"{', '.join(first)} or {last}"
    if arguments:
        return f"{'a list' if get_origin(hint) is list else 'a mapping'} ({type_words(arguments[-1])})"
    return hint.__name__
