"""Options from a folder and from an installed package: listed, suggested, run, swept, and repeated if allowed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raiopt.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "own_optimizer.md").read_text(encoding="utf-8")
FOLDER, PACKAGE = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[-2:]
SMALL = ["data.limit=4", "solver.steps=2", "threads=1"]


def written(script, to):
    """Carries out what the page writes, without its commands."""
    lines = [line for line in script.splitlines(keepends=True) if not line.startswith(("raiopt", "export"))]
    subprocess.run(["sh", "-e", "-c", "".join(lines)], cwd=to, check=True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    written(FOLDER, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypkg"]:
        del sys.modules[name]


def said(capsys, *words, status=0):
    assert main([*words]) == status
    out, err = capsys.readouterr()
    return out if status == 0 else err


def test_an_option_of_a_folder_is_listed(folder, capsys):
    assert re.search(r"^  optim: .*, smoothed$", said(capsys, "--help", "--config-dir", "my_options"), re.MULTILINE)
    assert "smoothed" not in said(capsys, "--help")
    for words in (["--config-dir", "my_options"], ["--config-dir=my_options"], ["-cd", "my_options"]):
        found = " ".join(said(capsys, "list", "optim", *words).split())
        assert "optim=smoothed The gradient averaged" in found


@pytest.mark.parametrize("multirun", [[], ["-m"]])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim=smothed"], "optim=smothed is not an option of optim. Did you mean smoothed?"),
        (["optim=smoothed", "optim.sise=5"], "optim.sise is not an option. Did you mean optim.size"),
        (["optim=smoothed", "stepz=5"], "stepz is not an option."),
    ],
)
def test_a_typo_next_to_it_is_a_one_line_error(folder, capsys, words, message, multirun):
    found = said(capsys, *multirun, "--config-dir", "my_options", *words, status=1)
    assert message in found
    assert found.count("\n") == 1


def test_a_missing_folder_is_named(folder, capsys):
    assert "nowhere" in said(capsys, "--config-dir", "nowhere", status=1)
    assert "--config-dir nowhere is not a folder." in said(capsys, "--config-dir", "nowhere", "--help", status=1)


def test_it_runs_and_is_repeated_if_its_target_is_allowed(folder, capsys):
    said(capsys, "--config-dir", "my_options", "optim=smoothed", "optim.size=5", "optim/InnerOpt=adam", *SMALL)
    (run,) = (path.parent for path in folder.glob("outputs/*/*/run.json"))
    assert json.loads((run / "run.json").read_text())["choices"]["optim"] == "smoothed"
    refused = said(capsys, "rerun", str(run), status=1)
    assert "optim._target_: 'mypkg.optimizers.smoothed' is not a target of raiopt's options." in refused
    assert "--allow mypkg.optimizers.smoothed" in refused
    assert "Repeated bit for bit." in said(capsys, "rerun", str(run), "--allow", "mypkg.optimizers.smoothed")


def test_it_is_swept_among_others(folder, capsys):
    words = ["optim=linf_projected,smoothed", "optim.epsilon=0.05,0.1", "hydra.launcher.n_jobs=1"]
    said(capsys, "--config-dir", "my_options", "-m", "name=both", *words, *SMALL)
    assert len(list(folder.glob("outputs/both/*/run.json"))) == 4


def test_an_option_of_a_package_needs_no_folder(tmp_path):
    for script in (FOLDER, PACKAGE):
        written(script, tmp_path)

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", "raiopt", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert re.search(r"^  optim: .*, smoothed$", run("--help")[1], re.MULTILINE)
    assert run("optim=smothed")[1].startswith("raiopt: optim=smothed is not an option of optim. Did you mean smoothed?")
    status, text = run("optim=smoothed", "optim.size=5", *SMALL)
    assert (status, "smoothed" in text) == (0, True), text
