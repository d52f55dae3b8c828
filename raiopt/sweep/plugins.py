"""Makes raiopt's launchers and sweepers known to Hydra."""

import importlib
import sys
from types import ModuleType

from hydra.core.plugins import Plugins

from raiopt.configs import PLUGINS
from raiopt.sweep.grid import GridSweeper
from raiopt.sweep.local_engine import LocalLauncher
from raiopt.sweep.ray_engine import RayLauncher
from raiopt.sweep.search import OptunaSweeper
from raiopt.sweep.slurm_engine import SlurmLauncher

CLASSES = (GridSweeper, OptunaSweeper, LocalLauncher, SlurmLauncher, RayLauncher)


def register_plugins() -> None:
    """Puts them into the package from which alone Hydra takes plugins; in this process, not in other Hydra apps."""
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
