"""The store against the builders and the classes behind them; nothing of it needs torch."""

import inspect
import subprocess
import sys
from dataclasses import MISSING, fields
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra_zen import get_target
from omegaconf import OmegaConf, ValidationError
from torch import optim as torch_optim

from raiopt import configs, optim, zoo
from raiopt.attacks import Attack, Inference
from raiopt.builders import optimizers
from raiopt.configs import Bounded, GradientFree, store
from raiopt.sweep.grid import GridSweeper
from raiopt.sweep.job_key import register_resolvers
from raiopt.sweep.local_engine import LocalLauncher
from raiopt.sweep.ray_engine import RayEngine
from raiopt.sweep.search import OptunaSweeper
from raiopt.sweep.slurm_engine import SlurmOptions

PROJECTED = {
    "linf_projected": "LinfProjectedOptim",
    "l2_projected": "L2ProjectedOptim",
    "l1_projected": "L1ProjectedOptim",
    "l0_projected": "L0ProjectedOptim",
    "linf_frank_wolfe": "LinfFrankWolfe",
    "l2_frank_wolfe": "L2FrankWolfe",
    "l1_frank_wolfe": "L1FrankWolfe",
    "l1q_frank_wolfe": "L1qFrankWolfe",
    "chain": "ChainedParamTransformingOptimizer",
    "square": "SquareOptim",
    "apgd": "AdaptiveStepOptim",
    "steepest_projected": "SteepestProjectedOptim",
    "fmn": "FMNOptim",
    "ddn": "DDNOptim",
    "alma": "ALMAOptim",
    "cw": "CWOptim",
}
OF_A_BALL = ("square", "apgd", "steepest_projected", "fmn")
"""Whose `p` is that of `ball`."""
CLASSES = {**optimizers.TRANSFORMS, **PROJECTED}
MEMBERS = {"momentum", "lookahead", "variance_tuned"}
"""Of use only in a chain."""
OURS = {"params", "InnerOpt", "shared", "ball", "seed", "members"}
"""Arguments of builders that their classes need not have: `seed` makes the generator."""

INNER = {
    "sgd": torch_optim.SGD,
    "adam": torch_optim.Adam,
    "adamw": torch_optim.AdamW,
    "rmsprop": torch_optim.RMSprop,
}
LOADERS = {
    "model=torchvision": zoo.torchvision_model,
    "model=python": zoo.python_model,
    "data=digits": zoo.digits,
    "data=image_folder": zoo.image_folder,
    "data=torchvision": zoo.torchvision_data,
    "data=python": zoo.python_data,
}
FROM_MODEL = {"geometry", "categories", "num_classes"}


def nodes(group):
    return {entry["name"]: entry["node"] for entry in store if entry["group"] == group}


def names(function):
    return set(inspect.signature(function).parameters)


def _base(name):
    """Returns what the option lists beside the settings of its builder."""
    return GradientFree if name == "square" else Bounded


def test_every_option_of_optim_is_compared_with_its_class():
    assert set(nodes("optim")) == set(CLASSES) - MEMBERS
    assert set(nodes("optim/InnerOpt")) == set(INNER)


@pytest.mark.parametrize("name", CLASSES)
def test_settings_of_optim_are_arguments_of_the_class(name):
    builder, made = names(getattr(optimizers, name)), names(getattr(optim, CLASSES[name]))
    shared = {field.name for field in fields(_base(name))} - {"lr", "epsilon"}
    assert (builder - OURS) | shared <= made
    assert ("seed" in builder) == ("generator" in made or name == "chain")
    assert ("ball" in builder) == (name not in PROJECTED or name in ("chain", *OF_A_BALL))


@pytest.mark.parametrize("name", CLASSES)
def test_own_arguments_of_the_class_are_settings_of_optim(name):
    own = names(getattr(optim, CLASSES[name])) - names(optim.ParamTransformingOptimizer)
    given = names(getattr(optimizers, name)) | {
        "lr",
        "epsilon",
        "generator",
        "div_by_zero_eps",
        "transforming_optimizers",
        *(["p"] if name in OF_A_BALL else []),
    }
    assert own <= given


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - MEMBERS))
def test_an_option_has_an_inner_optimizer_if_its_builder_takes_one(name):
    node = OmegaConf.structured(nodes("optim")[name])
    assert ("InnerOpt" in set(node)) == ("InnerOpt" in names(getattr(optimizers, name)))
    assert {field.name for field in fields(_base(name))} <= set(node)
    with pytest.raises(ValidationError):
        node.epsilon = "much"


