"""Every option of the command: it composes, builds, is documented, and takes what its class or function takes."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from typing import Any, get_args, get_origin

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf, ValidationError

from raiopt.attacks import Attack
from raiopt.config.groups import CHOSEN, NOT_SETTINGS, OPTIONS, option_of
from raiopt.config.jobs import build
from raiopt.config.listing import meanings
from raiopt.config.options import store
from raiopt.config.signatures import REQUIRED
from raiopt.fast import Inference
from raiopt.sweep.plugins import register_plugins
from tests.config.test_saved import NEEDED
from tests.test_readme import composed

ALL = [option for options in OPTIONS.values() for option in options.values()]
OF_A_JOB = [option for option in ALL if not option.group.startswith("hydra/")]
OF_CLASSES = ("ball", "seed")
"""What options of classes have in place of `p` and `generator`: see `raiopt.optim.bounded.with_ball_and_seed`."""


def named(option):
    return f"{option.group}={option.name}"


def imported(path):
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("option", ALL, ids=named)
def test_an_option_composes_as_itself(option):
    config = composed([named(option), *NEEDED.get(named(option), ())])
    node = OmegaConf.select(config, option.group.replace("/", "."))
    assert option_of(option.group, node) == option
    settings = {key for key in node if not key.startswith("_") and key != "InnerOpt"}
    assert settings == set(option.settings)
    assert ("InnerOpt" in node) == (option.inner is not None)
    for key, value in option.optim.items():
        assert config.optim[key] == value


@pytest.mark.parametrize("option", OF_A_JOB, ids=named)
def test_an_option_builds_the_object_that_it_names(option):
    config = composed([named(option), *NEEDED.get(named(option), ())])
    node = OmegaConf.select(config, option.group.replace("/", "."))
    made = instantiate(node, _convert_="all")
    assert made.func is imported(option.target)
    taken = inspect.signature(made.func).parameters
    beside = {"model": inspect.signature(Inference).parameters, "data": ("shard", "num_shards")}
    beside |= {"optim": ("lr", "InnerOpt", *OF_CLASSES, *taken) if "inner_opt_kwargs" in taken else OF_CLASSES}
    if any(each.kind is each.VAR_KEYWORD for each in taken.values()):  # the settings of a transform
        return
    assert set(made.keywords) <= {*taken, *beside.get(option.group, ())}


@pytest.mark.parametrize("option", ALL, ids=named)
def test_an_option_and_its_settings_are_documented(option):
    assert option.doc.endswith(".")
    if option.group != "optim/InnerOpt":  # torch documents them
        known = meanings(option.group)
        assert {key for key in option.settings if key not in option.fixed} <= known.keys()


@pytest.mark.parametrize("option", [option for option in ALL if option.settings], ids=named)
def test_the_types_of_settings_are_checked(option):
    config = option.config()
    for key, argument in option.settings.items():
        kinds = {argument.type, *get_args(argument.type)}
        if kinds & {int, float, bool} or get_origin(argument.type) in (list, dict, tuple):
            with pytest.raises(ValidationError):
                config[key] = "much"
        if argument.type is Any or type(None) in kinds:
            config[key] = None
        else:
            with pytest.raises(ValidationError):
                config[key] = None


def test_every_optimizer_has_epsilon_and_all_with_an_inner_one_have_a_step_size():
    for option in OPTIONS["optim"].values():
        assert {"epsilon", "param_ndim"} <= set(option.settings)
        assert ("lr" in option.settings) == (option.name != "square")


def test_settings_of_the_solver_are_those_of_the_attack_with_its_defaults():
    (solver,) = OPTIONS["solver"].values()
    signature = inspect.signature(Attack).parameters
    assert set(solver.settings) == set(signature) - NOT_SETTINGS["solver"]
    for key, argument in solver.settings.items():
        assert argument.default == (40 if key == "steps" else signature[key].default)


@pytest.mark.parametrize("group", OPTIONS)
def test_arguments_that_are_not_settings_exist_in_some_target(group):
    register_plugins()
    targets = [imported(option.target) for option in OPTIONS[group].values()]
    taken = {name for target in targets for name in inspect.signature(target).parameters}
    assert NOT_SETTINGS[group] - {"div_by_zero_eps", "mask", "data_or_shape"} <= taken | {"x"}


def test_the_store_and_the_default_job_know_the_same_options():
    stored = {(entry["group"], entry["name"]) for entry in store}
    assert {(option.group, option.name) for option in ALL} <= stored
    assert all(name in OPTIONS[group] for group, name in CHOSEN.items() if group != "experiment")
    assert all(argument.default is not REQUIRED for argument in OPTIONS["optim"]["apgd"].settings.values())


@pytest.mark.parametrize(
    "words", [["--help"], ["--cfg", "job"], ["list", "optim"], ["list", "perturbation"], ["optim.lrr=1"], []]
)
def test_configuration_does_not_import_torch(words):
    code = (
        "import sys; from raiopt.cli import main; from raiopt.config import options\n"
        f"words = {words!r}\n"
        "if words: main(words)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim=signed", "optim.transform=l1_normed"], "optim.transform=l1_normed makes optim=l1_normed: choose that"),
        (["perturbation=universal", "perturbation.delta_ndim=2"], "perturbation.delta_ndim=2 makes perturbation=addit"),
        (
            ["optim/InnerOpt=adam", "optim.InnerOpt.betas=[0.9]"],
            "betas=[0.9] must be a list of 2 numbers, as in optim.In",
        ),
    ],
)
def test_settings_that_no_type_can_check_are_refused(words, message):
    config = composed(words)
    choices = dict(config.hydra.runtime.choices)
    with pytest.raises(ValueError, match=re.escape(message)):
        build(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]), choices)
