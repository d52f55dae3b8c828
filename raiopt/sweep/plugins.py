"""Registers raiopt's launchers and sweepers with Hydra."""

import importlib
import sys
from types import ModuleType

from hydra.core.plugins import Plugins

from raiopt.config.groups import PLUGINS
from raiopt.sweep.grid import GridSweeper
from raiopt.sweep.local import LocalLauncher
from raiopt.sweep.ray import RayLauncher
from raiopt.sweep.slurm import SlurmLauncher
from raiopt.sweep.tuning import OptunaSweeper

CLASSES = (GridSweeper, OptunaSweeper, LocalLauncher, SlurmLauncher, RayLauncher)


def register_plugins() -> None:
    """Adds the plugins to hydra_plugins, the only package Hydra searches; other Hydra apps do not see them."""
    parent_name, _, name = PLUGINS.rpartition(".")
    try:
        parent = importlib.import_module(parent_name)
    except ModuleNotFoundError:  # no other plugin is installed
        parent = sys.modules[parent_name] = ModuleType(parent_name)
        parent.__path__ = []
    module = sys.modules[PLUGINS] = ModuleType(PLUGINS)
    setattr(parent, name, module)
    for kind in CLASSES:
        kind.__module__ = PLUGINS
        setattr(module, kind.__name__, kind)
        Plugins.instance().register(kind)