@pytest.mark.parametrize("name", INNER)
def test_inner_optimizers_have_torchs_arguments_and_defaults(name):
    ours, torchs = inspect.signature(optimizers.__dict__[name]).parameters, inspect.signature(INNER[name]).parameters
    assert set(ours) <= set(torchs)
    assert ours["lr"].default is inspect.Parameter.empty
    assert all(p.default == torchs[n].default for n, p in ours.items() if n not in {"params", "lr"})


@pytest.mark.parametrize("option", LOADERS)
def test_loaders_have_the_arguments_of_the_zoo(option):
    group, name = option.split("=")
    target = get_target(nodes(group)[name])
    from_model = FROM_MODEL if group == "data" else set()
    assert names(target) - {"model"} == names(LOADERS[option]) - from_model


def defaults(kind):
    return {field.name: field.default for field in fields(kind)}


def test_settings_of_the_solver_are_those_of_the_attack_with_its_defaults():
    parts = {"optimizer", "perturbation", "init", "criterion", "schedule", "seed"}
    (target,) = [get_target(node) for node in nodes("solver").values()]
    ours = {name: setting.default for name, setting in inspect.signature(target).parameters.items()}
    theirs = {name: default for name, default in defaults(Attack).items() if name not in parts}
    assert theirs.pop("steps") is MISSING
    assert ours.pop("steps") == 40
    assert ours == theirs
    assert target() == {**theirs, "steps": 40}
    assert target(steps=3, curve="all")["curve"] == "all"


def test_every_model_has_the_options_of_its_inference_with_their_defaults():
    expected = defaults(Inference)
    assert defaults(configs.Inference) == expected
    for node in nodes("model").values():
        config = OmegaConf.structured(node)
        assert {name: config[name] for name in expected} == expected
        with pytest.raises(ValidationError):
            config.compile = "always"


@pytest.mark.parametrize("group", ["optim", "optim/InnerOpt", "perturbation", "init", "criterion", "solver"])
def test_every_option_has_one_line_of_documentation_and_typed_settings(group):
    for node in nodes(group).values():
        node = getattr(node, "perturbation", node)
        assert (inspect.getdoc(get_target(node)) or "").endswith(".")
        container = OmegaConf.structured(node)
        assert all(container._get_node(key) is not None for key in container)


@pytest.mark.parametrize(
    "words", [["--help"], ["--cfg", "job"], ["list", "optim"], ["list", "perturbation"], ["optim.lrr=1"], []]
)
def test_configuring_does_not_import_torch(words):
    code = (
        "import sys; from raiopt.cli import main; from raiopt import configs\n"
        f"words = {words!r}\n"
        "if words: main(words)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("group", "name", "takes"),
    [
        ("hydra/launcher", "local", LocalLauncher),
        ("hydra/launcher", "slurm", SlurmOptions),
        ("hydra/launcher", "ray", RayEngine),
        ("hydra/sweeper", "grid", GridSweeper),
        ("hydra/sweeper", "optuna", OptunaSweeper),
    ],
)
def test_launchers_and_sweepers_list_what_their_classes_take(group, name, takes):
    register_resolvers()
    store.add_to_hydra_store(overwrite_ok=True)
    with initialize_config_module("raiopt.conf", version_base="1.3"):
        config = compose("raiopt", overrides=[f"{group}={name}"], return_hydra_config=True)
    listed: Any = OmegaConf.to_container(OmegaConf.select(config, group.replace("/", ".")))
    del listed["_target_"]
    defaults = {key: parameter.default for key, parameter in inspect.signature(takes).parameters.items()}
    empty = {"setup": (), "additional_parameters": {}}
    assert {key: value or empty.get(key, value) for key, value in listed.items()} == {
        key: empty.get(key, value) for key, value in defaults.items()
    }
