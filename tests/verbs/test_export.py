"""Exported images, each verified from its file by code that shares nothing with the export."""

import csv
import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from raiopt import zoo
from raiopt.cli import main
from raiopt.results import perturbation_store
from raiopt.verbs.export import MAX_NAME_LENGTH, _class_name

QUICK = ["data.limit=40", "solver.steps=4", "optim.epsilon=0.2", "optim.lr=0.1", "threads=1"]
AT_THE_BORDER = ["data.limit=50", "solver.steps=16", "optim.epsilon=0.1", "optim.lr=0.025", "threads=1"]
"""What breaks so is just behind the border: some of it is right again after rounding."""
OWN = """
import torch
from torch import nn

class Grey(nn.Module):
    def forward(self, x):
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, 0.5 - mean], 1)

def model():
    return Grey()

def data():
    x = torch.linspace(80, 150, 6).round().view(6, 1, 1, 1).expand(6, CHANNELS, 5, 4) / 255
    return x.contiguous(), (x.mean((1, 2, 3)) < 0.25).long()
"""


def run(root, *words, question=QUICK):
    """The folder of a run that stored all its perturbations, if nothing else is asked."""
    assert main([*question, "save=all", *words, f"outputs={root}", "name=run"]) == 0
    (folder,) = (root / "run").iterdir()
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain"), "solver.verify_8bit=true", question=AT_THE_BORDER)


@pytest.fixture
def copied(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "copied")


def export(folder, to, *words):
    """The lines of the list by the ids."""
    assert main(["export", str(folder), "--png", str(to), *words]) == 0
    with open(to / "list.csv", encoding="utf-8", newline="") as stream:
        return {int(line["id"]): line for line in csv.DictReader(stream)}


def table(folder):
    return {row["id"]: row for row in pl.read_parquet(folder / "samples.parquet").iter_rows(named=True)}


def pixels(file):
    with Image.open(file) as image:
        assert (image.format, image.mode) in (("PNG", "RGB"), ("PNG", "L"))
        array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


NORMS = {
    "linf": lambda x: np.abs(x).max(),
    "l2": lambda x: np.sqrt((x**2).sum()),
    "l1": lambda x: np.abs(x).sum(),
    "l0": lambda x: (np.abs(x) > 1e-6).any(0).sum(),  # pixels
}


def judged(folder, to, lines, name="digits_robust", norm="linf"):
    """Compares the list with files, model and NumPy; returns the norms by the ids."""
    data, model, rows, norms = zoo.digits(), zoo.load_model(name), table(folder), {}
    assert {line["file"] for line in lines.values()} == {file.name for file in to.glob("*.png")}
    for number, line in lines.items():
        image = pixels(to / line["file"])
        with torch.no_grad():
            prediction = int(model(torch.from_numpy(image / 255).float()[None]).argmax())
        clean = data.image(data.ids.index(number)).double().numpy()
        norms[number] = NORMS[norm](image / 255 - clean)
        assert int(line["file_prediction"]) == prediction
        assert line["fools"] == ("yes" if prediction != rows[number]["label"] else "no")
        for column in ("name", "label", "clean_prediction", "adversarial_prediction"):
            assert line[column] == str(rows[number][column])
        assert float(line["norm"]) == pytest.approx(norms[number], rel=1e-5)
    return norms


def test_successes_are_written_and_verified_from_their_files(plain, tmp_path, capsys):
    to = tmp_path / "png"
    lines = export(plain, to)
    rows = table(plain)
    assert set(lines) == {number for number, row in rows.items() if row["verified"]}
    norms = judged(plain, to, lines)
    for number, line in lines.items():
        assert norms[number] <= 0.1 * (1 + 1e-6)
        assert line["in_ball"] == "yes"
        assert (line["fools"] == "yes") == rows[number]["verified_8bit"]
    fools = sum(line["fools"] == "yes" for line in lines.values())
    assert 0 < fools < len(lines)
    assert f"{len(lines)} images in {to}; as 8-bit files {fools} fool the model" in capsys.readouterr().out


