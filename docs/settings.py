"""The tables of command.md: every option of every group, every setting and every verb, as the code has them."""

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any
from unittest import mock

from raiopt.config.explain import VERBS, typed
from raiopt.config.groups import OPTIONS
from raiopt.config.listing import USAGE, meanings
from raiopt.config.options import JobOptions
from raiopt.config.signatures import documented
from raiopt.config.sources import options, read_from_yaml
from raiopt.verbs import carry_out


def reference() -> str:
    """Returns the Markdown of all tables."""
    lines = ["```text", USAGE.rstrip(), "```", "", "## For every job", "", "| setting | default | what it means |"]
    lines.append("|---|---|---|")
    for name, text in documented(JobOptions.__doc__ or "").items():
        lines.append(f"| `{name}` | `{_shown(getattr(JobOptions(), name))}` | {_cell(text)} |")
    for group, names in sorted(options().items(), key=lambda item: item[0].startswith("hydra/")):
        lines += ["", f"## `{group}`", "", *(_group(group) if group in OPTIONS else _files(group, names))]
    for verb in VERBS:
        lines += ["", f"## `raiopt {verb}`", "", "```text", _help(verb), "```"]
    return "\n".join([*lines, ""])


def _files(group: str, names: list[str]) -> Iterator[str]:
    yield from ["| option | what it is |", "|---|---|"]
    for name in names:
        yield f"| `{group}={name}` | {_cell(read_from_yaml(group, name)[0])} |"


def _group(group: str) -> Iterator[str]:
    of = {name: option.defaults for name, option in OPTIONS[group].items()}
    first, most = next(iter(of.values())), len(of) / 2
    having = {key: [own[key] for own in of.values() if key in own] for key in first}
    alike = [key for key, found in having.items() if len(found) > most and found.count(first[key]) == len(found)]
    if group == "optim/InnerOpt":
        alike = []
    yield from ["| option | what it is | its own defaults |", "|---|---|---|"]
    for name, own in of.items():
        shown = " ".join(f"`{key}={_shown(value)}`" for key, value in own.items() if key not in alike)
        yield f"| `{group}={name}` | {_cell(_what(group, name))} | {_cell(shown)} |"
    if texts := meanings(group):
        yield from ["", "| setting | default | what it means |", "|---|---|---|"]
    for key, text in texts.items():
        default = f"`{_shown(first[key])}`" if key in alike else ""
        yield f"| `{group.replace('/', '.')}.{key}` | {_cell(default)} | {_cell(text)} |"


def _what(group: str, name: str) -> str:
    option = OPTIONS[group][name]
    if group == "optim/InnerOpt":
        return f"[{option.target}](https://docs.pytorch.org/docs/stable/generated/{option.target}.html)"
    return option.doc


def _shown(value: Any) -> str:
    return "required" if value == "???" else typed(value) or '""'


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _help(verb: str) -> str:
    with redirect_stdout(io.StringIO()) as out, mock.patch.dict(os.environ, COLUMNS="100"):
        carry_out([verb, "--help"])
    return out.getvalue().rstrip()
