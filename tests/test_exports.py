"""Public names of `import raiopt`, what it does not import, and the content of the wheel."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import raiopt

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", raiopt.__all__)
def test_every_public_name_loads(name):
    value = getattr(raiopt, name)
    assert value.__name__ == name
    assert value.__doc__


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'L3ProjectedOptim'.*L2ProjectedOptim"):
        _ = raiopt.L3ProjectedOptim


@pytest.mark.parametrize("name", ["optim", "perturbations", "transforms", "sampling", "zoo"])
def test_subpackages_are_loaded_on_first_use(name):
    code = f"import raiopt; print(raiopt.{name}.__name__, {name!r} in dir(raiopt))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [f"raiopt.{name}", "True"]


def test_dir_lists_the_public_names():
    assert set(raiopt.__all__) <= set(dir(raiopt))


def test_importing_raiopt_does_not_import_torch():
    code = "import sys, raiopt; sys.exit(bool({'torch', 'torchvision', 'hydra'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_package_is_shipped_and_the_versions_agree():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "raiopt").rglob("*.py")}
    assert set(pyproject["tool"]["setuptools"]["packages"]) == folders | {"raiopt.conf"}
    assert pyproject["project"]["version"] == raiopt.__version__
