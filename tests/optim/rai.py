"""rai_toolbox 0.2.1 for the tests that compare with it, which are skipped where it is not installed."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from raiopt.zoo import vision  # noqa: F401  # rai_toolbox imports torchvision, which this makes possible

_WHY = "rai_toolbox is not installed: scripts/test_peers runs this, or pip install -c constraints.txt -e '.[rai]'"


def installed() -> tuple[Any, Any]:
    """Returns rai_toolbox.optim and rai_toolbox.perturbations, or skips the module that asks."""
    optim = pytest.importorskip("rai_toolbox.optim", reason=_WHY)
    return optim, pytest.importorskip("rai_toolbox.perturbations", reason=_WHY)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the one warning that torch has for rai_toolbox's steps."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
        yield