def test_exported_files_are_close_to_the_stored_perturbations(plain, tmp_path):
    lines, stored = export(plain, tmp_path / "png", "--all"), load_file(plain / "perturbations.safetensors")
    assert set(lines) == set(stored["ids"].tolist())
    for number, delta in zip(stored["ids"].tolist(), stored["delta"], strict=True):
        adversarial = zoo.digits().image(number).double().numpy() + delta
        assert np.abs(pixels(tmp_path / "png" / lines[number]["file"]) / 255 - adversarial).max() <= 1 / 255


def test_a_folder_that_is_not_empty_is_left_alone_or_replaced_by_force(plain, tmp_path, capsys):
    to = tmp_path / "png"
    before = export(plain, to, "--all")
    (to / "mine.png").write_bytes(b"mine")
    assert main(["export", str(plain), "--png", str(to)]) == 1
    assert "--force" in capsys.readouterr().err
    assert len(list(to.glob("*.png"))) == len(before) + 1
    after = export(plain, to, "--force")
    assert len(after) < len(before)
    assert {file.name for file in to.iterdir()} == {"mine.png", "list.csv", *(line["file"] for line in after.values())}


@pytest.mark.parametrize("part", ["weights", "data"])
def test_other_weights_or_data_are_refused_before_anything_is_written(copied, tmp_path, capsys, part):
    record = json.loads((copied / "run.json").read_text())
    record["hashes"][part] = "0" * 64
    (copied / "run.json").write_text(json.dumps(record))
    assert main(["export", str(copied), "--png", str(tmp_path / "png")]) == 1
    assert f"The {part} are not those of the run" in capsys.readouterr().err
    assert not (tmp_path / "png").exists()


def test_class_names_cannot_leave_the_folder(copied, tmp_path):
    names = ["../../x", "<script>", "a/b\\c:d", "", "..", "x" * 300, "\x1b[31m", "Ärger", "-rf", "nul\0"]
    (copied / "classes.json").write_text(json.dumps(names))
    to = tmp_path / "deep" / "png"
    lines = export(copied, to, "--all")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["png"]
    assert {path.name for path in to.iterdir()} == {"list.csv", *(line["file"] for line in lines.values())}
    labels = {int(line["label"]): line["file"].split("_", 1)[1].partition("_as_")[0] for line in lines.values()}
    expected = {
        0: "x",
        1: "script",
        2: "a_b_c_d",
        3: "3",
        4: "4",
        5: "x" * MAX_NAME_LENGTH,
        6: "31m",
        7: "Ärger",
        8: "rf",
        9: "nul",
    }
    assert labels == {number: expected[number] for number in labels}
    assert len(labels) > 7


@given(name=st.text())
def test_any_class_name_is_a_harmless_part_of_a_file_name(name):
    part = _class_name(0, [name])
    assert 0 < len(part) <= MAX_NAME_LENGTH
    assert part[0] not in "._-"
    assert not set(part) & set("/\\\0:<>\"'|?* \n\r\t;&$`")


@pytest.mark.parametrize(
    ("words", "norm"),
    [
        (["optim=l2_projected", "optim.epsilon=4", "optim.lr=1"], "l2"),
        (["perturbation=universal"], "linf"),
        (["perturbation=patch", "perturbation.size=24"], "l2"),
        (["optim.ball=null", "optim=signed", "optim.lr=0.2"], "l2"),
        (["optim=l0_projected", "optim.epsilon=400", "optim.pixels=true", "model=digits_standard"], "l0"),
    ],
    ids=["l2", "universal", "patch", "unbounded", "l0"],
)
def test_every_kind_of_perturbation_is_written(tmp_path, words, norm):
    folder = run(tmp_path, *words)
    lines = export(folder, tmp_path / "png", "--all")
    record = json.loads((folder / "run.json").read_text())
    norms = judged(folder, tmp_path / "png", lines, record["model"]["name"], norm)
    bounded = record["ball"]["norm"] is not None and not record["ball"]["scope"]
    for number, line in lines.items():
        expected = "yes" if bounded and norms[number] <= record["ball"]["epsilon"] * (1 + 1e-6) else "no"
        assert line["in_ball"] == (expected if bounded else "")
    stored = load_file(folder / "perturbations.safetensors")
    for number, delta in zip(stored["ids"].tolist(), stored["delta"], strict=True):
        adversarial = zoo.digits().image(number).double().numpy() + delta
        assert np.abs(pixels(tmp_path / "png" / lines[number]["file"]) / 255 - adversarial).max() <= 1.001 / 255


