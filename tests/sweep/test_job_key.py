"""The job key: equal options have the same key, also after the code behind them was refactored."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from raiopt.results.record import Record
from raiopt.results.records import VOLATILE
from raiopt.sweep.job_key import changed_defaults, checked_name, describe_job, job_key, key_of, options_of

CONFIG = {"seed": 0, "optim": {"lr": 0.1, "epsilon": 0.5}, "init": {"epsilon": "${optim.epsilon}"}}
CHOICES = {"optim": "steep", "init": "uniform", "experiment": "None", "tracker": "none"}
TABLE = {
    ("", "raiopt"): {"seed": 0, "optim": "???", "save": "fooled"},
    ("optim", "steep"): {"optim._target_": "a.steep", "optim.lr": 0.3, "optim.epsilon": 0.1, "optim.kwargs": {}},
    ("init", "uniform"): {"init._target_": "a.uniform", "init.epsilon": "${optim.epsilon}"},
}
VERSIONS = {"job": 1, "optim": 1, "init": 1}


def nested(flat):
    config = OmegaConf.create()
    for name, value in flat.items():
        OmegaConf.update(config, name, value)
    return OmegaConf.to_container(config, resolve=True)


def keyed(values=(), choices=CHOICES, table=TABLE, versions=VERSIONS):
    """The key of a job that sets these values, with the defaults of this table."""
    usual = {}
    for group, name in [("", "raiopt"), *choices.items()]:
        usual |= {key: value for key, value in table.get((group, name), {}).items() if value != "???"}
    config = nested({**usual, **dict(values)})
    return key_of(config, choices, lambda group, name: table.get((group, name)), versions)


def changed(group, name, **options):
    added = {key.replace("__", "."): value for key, value in options.items()}
    return {**TABLE, (group, name): {**TABLE[group, name], **added}}


VALUES = st.dictionaries(
    st.sampled_from(["seed", "optim.lr", "optim.epsilon", "init.epsilon", "save"]), st.sampled_from([0, 0.1, 0.3, "x"])
)


@given(VALUES)
def test_a_renamed_target_and_a_new_option_keep_the_key(values):
    table = {key: {**entry} for key, entry in TABLE.items()}
    table["optim", "steep"] |= {"optim._target_": "b.steepest", "optim.new": None, "optim.also.a": [1], "optim.x": {}}
    table["", "raiopt"] |= {"newer": float("nan"), "follows": "${optim.lr}"}
    assert keyed(values, table=table) == keyed(values)


@given(VALUES, VALUES)
def test_the_key_depends_on_values_and_not_on_their_spelling(one, other):
    full = [{"seed": 0, "optim.lr": 0.3, "optim.epsilon": 0.1, "save": "fooled", **values} for values in (one, other)]
    for values in full:
        values.setdefault("init.epsilon", values["optim.epsilon"])
    assert (keyed(one) == keyed(other)) == (full[0] == full[1])
    assert keyed(one) == keyed(full[0])


@pytest.mark.parametrize(
    "change",
    [
        {"values": {"optim.lr": 0.2}},
        {"values": {"optim._target_": "my.own"}},
        {"values": {"optim.kwargs": {"a": 1}}},
        {"values": {"extra": None}},
        {"values": {"stages": {"a": []}}},
        {"values": {"optim.epsilon": 0.1}, "choices": {**CHOICES, "optim": "mine"}},
        {"values": {"optim.epsilon": 0.1}, "choices": {"init": "uniform"}},
        {"versions": {**VERSIONS, "optim": 2}},
        {"versions": {**VERSIONS, "job": 2}},
    ],
)
def test_other_options_have_another_key(change):
    assert keyed(**change) != keyed()


def test_all_values_of_a_user_defined_option_count():
    choices = {**CHOICES, "optim": "mine"}
    mine = {"optim._target_": "my.optimizer", "optim.lr": 0.3, "optim.epsilon": 0.1}
    keys = [
        keyed(mine, choices),
        keyed({**mine, "optim._target_": "my.other"}, choices),
        keyed({**mine, "optim.new": None}, choices),
        keyed(mine, {**CHOICES, "optim": "yours"}),
    ]
    assert len(set(keys)) == 4


def test_the_experiment_and_how_a_job_runs_do_not_matter():
    assert keyed(choices={**CHOICES, "experiment": "fast", "tracker": "mlflow", "hydra/launcher": "slurm"}) == keyed()
    assert keyed({"device": "cuda", "tracker": {"uri": "x"}}) == keyed()


def test_names_with_dots_are_kept_apart():
    assert keyed({"optim.kwargs": {"a.b": 1}}) != keyed({"optim.kwargs": {"a": {"b": 1}}})


def key(**changes):
    return job_key(OmegaConf.create({**CONFIG, **changes}), {"optim": "linf_projected"})


def test_order_and_references_do_not_matter():
    assert key() == job_key(OmegaConf.create(dict(reversed(CONFIG.items()))), {"optim": "linf_projected"})
    assert key() == key(init={"epsilon": 0.5})


@pytest.mark.parametrize("name", VOLATILE)
def test_where_and_how_a_job_runs_does_not_matter(name):
    assert key() == key(**{name: "other"})


@pytest.mark.parametrize("change", [{"seed": 1}, {"optim": {"lr": 0.2, "epsilon": 0.5}}, {"save": "all"}])
def test_other_values_have_another_key(change):
    assert key() != key(**change)


def test_recorded_options_follow_references_to_options_and_no_others(monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    found = options_of({**CONFIG, "init": {"_target_": "a", "epsilon": "${optim.epsilon}", "x": "${oc.env:SECRET}"}})
    assert found == {
        "seed": 0,
        "optim.lr": 0.1,
        "optim.epsilon": 0.5,
        "init.epsilon": 0.5,
        "init.x": "${oc.env:SECRET}",
    }


def test_a_changed_default_is_named():
    config = {"seed": 0, "optim": {"lr": 0.3, "mu": float("inf"), "new": 1, "path": "${x:1}"}, "device": "cpu"}
    about = describe_job(config, config, {}, [], [])
    record = Record(status="finished", job_key=about["job_key"], options=about["options"])
    assert changed_defaults(record, about) == {}
    options = {"seed": 0, "optim.lr": 0.1, "optim.mu": "inf", "optim.old": 2, "optim.path": "a", "device": "x"}
    record = replace(record, options=options)
    assert changed_defaults(record, about) == {"optim.lr": (0.1, 0.3)}
    assert changed_defaults(replace(record, status="failed"), about) == {}
    assert changed_defaults(replace(record, job_key="other"), about) == {}
    assert changed_defaults(None, about) == {}


@pytest.mark.parametrize("name", ["a", "my_sweep-2.1", "7"])
def test_names_of_folders(name):
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "-m", "a b", "a\n"])
def test_names_that_leave_the_results_folder_are_refused(name):
    with pytest.raises(ValueError, match="must be letters"):
        checked_name(name)
