"""Imports point down: a file of raiopt imports only from what stands to its left in ORDER."""

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "raiopt").rglob("*.py"))
ORDER = """
    __init__ __version__ checks batching transforms sampling optim perturbations zoo fast attacks results reports
    job experiment library processes config sweep verbs cli __main__
"""
LAYERS: list[str] = [*ORDER.split()]
CONFIG, FIGURES = (
    ("config", "sweep", "verbs", "cli"),
    ("reports.figures", "reports.report"),
)
HOMES = {
    **dict.fromkeys(["hydra", "hydra_zen", "omegaconf"], CONFIG),
    **dict.fromkeys(["matplotlib", "plotly"], FIGURES),
    "torchvision": ("zoo.vision",),
    "mlflow": ("results.trackers",),
}


def imports(path: Path, source: str) -> Iterator[str]:
    """Yields the full name of everything that a file imports, inside functions too."""
    package = ".".join(path.parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden(path: Path, source: str) -> list[str]:
    """Returns the imports that the layers do not allow in this file."""
    module = ".".join(path.with_suffix("").parts[1:])
    unit = module.split(".")[0]
    bad = []
    for name in imports(path, source):
        top, _, rest = name.partition(".")
        if top == "raiopt":
            target = rest.split(".")[0]
            allowed = target == unit or target in LAYERS[: LAYERS.index(unit)]
        else:
            allowed = top not in HOMES or any(f"{module}.".startswith(f"{home}.") for home in HOMES[top])
        bad += [] if allowed else [name]
    return bad


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path):
    assert path.parts[1].removesuffix(".py") in LAYERS, "a new unit needs its place in LAYERS"
    assert not forbidden(path, (ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("raiopt/checks.py", "import raiopt.batching"),
        ("raiopt/optim/base.py", "def step():\n    from raiopt.attacks.engine import attack"),
        ("raiopt/optim/base.py", "from ..zoo import models"),
        ("raiopt/attacks/engine.py", "from raiopt import results"),
        ("raiopt/attacks/engine.py", "from raiopt import L2ProjectedOptim"),
        ("raiopt/zoo/models.py", "from torchvision.models import resnet18"),
        ("raiopt/experiment.py", "import omegaconf"),
        ("raiopt/results/folder.py", "from matplotlib import pyplot"),
        ("raiopt/__init__.py", "from raiopt.optim import base"),
    ],
)
def test_a_wrong_import_is_detected(path, source):
    assert forbidden(Path(path), source)
