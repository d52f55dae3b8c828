"""The verbs (subcommands) of the command: one module each, whose `main(words)` returns the exit status."""

import argparse
from importlib import import_module
from typing import Any, NoReturn

from raiopt.config.explain import VERBS


class Parser(argparse.ArgumentParser):
    """Parses the words after a verb; invalid words raise a ValueError, like other errors of the command.

    Args:
        verb: The name of the verb.
        what: A sentence that describes it.

    >>> parser = Parser("report", "Writes a report.")
    >>> _ = parser.add_argument("folder")
    >>> parser.parse_args(["outputs/mine"]).folder
    'outputs/mine'
    >>> parser.parse_args([])
    Traceback (most recent call last):
    ValueError: raiopt report: the following arguments are required: folder. See raiopt report --help.
    """

    def __init__(self, verb: str, what: str, **settings: Any) -> None:
        super().__init__(prog=f"raiopt {verb}", description=what, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}. See {self.prog} --help.")


def carry_out(words: list[str]) -> int | None:
    """Runs the verb at the start of the words, and returns the exit status; None if there is no verb."""
    if not words or words[0] not in VERBS:
        return None
    try:
        return import_module(f"raiopt.verbs.{words[0]}").main(words[1:])
    except SystemExit as end:  # raised by argparse after printing its help
        return int(end.code or 0)
