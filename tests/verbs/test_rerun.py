"""`raiopt rerun`: an unchanged run repeats bit for bit, and a changed one names what changed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from raiopt.cli import main

SMALL = ["data.limit=4", "solver.steps=2", "threads=1"]
BROKEN = ["optim.epsilon=0.4", "optim.lr=0.2"]
FACTORY = """
import pathlib
pathlib.Path("ran").touch()

def make():
    import raiopt
    return raiopt.load_model("digits_standard").net
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def folders(outputs: str) -> list[Path]:
    return sorted(path.parent for path in Path(outputs).glob("**/run.json"))


def run(*words: str, outputs: str = "first") -> Path:
    assert main([*SMALL, *words, f"outputs={outputs}"]) == 0
    return folders(outputs)[-1]


def again(folder: Path, *words: str, status: int = 0) -> Path | None:
    """Repeats a run and returns the new folder, if there is one."""
    known = folders("again")
    assert main(["rerun", str(folder), "--outputs", "again", *words]) == status
    return next((path for path in folders("again") if path not in known), None)


def read_json(folder: Path | None, name: str = "comparison.json") -> Any:
    assert folder is not None
    return json.loads((folder / name).read_text())


def edit(folder: Path, change: Any) -> None:
    record = read_json(folder, "run.json")
    change(record)
    (folder / "run.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run in which samples break, made once."""
    outputs = tmp_path_factory.mktemp("made")
    assert main([*SMALL, *BROKEN, f"outputs={outputs}", "name=made", "note=mine"]) == 0
    return folders(str(outputs))[0]


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_a_run_is_repeated_bit_for_bit_in_an_ordinary_folder(folder, tmp_path, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    new = again(folder)
    assert new is not None
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert read_json(new)["repeated"] == "bitwise"
    assert read_json(new)["stored"]["count"] == read_json(new, "run.json")["metrics"]["verified"] > 0
    assert {p.name for p in folder.iterdir()} | {"comparison.json"} == {p.name for p in new.iterdir()}
    assert (new / "perturbations.safetensors").read_bytes() == (folder / "perturbations.safetensors").read_bytes()
    out = capsys.readouterr().out
    assert "robust accuracy" in out
    assert out.rstrip().endswith("Repeated bit for bit.")
    old, record = read_json(folder, "run.json"), read_json(new, "run.json")
    assert record["rerun_of"] == str(folder)
    assert record["command"] == ["raiopt", "rerun", str(folder), "--outputs", "again"]
    assert record["overrides"] == {"data.limit": 4, "solver.steps": 2, "optim.epsilon": 0.4, "optim.lr": 0.2}
    assert (record["name"], record["note"], record["job_key"]) == (None, "mine", old["job_key"])
    assert record["choices"] | {"experiment": None} == old["choices"]
    assert "Done with 4 of 4 samples." in (new / "run.log").read_text()
    third = again(new)
    assert read_json(third)["repeated"] == "bitwise"


def test_as_a_command(folder):
    words = [sys.executable, "-m", "raiopt", "rerun", "copy"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (new,) = folders("outputs")
    assert new.parts[0] == "outputs"
    assert len(new.parts) == 3
    assert done.stdout.rstrip().endswith("Repeated bit for bit.")
    shutil.rmtree(new / ".hydra")
    done = subprocess.run([*words[:-1], str(new)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"raiopt: {new}/.hydra/config.yaml does not exist: give the folder of one job")


@pytest.mark.parametrize(
    "words",
    [
        ("perturbation=universal", "save=all", *BROKEN),
        ("perturbation=patch", "save=all", "init=uniform_linf", "seed=3"),
        ("optim=l1_projected", "save=none", "init=uniform_l1", "solver.restarts=2"),
        ("solver.epsilons=[0.1,0.4]", "optim.lr=0.2"),
        ("data.shard=1", "data.num_shards=2", "batch_size=1", *BROKEN),
        ("experiment=mi_fgsm", "solver.targeted=true", "solver.target=next"),
    ],
    ids=["universal", "patch", "nothing stored", "epsilons", "shard", "mi_fgsm"],
)
def test_every_kind_of_run_repeats(words):
    assert read_json(again(run(*words)))["repeated"] == "bitwise"


def test_a_job_of_a_sweep_repeats_with_the_threads_that_it_had():
    assert main(["-m", *SMALL[:2], *BROKEN, "seed=0,1", "outputs=first", "name=sweep", "hydra.launcher.n_jobs=1"]) == 0
    one, other = folders("first")
    new = again(other)
    assert read_json(new)["repeated"] == "bitwise"
    assert read_json(new, "run.json")["device"] == read_json(other, "run.json")["device"]
    assert read_json(new, "run.json")["job_key"] == other.name != one.name


@pytest.mark.parametrize("layout", [True, False])
def test_automatic_choices_of_the_run_are_reused(folder, layout):
    edit(folder, lambda record: record["inference"].update(channels_last=layout))
    edit(folder, lambda record: record.update(batch_size=3))
    record = read_json(again_anyhow(folder), "run.json")
    assert record["inference"]["channels_last"] is layout
    assert record["batch_size"] == 3


def again_anyhow(folder: Path) -> Path | None:
    """Repeats a run whose record was made up, so that bits may differ."""
    before = folders("again")
    main(["rerun", str(folder), "--outputs", "again"])
    return next(path for path in folders("again") if path not in before)


@pytest.mark.parametrize(
    ("device", "expected"),
    [({"type": "cpu", "threads": 1}, 1), ({"type": "cuda:77", "threads": 10**6}, None), ("x", None), ({}, None)],
)
def test_an_unavailable_device_or_thread_count_is_chosen_anew(folder, device, expected):
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("threads: 1", "threads: null"))
    edit(folder, lambda record: record.update(device=device))
    found = read_json(again_anyhow(folder), "run.json")["device"]
    assert expected in (None, found["threads"])
    assert found["threads"] < 10**6


def perturb(folder: Path) -> None:
    stored = load_file(folder / "perturbations.safetensors")
    stored["delta"] = stored["delta"] * np.float32(1 - 1e-6)
    save_file(stored, folder / "perturbations.safetensors")


def test_another_version_is_compared_by_verdict(folder, capsys):
    perturb(folder)
    assert read_json(again(folder, status=1))["repeated"] is None
    assert "No recorded difference explains it" in capsys.readouterr().out
    edit(folder, lambda record: record["versions"].update(torch="2.12.0"))
    found = read_json(again(folder))
    assert found["repeated"] == "verdicts"
    assert found["conditions"]["torch"][0] == "2.12.0"
    assert 0 < found["stored"]["largest"] < 1e-5
    assert "because of different torch" in capsys.readouterr().out


def test_a_verdict_that_was_changed_names_its_sample(folder, capsys):
    samples = pl.read_parquet(folder / "samples.parquet")
    row = samples["verified"].to_list().index(True)
    samples[row, "verified"] = False
    samples.write_parquet(folder / "samples.parquet")
    found = read_json(again(folder, status=1))
    assert [flip["id"] for flip in found["flips"]] == [samples["id"][row]] == found["changed"]
    assert f"1 sample has another verdict: {samples['id'][row]} ({samples['name'][row]}): robust, now fooled" in (
        capsys.readouterr().out
    )


def test_a_changed_config_is_reported_as_other_options(folder):
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("epsilon: 0.4", "epsilon: 0.3"))
    found = read_json(again(folder, status=1))
    assert found["question"] == {"optim.epsilon": [0.4, 0.3]}
    assert read_json(folders("again")[0], "run.json")["overrides"]["optim.epsilon"] == 0.3


def test_invented_overrides_are_ignored(folder):
    edit(
        folder, lambda record: record.update(overrides={"a[": 1, "seed.x": 2, "seed": 0, "model": "x", "optim.lr[": 1})
    )
    found = read_json(again(folder), "run.json")["overrides"]
    assert found == {"seed": 0, "model": "digits_robust"}


def test_a_table_that_cannot_be_compared_is_refused_before_anything_runs(folder, capsys):
    (folder / "samples.parquet").write_text("x")
    assert again(folder, status=1) is None
    assert "samples.parquet cannot be read" in capsys.readouterr().err


def test_changed_weights_and_data_are_reported_before_anything_runs(tmp_path, capsys, monkeypatch):
    from raiopt.zoo.vision import models

    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (80 * i, 40, 200)).save(tmp_path / "images" / f"{i}.png")
    weights = {n: t.numpy() for n, t in models.get_model("shufflenet_v2_x0_5", num_classes=3).state_dict().items()}
    save_file(weights, "weights.safetensors")
    words = ["model=torchvision", "model.name=shufflenet_v2_x0_5", "model.checkpoint=weights.safetensors",
             "model.num_classes=3", "data=image_folder", "data.root=images", "data.labels=predicted"]  # fmt: skip
    folder = run(*words)
    assert read_json(again(folder))["repeated"] == "bitwise"
    capsys.readouterr()

    weights["fc.bias"] = weights["fc.bias"] + np.float32(1)
    save_file(weights, "weights.safetensors")
    assert again(folder, status=1) is None
    err = capsys.readouterr().err
    hashed = read_json(folder, "run.json")["hashes"]
    assert f"not the same weights (hash {hashed['weights'][:10]}, now" in err
    assert "Nothing was run; --anyway uses the present ones" in err
    found = read_json(again(folder, "--anyway", status=1))
    assert list(found["question"]) == ["weights"]

    Image.new("RGB", (64, 64), (1, 40, 200)).save(tmp_path / "images" / "0.png")
    edit(
        folder,
        lambda record: record["hashes"].update(
            weights=read_json(folders("again")[-1], "run.json")["hashes"]["weights"]
        ),
    )
    capsys.readouterr()
    files = read_json(folder, "run.json")["data"]["files"]
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
        patched.setattr("raiopt.zoo.picture_files.open_picture", lambda *_, **__: pytest.fail("decoded"))
        assert again(folder, status=1) is None
    err = capsys.readouterr().err
    assert f"not the same image files in images (hash {files[:10]}, now" in err
    assert "No image was decoded and nothing was run; --anyway uses the present ones" in err
    edit(folder, lambda record: record["data"].pop("files"))  # as of a version that knew none
    assert again(folder, status=1) is None
    assert f"not the same data (hash {hashed['data'][:10]}, now" in capsys.readouterr().err


def test_user_functions_run_only_when_allowed(tmp_path, monkeypatch, capsys):
    (tmp_path / "nets_of_rerun.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    folder = run("model=python", "model.factory=nets_of_rerun:make", "model.mean=0.3", "model.std=0.35")
    sys.modules.pop("nets_of_rerun")
    (tmp_path / "ran").unlink()
    assert again(folder, status=1) is None
    assert "'nets_of_rerun:make' would be imported and run. If you trust" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert again(folder, "--allow", "nets_of_rerun:other", status=1) is None
    assert not (tmp_path / "ran").exists()
    assert read_json(again(folder, "--allow", "nets_of_rerun:make"))["repeated"] == "bitwise"


@pytest.mark.parametrize("status", ["killed", "failed", "running"])
def test_an_unfinished_run_is_run_but_not_compared(folder, capsys, status):
    edit(folder, lambda record: (record.update(status=status), record.pop("metrics"), record.pop("hashes")))
    new = again(folder, status=1)
    assert new is not None
    assert read_json(new, "run.json")["status"] == "finished"
    assert f"copy is {status}, not finished: there is nothing to compare. The new run is in {new}" in (
        capsys.readouterr().err
    )


def test_a_job_that_fails_again_says_why(folder, capsys):
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("param_ndim: -1", "param_ndim: 9"))
    new = again(folder, status=1)
    assert read_json(new, "run.json")["status"] == "failed"
    assert "param_ndim" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x", "cannot be read"),
        ("[" * 10**5, "cannot be read"),
        ("[]", "has the schema None"),
        ('{"schema": 99}', "has the schema 99"),
        (" " * 2**20 + "{}", "is larger than 1,048,576 bytes"),
        (None, "does not exist: give the folder of one job"),
    ],
)
def test_an_invalid_record_is_refused_before_anything_runs(folder, capsys, content, message):
    (folder / "run.json").unlink()
    if content is not None:
        (folder / "run.json").write_text(content)
    assert again(folder, status=1) is None
    err = capsys.readouterr().err
    assert err.startswith(("raiopt: copy/run.json ", f"raiopt: {folder}/run.json "))
    assert message in err


def test_untrusted_text_is_escaped_on_the_terminal(folder, capsys):
    edit(folder, lambda record: record["versions"].update(torch="\x1b[31m[red]evil"))
    again(folder)
    out = capsys.readouterr().out
    assert r"torch \x1b[31m[red]evil, now" in out
    assert "\x1b[31m" not in out
