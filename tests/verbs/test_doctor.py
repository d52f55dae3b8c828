"""`raiopt doctor` on this machine, and on machines on which something is broken."""

import itertools
import json
import os
import shutil
import sys
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch

from raiopt import zoo
from raiopt.cli import main
from raiopt.verbs import doctor, timing
from raiopt.zoo.vision import models

PARTS = ["versions", "torchvision", "device", "built-in", "cache", "disk", "extras", "slurm", "speed"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture
def found(monkeypatch, capsys):
    """The findings, by their parts, of `raiopt doctor --json` without the time that a step takes."""

    def of(*words, status=0, seconds=0.001):
        monkeypatch.setattr(timing, "time_step", lambda name: timing.Timed("net", "cpu", 64, seconds))
        assert main(["doctor", "--json", *words]) == status
        findings = json.loads(capsys.readouterr().out)
        return {part: [entry for entry in findings if entry["part"] == part] for part in PARTS}

    return of


def test_a_healthy_machine(tmp_path, capsys):
    assert main(["doctor", "--images", "100"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"torch {version('torch')}" in text
    assert "digits and both networks are intact" in text
    assert "40 steps take at most 100 images" in text
    assert text.endswith("No problems found.")
    assert not list((tmp_path / "here").iterdir())
    assert not (tmp_path / "torch").exists()


def test_figures_for_machines(found):
    findings = found("--images", "500", "7")
    assert all(findings[part] for part in PARTS)
    assert findings["versions"][0]["figures"]["polars"] == version("polars")
    assert findings["device"][0]["figures"]["threads"] == torch.get_num_threads()
    assert findings["disk"][0]["figures"]["writable"]
    assert findings["speed"][0]["figures"]["images"] == {"500": 20.0, "7": 0.28}


def test_a_damaged_asset_is_wrong(found, tmp_path, monkeypatch):
    home = sys.modules["raiopt.zoo.digits"]  # raiopt.zoo.digits is the function
    shutil.copytree(home.ASSETS, tmp_path / "assets")
    monkeypatch.setattr(home, "ASSETS", tmp_path / "assets")
    with open(tmp_path / "assets" / "digits_robust.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x00")
    (tmp_path / "assets" / "digits.safetensors").unlink()
    (finding,) = found(status=1)["built-in"]
    assert finding["level"] == "wrong"
    assert finding["figures"]["damaged"] == ["digits.safetensors", "digits_robust.safetensors"]


def test_weights_in_the_cache_are_named_and_a_short_file_is_wrong(found, tmp_path):
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    sizes = {name: models.get_model_weights(name)["IMAGENET1K_V1"] for name in ("resnet18", "squeezenet1_1")}
    for weights in sizes.values():
        with open(folder / weights.url.rpartition("/")[2], "wb") as file:
            file.truncate(round(weights.meta["_file_size"] * 2**20))
    (folder / "mine.pth").write_bytes(b"")
    (finding,) = found()["cache"]
    assert (finding["level"], len(finding["figures"])) == ("ok", 2)
    assert "resnet18 IMAGENET1K_V1 (44.7 MB)" in finding["found"]
    short = folder / sizes["resnet18"].url.rpartition("/")[2]
    os.truncate(short, 10**7)
    (finding,) = found(status=1)["cache"]
    assert finding["level"] == "wrong"
    assert str(short) in finding["remedy"]
    assert "squeezenet" not in finding["remedy"]


def test_another_torch_than_torchvision_is_made_for_is_wrong(found, monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: ["numpy", "torch (==2.3.1)", "torch-like (==9)"])
    (finding,) = found(status=1)["torchvision"]
    assert finding["level"] == "wrong"
    assert finding["remedy"].startswith("pip install torch==2.3.1 torchvision==")


def test_without_torch_the_other_parts_are_checked(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    findings = found(status=1)
    levels = {part: findings[part][0]["level"] for part in PARTS}
    assert {part for part, level in levels.items() if level == "wrong"} == {"torchvision", "device", "cache"}
    assert "torch" in findings["device"][0]["found"]


@pytest.mark.parametrize(
    ("free", "writable", "level"),
    [(10**12, True, "ok"), (2**30, True, "note"), (10**7, True, "wrong"), (10**12, False, "wrong")],
)
def test_a_full_or_read_only_disk_is_reported(found, monkeypatch, free, writable, level):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    monkeypatch.setattr(doctor.os, "access", lambda place, mode: writable)
    (finding,) = found("--outputs", "new/folder", status=int(level == "wrong"))["disk"]
    assert (finding["level"], bool(finding["remedy"])) == (level, level != "ok")


def test_threads_that_are_left_idle_are_noted(found, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    finding = found()["device"][0]
    assert (finding["level"], finding["remedy"]) == ("note", "OMP_NUM_THREADS=1 is set; threads=8 uses all cores.")


def test_a_missing_extra_is_reported_but_not_an_error(found, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: None if package == "optuna" else "1.0")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda package: None)
    there, missing = found()["extras"]
    assert "optuna" not in there["found"]
    assert (missing["level"], missing["remedy"]) == ("ok", "pip install 'raiopt[optuna]'")


def test_checked_extras_agree_with_pyproject():
    with open(doctor.__file__.rpartition("raiopt")[0] + "pyproject.toml", "rb") as file:
        import tomllib

        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for extra, (package, _) in doctor.EXTRAS.items():
        if extra in extras:
            assert any(line.startswith(package) for line in extras[extra])


@pytest.mark.parametrize(("there", "level"), [((), "ok"), (doctor.SLURM, "ok"), (("sbatch",), "note")])
def test_an_incomplete_slurm_installation_is_reported(found, monkeypatch, there, level):
    which = {command: f"/usr/bin/{command}" for command in there}
    monkeypatch.setattr(doctor.shutil, "which", which.get)
    assert found()["slurm"][0]["level"] == level


def test_a_failing_check_is_reported_in_one_line(found, monkeypatch, capsys):
    def fail(outputs):
        raise OSError("no [disk]\nat all")

    monkeypatch.setattr(doctor, "_disk", fail)
    (finding,) = found(status=1)["disk"]
    assert finding["found"] == "OSError: no [disk]"
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "! disk        OSError: no [disk]" in text
    assert text.endswith("1 problem found.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "0"], "--images=0 must be"),
        (["--model", "resnet5"], "Did you mean 'resnet50'"),
        (["x"], "unrecognized"),
    ],
)
def test_wrong_words_are_an_error(capsys, words, message):
    assert main(["doctor", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_step_is_timed_by_the_clock_for_each_image(monkeypatch):
    clock = SimpleNamespace(perf_counter=itertools.count(0, 256).__next__)
    monkeypatch.setattr(timing, "time", clock)
    images, labels = zoo.load_data("digits")
    monkeypatch.setattr(timing.zoo, "load_data", lambda name: (images[:64], labels[:64]))
    timed = timing.time_step()
    assert (timed.model, timed.size, timed.seconds) == ("digits_robust", 64, 4.0)


@pytest.mark.parametrize(("load", "level"), [(0.0, "ok"), (10**6, "note")])
def test_a_timing_on_a_busy_machine_is_marked(found, monkeypatch, load, level):
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (load, load, load), raising=False)
    assert found()["speed"][0]["level"] == level


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet"])
def test_random_networks_for_timing_are_frozen_and_keep_the_generator(name):
    state = torch.get_rng_state()
    model, size = timing._random(name)
    assert torch.equal(torch.get_rng_state(), state)
    assert model(torch.rand(1, 3, size, size)).shape == (1, 1000)
    assert not any(weight.requires_grad for weight in model.parameters())