def test_with_several_radii_each_image_respects_its_own_radius(tmp_path):
    folder = run(tmp_path, "solver.epsilons=[0.05,0.1,0.2]")
    lines, rows = export(folder, tmp_path / "png"), table(folder)
    norms = judged(folder, tmp_path / "png", lines)
    assert len({rows[number]["epsilon"] for number in lines}) > 1
    for number, line in lines.items():
        assert norms[number] <= rows[number]["epsilon"] * (1 + 1e-6)
        assert line["in_ball"] == "yes"


def test_a_run_in_chunks_gives_the_same_files(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(perturbation_store, "MAX_MERGED_BYTES", 0)
    monkeypatch.setattr("raiopt.verbs.export.MAX_IMAGES", 3)
    folder = run(tmp_path, "batch_size=7")
    assert len(list((folder / "perturbations").iterdir())) > 3
    export(folder, tmp_path / "png", "--all")
    stored = load_file(next((folder / "perturbations").iterdir()))
    numbers = {int(file.name[:6]) for file in (tmp_path / "png").glob("*.png")}
    assert set(stored["ids"].tolist()) < numbers
    assert numbers == {number for number, row in table(folder).items() if row["forward_passes"] is not None}


@pytest.mark.parametrize("channels", [1, 3, 2])
def test_user_code_runs_only_when_allowed(tmp_path, monkeypatch, capsys, channels):
    name = f"own_of_{channels}"
    (tmp_path / f"{name}.py").write_text(OWN.replace("CHANNELS", str(channels)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = [f"{part}={value}" for part in ("model", "data") for value in ("python",)]
    own += [f"model.factory={name}:model", f"data.factory={name}:data", "data.limit=6"]
    folder = run(tmp_path / "o", *own, "optim=l0_projected", "optim.epsilon=3", "optim.lr=0.5")
    allowed = []
    for part in ("model", "data"):
        assert main(["export", str(folder), "--png", "png", *allowed]) == 1
        assert f"--allow {name}:{part}" in capsys.readouterr().err
        allowed += ["--allow", f"{name}:{part}"]
    if channels == 2:
        assert main(["export", str(folder), "--png", "png", *allowed]) == 1
        assert "Images of 2 channels cannot be PNG" in capsys.readouterr().err
        return
    lines = export(folder, tmp_path / "png", "--all", *allowed)
    assert len(lines) == 6
    for number, line in lines.items():
        array = pixels(tmp_path / "png" / line["file"])
        changed = (array != 80 + 14 * number).sum()
        assert (float(line["norm"]), line["in_ball"]) == (changed, "yes")
        assert 0 < changed <= 3
        assert array.shape == (channels, 5, 4)
        mean = float(np.float32(array / 255).mean())
        assert line["fools"] == ("yes" if mean < 0.5 - mean else "no")


def test_runs_that_cannot_be_exported_are_refused(tmp_path, capsys):
    folder = run(tmp_path, "save=none")
    assert main(["export", str(folder), "--png", str(tmp_path / "png")]) == 1
    assert "save=fooled or save=all" in capsys.readouterr().err
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": "killed"}))
    assert main(["export", str(folder), "--png", str(tmp_path / "png")]) == 1
    assert "is killed, not finished" in capsys.readouterr().err
    assert main(["export", str(folder)]) == 1
    assert "required: --png" in capsys.readouterr().err
