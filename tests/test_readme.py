"""The README compared with the behaviour of the command."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from raiopt.config.explain import VERBS
from raiopt.config.options import store
from raiopt.config.words import quoted
from raiopt.sweep.job_key import register_resolvers

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
FENCES = "".join(re.findall(r"^```(?:sh|text)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^raiopt .*$", FENCES.replace("\\\n", " "), re.MULTILINE)


def composed(words):
    register_resolvers()
    store.add_to_hydra_store(overwrite_ok=True)
    with initialize_config_module("raiopt.conf", version_base="1.3"):
        return compose("raiopt", overrides=[quoted(word) for word in words if word != "-m"], return_hydra_config=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command):
    words = shlex.split(command, comments=True)[1:]
    if words and words[0] in VERBS:
        assert find_spec(f"raiopt.verbs.{words[0]}")
        return
    if "-m" in words:  # the first value of each
        words = [re.sub(r",(?![^\[]*\]).*", "", re.sub(r"=range\(.*", "=0", word)) for word in words]
    composed(words)


def test_there_are_commands_and_every_option_of_optim_is_in_the_table():
    assert len(COMMANDS) > 8
    names = [entry["name"] for entry in store if entry["group"] == "optim"]
    assert sorted(names) == sorted(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))


OF_L2 = dict.fromkeys(["`ddn`", "`alma`", "`cw`"], "l2")


@pytest.mark.parametrize("row", re.findall(r"^\| `\w+` \|.*$", TEXT, re.MULTILINE))
def test_the_table_lists_the_defaults(row):
    name, _, ball, epsilon, lr = (cell.strip() for cell in row.strip("|").split("|"))
    optim = composed([f"optim={name.strip('`')}"]).optim
    assert (optim.epsilon, optim.get("lr")) == (float(epsilon), float(lr) if lr else None)
    assert optim.get("ball", OF_L2.get(name, name.strip("`").partition("_")[0].rstrip("q"))) in ball
    assert OmegaConf.missing_keys(optim) == set()
