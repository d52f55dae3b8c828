"""Hypothesis without a deadline, and torch threads that do not spin: both for busy machines."""

import logging
import os

from hypothesis import settings

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported; see raiopt.cli.main

import torch

settings.register_profile("raiopt", deadline=None)
settings.load_profile("raiopt")


def pytest_runtest_teardown() -> None:
    """Undoes what a job sets for the whole process: denormal numbers are 0, and the log goes to its file."""
    torch.set_flush_denormal(False)
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logging.FileHandler) and handler.baseFilename.endswith("run.log"):
            logging.getLogger().removeHandler(handler)
            handler.close()
