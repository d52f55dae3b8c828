"""The verbs of the command: a module each, whose `main(words)` returns the exit status."""

import argparse
from importlib import import_module
from typing import Any, NoReturn

from raiopt.config.explain import VERBS


class Parser(argparse.ArgumentParser):
    """Parses the words after a verb; a mistake is an error like any other of the command.

    Args:
        verb: Its name.
        what: Its description, a sentence.

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
    """Runs the verb that the words start with, and returns the exit status; None if they start with none."""
    if not words or words[0] not in VERBS:
        return None
    try:
        return import_module(f"raiopt.verbs.{words[0]}").main(words[1:])
    except SystemExit as end:  # of argparse, after it printed its help
        return int(end.code or 0)
