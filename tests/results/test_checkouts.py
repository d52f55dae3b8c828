"""Commits read from files, compared with those that git reports."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from raiopt.cli import main
from raiopt.results import checkouts
from raiopt.results.checkouts import commit_of, commits_of, own_state
from raiopt.results.record import GitInfo
from raiopt.results.record_reader import read_record


def git(folder, *words):
    words = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=main", *words]
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    (folder / "below").mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "below" / "kept.txt").touch()
    git(folder, "add", "below")
    git(folder, "commit", "-qm", "first")
    return folder


def test_the_commit_agrees_with_git(repository, tmp_path):
    commit = git(repository, "rev-parse", "HEAD")
    assert commit_of(repository) == commit_of(repository / "below") == commit
    git(repository, "worktree", "add", "-q", "-b", "other", tmp_path / "tree")
    git(tmp_path / "tree", "commit", "-q", "--allow-empty", "-m", "second")
    second = git(tmp_path / "tree", "rev-parse", "HEAD")
    assert commit_of(tmp_path / "tree") == second != commit
    git(repository, "pack-refs", "--all")
    assert (commit_of(repository), commit_of(tmp_path / "tree")) == (commit, second)
    git(repository, "checkout", "-q", "--detach", "other")
    assert commit_of(repository) == second


@pytest.mark.parametrize("head", ["", "ref: refs/heads/none", "ref: ../secret", "ref: refs/../../secret", "deadbeef"])
def test_invalid_references_have_no_commit(tmp_path, head):
    (tmp_path / "secret").write_text("0" * 40)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text(head)
    assert commit_of(tmp_path) is None


def test_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / ".git" / "HEAD")
    assert commit_of(tmp_path) is None
    assert commit_of(tmp_path / "missing") is None


def test_named_modules_have_the_commit_of_their_files(repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_nets", SimpleNamespace(__file__=str(repository / "below" / "nets.py")))
    monkeypatch.setitem(sys.modules, "built_in", SimpleNamespace(__file__=None))
    assert commits_of(["own_nets", "built_in", "never_imported"]) == {"own_nets": git(repository, "rev-parse", "HEAD")}


def test_the_record_has_the_commit_of_code_that_was_named(repository, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setattr("sys.path", list(sys.path))
    net = "nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))"
    (repository / "nets_of_a_checkout.py").write_text(f"from torch import nn\ndef net():\n    return {net}\n")
    words = ["model=python", "model.factory=nets_of_a_checkout:net", "data.limit=4", "solver.steps=1", "name=mine"]
    assert main(words) == 0
    (folder,) = (repository / "outputs" / "mine").iterdir()
    assert read_record(folder).code == {"nets_of_a_checkout": git(repository, "rev-parse", "HEAD")}


def test_the_state_of_raiopts_checkout_is_read_once(repository, monkeypatch):
    monkeypatch.setattr(checkouts, "ROOT", repository)
    own_state.cache_clear()
    commit = git(repository, "rev-parse", "HEAD")
    assert own_state() == GitInfo(commit, False)
    (repository / "below" / "kept.txt").write_text("changed")
    assert own_state() == GitInfo(commit, False)
    own_state.cache_clear()
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert own_state() == GitInfo(commit, True)
    own_state.cache_clear()
    monkeypatch.setattr(checkouts, "ROOT", repository / "below")  # as when it is installed below somebody's checkout
    assert own_state() is None
    own_state.cache_clear()
