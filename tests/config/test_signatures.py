"""Signatures that are read from source files, against those of the imported classes and functions."""

import inspect
from importlib import import_module
from typing import Any

import pytest
from torch import optim as torch_optim

import raiopt
from raiopt import optim
from raiopt.config.groups import OPTIONS
from raiopt.config.signatures import REQUIRED, Argument, constant, described, documented
from raiopt.optim import bounded

PATHS = [f"raiopt.optim.{name}" for name in optim.__all__ if name != "ParamTransformingOptimizer"]
PATHS += [option.target for options in OPTIONS.values() for option in options.values()]
PATHS += [f"raiopt.sweep.{name}" for name in ("local.LocalLauncher", "slurm_options.SlurmOptions", "ray.RayLauncher")]
PATHS += [f"raiopt.sweep.{name}" for name in ("grid.GridSweeper", "tuning.OptunaSweeper")]
PATHS = sorted({path for path in PATHS if not path.startswith("hydra_plugins")} | {"raiopt.fast.Inference"})
KINDS = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def imported(path):
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("path", PATHS)
def test_signatures_agree_with_inspect(path):
    read = described(path).arguments
    real = {name: p for name, p in inspect.signature(imported(path)).parameters.items() if p.kind not in KINDS}
    assert set(read) == set(real)
    for name, parameter in real.items():
        plain = isinstance(parameter.default, bool | int | float | str | tuple | None)
        assert (read[name].default is REQUIRED) == (parameter.default is inspect.Parameter.empty)
        if plain:
            assert read[name].default == parameter.default


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("float", float),
        ("float | Tensor", float),
        ("int | None", int | None),
        ("float | Tensor | None", float | None),
        ("Optional[bool]", bool | None),
        ("tuple[float | Tensor, float | Tensor]", tuple[float, float]),
        ("Literal['a', 'b']", str),
        ("Sequence[str]", list[str]),
        ("Mapping[str, Any]", dict[str, Any]),
        ("Mapping[str, Any] | None", Any),  # OmegaConf fails to merge a mapping into None
        ("Sequence[float] | None", list[float] | None),
    ],
)
def test_annotations_become_types_that_a_config_checks(tmp_path, monkeypatch, annotation, expected):
    name = f"own_signature_{abs(hash(annotation))}"
    (tmp_path / f"{name}.py").write_text(f"def made(x: {annotation} = None):\n    '''Made.'''\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = described(f"{name}.made").arguments["x"].type
    assert found == expected


def test_a_constant_is_read_without_importing():
    assert constant("raiopt.optim.bounded.DEFAULTS") == bounded.DEFAULTS


def test_unknown_paths_are_errors():
    for path in ("raiopt.optim.NoSuchOptim", "nowhere_at_all.thing", "raiopt.nothing.thing", "math.sqrt"):
        with pytest.raises(LookupError):
            described(path)


def test_arguments_are_documented_in_the_words_of_the_command():
    text = "Draws.\n\nArgs:\n    low, high: Bounds; None: no bound.\n    fold: True by\n        default.\n"
    bound = "Bounds; null: no bound."
    assert documented(text) == {"low": bound, "high": bound, "fold": "true by default."}
    assert documented("Draws.") == {}


def test_reading_does_not_modify_the_class():
    before = inspect.signature(torch_optim.Adam)
    assert isinstance(described("torch.optim.Adam").arguments["amsgrad"], Argument)
    assert inspect.signature(torch_optim.Adam) == before
    assert raiopt.__version__
