"""The tables of record.md: every field of run.json, from the types and docstrings of `raiopt.results.record`."""

import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_args

from raiopt.config.signatures import documented
from raiopt.results.record import IN_PYTHON_ONLY, Record
from raiopt.results.record_reader import field_types, type_words


def record_types(kind: type = Record) -> Iterator[type]:
    """Yields a dataclass of the record and those of its fields."""
    yield kind
    for hint in field_types(kind).values():
        for part in (hint, *get_args(hint)):
            if is_dataclass(part) and isinstance(part, type):
                yield from record_types(part)


def fields_of(kind: type) -> dict[str, tuple[Any, str]]:
    """Returns the type and the meaning of each field that run.json holds."""
    meanings = documented(inspect.getdoc(kind) or "")
    return {name: (hint, meanings[name]) for name, hint in field_types(kind).items() if name not in IN_PYTHON_ONLY}


def reference() -> str:
    """Returns the Markdown of all tables."""
    lines: list[str] = []
    for kind in record_types():
        summary = (inspect.getdoc(kind) or "").partition("\n\n")[0]
        lines += [
            f"## {kind.__name__}",
            "",
            " ".join(summary.split()),
            "",
            "| field | value | meaning |",
            "|---|---|---|",
        ]
        lines += [f"| `{name}` | {_value(hint)} | {text} |" for name, (hint, text) in fields_of(kind).items()]
        lines.append("")
    return "\n".join(lines)


def _value(hint: Any) -> str:
    """Returns what a field may hold, with a link to the table of a part."""
    parts = [part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)]
    words = type_words(hint)
    return words.replace(parts[0].__name__, f"[{parts[0].__name__}](#{parts[0].__name__.lower()})") if parts else words
