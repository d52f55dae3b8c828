"""Starts Python in other processes safely, without the current folder in sys.path.

`python -c` and `python -m` look for modules in the current folder first. In an untrusted folder, its `json.py` or
`polars.py` would run instead of the intended module.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from typing import Any, Literal, overload

_VARIABLE, _OURS = "PYTHONSAFEPATH", "raiopt"  # any text enables it; this one marks that raiopt set it
_guard = threading.RLock()


def python_command(*words: Any) -> list[Any]:
    """Returns the command that starts this Python with the given arguments."""
    return [sys.executable, "-P", *words]


@contextmanager
def without_current_folder() -> Iterator[None]:
    """Applies to all Python processes that multiprocessing starts in the context, by an environment variable.

    multiprocessing accepts no options, but passes on the environment. The variable is set only temporarily, because
    scripts started by user code may need the folder they are in.
    """
    with _guard:
        before = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = before or _OURS
        try:
            yield
        finally:
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before


def forget_start() -> None:
    """Removes the variable of `without_current_folder` from the environment of a new process."""
    if os.environ.get(_VARIABLE) == _OURS:
        del os.environ[_VARIABLE]


class _SpawnProcess(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with without_current_folder():
            return SpawnProcess._Popen(process_obj)  # pyright: ignore[reportAttributeAccessIssue]


class _ForkServerProcess(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with without_current_folder():  # it restarts the server if that has died
            return ForkServerProcess._Popen(process_obj)  # pyright: ignore[reportAttributeAccessIssue]


class _SpawnContext(SpawnContext):
    Process = _SpawnProcess


class _ForkServerContext(ForkServerContext):
    Process = _ForkServerProcess


@overload
def process_context(method: Literal["spawn"]) -> SpawnContext: ...
@overload
def process_context(method: Literal["forkserver"]) -> ForkServerContext: ...
def process_context(method: str) -> SpawnContext | ForkServerContext:
    """Returns a multiprocessing context whose processes, including later replacements, start in this safe way."""
    with without_current_folder():
        resource_tracker.ensure_running()  # otherwise the first lock of the context would start it
    return _SpawnContext() if method == "spawn" else _ForkServerContext()
