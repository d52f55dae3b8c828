"""Options by dotted name."""

from collections.abc import Iterable, Mapping
from typing import Any


def flat(node: Any, name: str = "", *, lists: bool = False) -> dict[str, Any]:
    """Returns the values of nested dictionaries by dotted name.

    Args:
        name: The name of the node itself.
        lists: Whether to flatten lists too: their entries are named name[0], name[1], ...

    >>> flat({"seed": 0, "optim": {"lr": 0.1, "kwargs": {}}, "x": {"a.b": 1}})
    {'seed': 0, 'optim.lr': 0.1, 'optim.kwargs': {}, 'x."a.b"': 1}
    >>> flat({"members": ["signed", {"momentum": 1}]}, lists=True)
    {'members[0]': 'signed', 'members[1].momentum': 1}
    """
    entries: Iterable[tuple[str, Any]]
    if isinstance(node, Mapping) and (node or not name):
        before = f"{name}." if name else ""
        entries = ((f'{before}"{key}"' if "." in str(key) else f"{before}{key}", value) for key, value in node.items())
    elif lists and isinstance(node, list) and node:
        entries = ((f"{name}[{number}]", value) for number, value in enumerate(node))
    else:
        return {name: node}
    found: dict[str, Any] = {}
    for key, value in entries:
        if isinstance(value, dict | list):
            found |= flat(value, key, lists=lists)
        else:
            found[key] = value
    return found
