"""Composing many jobs at once agrees with Hydra composing each alone."""

from functools import lru_cache

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict

from raiopt.config.jobs import plain
from raiopt.config.options import store
from raiopt.sweep.compose import Composer
from raiopt.sweep.job_key import job_key, register_resolvers
from raiopt.sweep.plugins import register_plugins

WORDS = [
    *("optim=linf_projected", "optim=l1_normed", "optim=chain", "optim=linf_frank_wolfe", "optim=nothing"),
    *("optim/InnerOpt=adam", "optim/InnerOpt=sgd", "+optim/InnerOpt=adam", "perturbation=universal", "init=uniform_l2"),
    *("experiment=quick", "experiment=mi_fgsm", "experiment=null", "~experiment", "data=python", "model=python"),
    *("optim.lr=0.1", "optim.lr=1", "optim.lr=1e-3", "optim.lr=inf", "optim.lr=nan", "optim.lr=abc", "optim.lr=null"),
    *("optim.lr=${seed}", "optim.epsilon=${optim.lr}", "optim.lr='${optim.epsilon}'", "note=${nowhere}"),
    *("optim.param_ndim=null", "optim.param_ndim=-1", "optim.param_ndim=1.5", "optim.dq=0.1", "optim.ball=l2"),
    *("optim.members=[signed]", "optim.members=[l1_normed,{momentum:{mu:0.5}}]", "optim.members.0=top_q"),
    *("optim={lr:0.3}", "optim.InnerOpt=adam", "optim.InnerOpt.momentum=0.9", "solver={steps:3}", "solver=null"),
    *("solver.steps=7", "solver.epsilons=[0.1,0.2]", "solver.epsilons=null", "solver.epsilons=[]", "solver.step=7"),
    *("note=abc", "note=''", "note='a, b=c'", 'note="it\'s"', "note=a b", "note=true", "note=1", "seed=3", "seed=x"),
    *("data.indices=[1,2]", "data.indices='1:3'", "data.indices=null", "data.limit=4", "data.kwargs={a:1}"),
    *("+data.kwargs.b=2", "++data.limit=5", "++seed=4", "+extra=1", "+seed=5", "~seed", "~seed=0", "~seed=9", "~note"),
    *("model.kwargs={a:{b:[1,2]}}", "model.kwargs={a:2}", "model.kwargs=null", "data@model=digits", "optim@x=signed"),
    *("hydra.job.name=x", "init.epsilon=0.3", "force=true", "device=cpu", "threads=2", "name=other", "save=all"),
]


class Remembering:
    """A loader that composes each list of words once."""

    def __init__(self, loader, master):
        self.load = lru_cache(maxsize=None)(lambda words: self._outcome(loader, master, list(words)))
        self.get_group_options = lru_cache(maxsize=None)(loader.get_group_options)

    @staticmethod
    def _outcome(loader, master, words):
        try:
            return loader.load_sweep_config(master, words)
        except Exception as error:
            return error

    def load_sweep_config(self, master_config, sweep_overrides):
        found = self.load(tuple(sweep_overrides))
        if isinstance(found, Exception):
            raise type(found)(*found.args) from found.__cause__
        return found.copy()


@pytest.fixture(scope="module")
def hydra():
    """A loader, and the config of a sweep."""
    register_resolvers()
    register_plugins()
    store.add_to_hydra_store(overwrite_ok=True)
    with initialize_config_module("raiopt.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("raiopt", ["name=s", "optim.lr=0.7"], run_mode=RunMode.MULTIRUN)
        yield Remembering(loader, master), master


def outcome(make):
    try:
        return make()
    except Exception as error:
        return type(error), str(error)


def by_hydra(loader, master, words):
    config = loader.load_sweep_config(master, words)
    choices = {key: str(name) for key, name in config.hydra.runtime.choices.items() if not key.startswith("hydra")}
    with open_dict(config):
        config.pop("hydra")
    keys = [word.lstrip("+~").partition("=")[0].partition("@")[0] for word in words]
    overrides = {key: choices[key] if key in choices else plain(OmegaConf.select(config, key)) for key in keys}
    return OmegaConf.to_container(config), job_key(config, choices), choices, overrides


def by_composer(composer, words):
    task = composer.task(words, 0)
    return task.config, task.key, task.about["choices"], task.about["overrides"]


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=3), min_size=1, max_size=3))
@example([["optim.lr=0.1", "note=abc"], ["note=abc"], []])
@example([["optim=chain", "optim.members=[signed]"], ["optim=chain", "optim.members.0=top_q"]])
@example([["model.kwargs={a:{b:[1,2]}}", "model=python"], ["model=python", "model.kwargs={a:2}"], ["model=python"]])
@example([["optim.lr=0.1", "optim={lr:0.3}"], ["optim={lr:0.3}", "optim.lr=0.1"]])
@example([["optim.lr=abc"], ["seed=3"], []])
@example([["note=${nowhere}"], ["note=abc"], []])
def test_jobs_are_composed_as_by_hydra_in_any_order(hydra, jobs):
    loader, master = hydra
    composer = Composer(loader, master)
    for words in jobs:
        expected = outcome(lambda words=words: by_hydra(loader, master, words))
        assert repr(outcome(lambda words=words: by_composer(composer, words))) == repr(expected)  # NaN is not itself


def test_the_table_has_accepted_and_refused_overrides(hydra):
    loader, master = hydra
    found = [outcome(lambda word=word: by_hydra(loader, master, [word])) for word in WORDS]
    refused = sum(len(entry) == 2 for entry in found)
    assert 15 < refused < len(WORDS) / 2


def test_a_task_records_its_number_folder_and_overrides(hydra, tmp_path):
    loader, master = hydra
    composer = Composer(loader, OmegaConf.merge(master, {"hydra": {"sweep": {"dir": str(tmp_path / "s")}}}))
    first, second = composer.tasks([["seed=1"], ["seed=2", "optim=l1_normed"]])
    assert (first.about["job_number"], second.about["job_number"]) == (0, 1)
    assert second.folder == str(tmp_path / "s" / second.key)
    assert second.about["command"] == ["raiopt", "seed=2", "optim=l1_normed"]
    assert second.about["overrides"] == {"seed": 2, "optim": "l1_normed"}
    assert second.hydra["overrides"]["task"] == ["seed=2", "optim=l1_normed"]
    assert (second.hydra["job"]["num"], second.hydra["runtime"]["output_dir"]) == (1, second.folder)
    assert "hydra" not in second.config
