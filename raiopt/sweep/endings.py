"""Messages about how workers and jobs ended, shared by all executors."""

import re
import signal
import textwrap

MAX_START_ATTEMPTS = 3
"""How many workers may die before a task starts running until the task is given up."""


def over_limit(minutes: float) -> str:
    """Returns the message for a job that exceeded its time limit."""
    return f"over its limit of {minutes:g} min (hydra.launcher.timeout_min)"


def killed_by(number: int) -> str:
    """Returns the message for a process that was killed by a signal.

    >>> killed_by(9)
    'its process was killed by SIGKILL (kill -9, or the system when memory was short)'
    """
    try:
        name = signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        name = f"signal {number}"
    often = " (kill -9, or the system when memory was short)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{often}"


def exit_reason(code: int) -> str:
    """Returns how a process ended, from its exit code in multiprocessing's convention: negative for a signal."""
    return f"its process ended with exit code {code}" if code >= 0 else killed_by(-code)


def one_line(error: BaseException | str) -> str:
    """Returns an error as one short line.

    >>> one_line(ValueError("a\\n  b"))
    'ValueError: a b'
    """
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return textwrap.shorten(text, 240, placeholder=" ...")


def last_line(printed: str) -> str:
    """Returns the last line that a process printed, without Ray's prefix of time and source."""
    lines = [line.strip() for line in printed.split("\n") if line.strip()]
    return one_line(re.sub(r"^\[[^]]*\] (\S+:\d+: )?", "", lines[-1])) if lines else "it printed nothing"
