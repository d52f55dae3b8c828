"""The job key: the same question has the same key."""

import pytest
from omegaconf import OmegaConf

from raiopt.results.records import VOLATILE
from raiopt.sweep.job_key import checked_name, job_key

BASE = {"seed": 0, "optim": {"lr": 0.1, "epsilon": 0.5}, "init": {"epsilon": "${optim.epsilon}"}}


def key(**changes):
    return job_key(OmegaConf.create({**BASE, **changes}))


def test_order_and_references_do_not_matter():
    assert key() == job_key(OmegaConf.create(dict(reversed(BASE.items()))))
    assert key() == key(init={"epsilon": 0.5})


@pytest.mark.parametrize("name", VOLATILE)
def test_how_and_where_a_job_runs_does_not_matter(name):
    assert key() == key(**{name: "other"})


@pytest.mark.parametrize("change", [{"seed": 1}, {"optim": {"lr": 0.2, "epsilon": 0.5}}, {"save": "all"}])
def test_another_question_has_another_key(change):
    assert key() != key(**change)


@pytest.mark.parametrize("name", ["a", "my_sweep-2.1", "7"])
def test_names_of_folders(name):
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "-m", "a b", "a\n"])
def test_what_would_leave_the_folder_of_results_is_refused(name):
    with pytest.raises(ValueError, match="must be letters"):
        checked_name(name)
