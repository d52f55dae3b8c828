"""The store against the builders and the classes behind them; nothing of it needs torch."""

import inspect
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from hydra_zen import get_target
from omegaconf import OmegaConf
from torch import optim as torch_optim

from raiopt import builders, optim, zoo
from raiopt.configs import Optim, store

CLASSES = {
    "signed": optim.SignedGradientOptim,
    "l1_normed": optim.L1NormedGradientOptim,
    "l2_normed": optim.L2NormedGradientOptim,
    "linf_projected": optim.LinfProjectedOptim,
    "l2_projected": optim.L2ProjectedOptim,
}
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


def test_every_option_of_optim_is_compared_with_its_class():
    assert set(nodes("optim")) == set(CLASSES)
    assert set(nodes("optim/InnerOpt")) == set(INNER)


@pytest.mark.parametrize("name", CLASSES)
def test_settings_of_optim_are_arguments_of_the_class(name):
    own = names(get_target(nodes("optim")[name])) - {"params", "InnerOpt", "shared", "ball"}
    shared = {field.name for field in fields(Optim)} - {"lr", "epsilon"}
    assert own | shared <= names(CLASSES[name])


@pytest.mark.parametrize("name", INNER)
def test_inner_optimizers_have_torchs_arguments_and_defaults(name):
    ours, torchs = inspect.signature(builders.__dict__[name]).parameters, inspect.signature(INNER[name]).parameters
    assert set(ours) <= set(torchs)
    assert ours["lr"].default is inspect.Parameter.empty
    assert all(p.default == torchs[n].default for n, p in ours.items() if n not in {"params", "lr"})


@pytest.mark.parametrize("option", LOADERS)
def test_loaders_have_the_arguments_of_the_zoo(option):
    group, name = option.split("=")
    target = get_target(nodes(group)[name])
    from_model = FROM_MODEL if group == "data" else set()
    assert names(target) - {"model"} == names(LOADERS[option]) - from_model


@pytest.mark.parametrize("group", ["optim", "optim/InnerOpt", "perturbation", "init", "criterion", "solver"])
def test_every_option_has_one_line_of_documentation_and_typed_settings(group):
    for node in nodes(group).values():
        node = getattr(node, "perturbation", node)
        assert (inspect.getdoc(get_target(node)) or "").endswith(".")
        container = OmegaConf.structured(node)
        assert all(container._get_node(key) is not None for key in container)


@pytest.mark.parametrize(("ball", "p"), [("linf", float("inf")), ("l2", 2.0), (None, None)])
@pytest.mark.parametrize("name", ["signed", "l1_normed", "l2_normed"])
def test_gradient_transforms_come_with_a_ball(name, ball, p):
    x = torch.zeros(2, 3, requires_grad=True)
    made = builders.__dict__[name]([x], builders.sgd, ball=ball, epsilon=0.5, lr=100.0)
    assert made.ball == p
    x.backward(torch.ones(2, 3))
    made.step()
    norms = x.detach().norm(p or 2, dim=1)
    assert (norms <= 0.5 * (1 + 1e-6)).all() if p else (norms > 1).all()


def test_a_ball_that_is_not_there_is_told():
    with pytest.raises(ValueError, match=r"ball='l3' must be one of 'linf', 'l2', 'null'"):
        builders.signed([], None, ball="l3", epsilon=1.0)


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["list", "optim"], ["optim.lrr=1"], []])
def test_configuring_does_not_import_torch(words):
    code = (
        "import sys; from raiopt.cli import main; from raiopt import configs\n"
        f"words = {words!r}\n"
        "if words: main(words)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
