"""Every part of an attack can be exchanged in the command; the folder tells enough of every kind of perturbation."""

import json

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from raiopt import zoo
from raiopt.cli import main
from raiopt.configs import store

SMALL = ["data.limit=8", "solver.steps=2", "threads=1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(tmp_path, *words):
    """Runs the command; returns the job's folder and its record."""
    assert main([*words]) == 0
    (path,) = tmp_path.glob("outputs/**/run.json")
    return path.parent, json.loads(path.read_text())


OPTIMS = [entry["name"] for entry in store if entry["group"] == "optim"]
INITS = [entry["name"] for entry in store if entry["group"] == "init"]
CRITERIA = [entry["name"] for entry in store if entry["group"] == "criterion"]


@pytest.mark.parametrize(
    "words",
    [
        *([f"optim={name}"] for name in OPTIMS),
        *([f"init={name}", "optim=l2_projected"] for name in INITS),
        *([f"criterion={name}", "init=gaussian"] for name in CRITERIA if name != "targeted_dlr"),
        ["criterion=targeted_dlr", "solver.targeted=true", "solver.target=next"],
        ["optim/InnerOpt=adam", "optim.InnerOpt.betas=[0.9,0.99]"],
        ["optim/InnerOpt=adamw"],
        ["optim/InnerOpt=rmsprop"],
        ["optim=signed", "optim.ball=null"],
        ["optim=l2_normed", "optim.ball=l2", "optim.epsilon=2"],
        ["optim=l2_normed", "optim.ball=l0", "optim.epsilon=40"],
        ["optim=l0_projected", "optim.pixels=true"],
        ["optim=l0_projected", "optim.pixels=true", "optim.param_ndim=null", "optim.epsilon=1200"],
        ["optim=chain", "optim.members=[{top_q:{q:0.8,dq:0.1}},l1_normed,{momentum:{mu:0.9}}]", "optim.lr=100"],
        ["model=digits_standard", "solver.targeted=true", "solver.target=next"],
        ["perturbation=masked", "perturbation.region=[16,16,20,30]", "optim.epsilon=1", "optim.lr=1"],
        ["perturbation=patch", "perturbation.size=[8,20]", "perturbation.place=center"],
        ["perturbation=patch", "perturbation.shared=false", "optim=l2_projected"],
        ["perturbation=affine", "perturbation.rotation=90", "optim=l2_frank_wolfe", "optim.lr=2"],
        ["perturbation=affine", "optim=l1_projected", "optim.q=0.5", "init=uniform_l1"],
        ["experiment=mi_fgsm"],
    ],
    ids=" ".join,
)
def test_every_part_can_be_exchanged(tmp_path, words):
    figures = run(tmp_path, *words, *SMALL)[1]["metrics"]
    assert figures["verified"] == figures["claimed"]


OWN_KIND = '''
import torch
from torch import nn

class Inked(nn.Module):
    """Moves every pixel of a sample towards white by a share of its own, or all samples by one."""
    def __init__(self, count):
        super().__init__()
        self.share = nn.Parameter(torch.zeros(count))
        self.count = count

    def forward(self, data):
        return data + self.share.view(-1, 1, 1, 1) * (1 - data)

    def is_shared(self, data):
        return self.count == 1

    def bounds(self, data):
        return torch.zeros_like(self.share), torch.ones_like(self.share)

def each(images):
    return Inked(len(images))

def one(images):
    return Inked(1)
'''


@pytest.mark.parametrize(
    ("words", "names", "ball"),
    [
        (["perturbation=patch", "perturbation.size=24"], {"parameter", "batch", "places"}, "Linf 1 of the patch"),
        (["perturbation=patch", "perturbation.shared=false"], {"parameter", "places"}, "Linf 1 of the patch"),
        (["perturbation=affine"], {"parameter"}, "Linf 1 of the pose"),
        (["perturbation=masked", "perturbation.region=[8,8,48,48]", "optim.epsilon=1"], set(), "Linf 1"),
        (["perturbation=universal", "optim.epsilon=0.5"], {"parameter", "batch"}, "Linf 0.5"),
        (
            ["perturbation=python", "perturbation.factory=kinds:each", "optim.epsilon=1"],
            {"parameter"},
            "Linf 1 of the share",
        ),
        (
            ["perturbation=python", "perturbation.factory=kinds:one", "optim.epsilon=1"],
            {"parameter", "batch"},
            "Linf 1 of the share",
        ),
    ],
)
def test_of_every_kind_of_perturbation_the_images_that_broke_can_be_made_again(tmp_path, words, names, ball):
    (tmp_path / "kinds.py").write_text(OWN_KIND)
    common = ["data.limit=24", "batch_size=10", "solver.steps=4", "optim.lr=0.5", "model=digits_standard", "threads=1"]
    folder, found = run(tmp_path, *words, *common)
    stored = load_file(folder / "perturbations.safetensors")
    samples = pl.read_parquet(folder / "samples.parquet").filter("verified")
    assert stored.keys() == {"ids", "delta", *names}
    assert stored["ids"].tolist() == samples["id"].to_list()
    assert found["metrics"]["verified"] == found["metrics"]["claimed"] == len(samples) > 0
    assert found["ball"] == ball
    data = zoo.digits()
    images = torch.stack([data.image(i) for i in stored["ids"].tolist()])
    prediction = zoo.load_model("digits_standard")(images + stored["delta"]).argmax(1)
    assert prediction.tolist() == samples["adversarial_prediction"].to_list()
    assert ((images + stored["delta"] > -1e-6) & (images + stored["delta"] < 1 + 1e-6)).all()
    if names:
        rows = stored["parameter"][stored["batch"]] if "batch" in names else stored["parameter"]
        assert list(rows.shape[1:]) == found["perturbation"]["parameter_shape"]
        assert_close(
            rows.double().reshape(len(rows), -1).norm(dim=1), torch.tensor(samples["l2"].to_list(), dtype=torch.float64)
        )
    assert found["perturbation"]["shared"] == found["coupled"] == ("batch" in names)
    assert found["clamped"] == ("perturbation=universal" in words)
    if "places" in names:
        size = 24 if "batch" in names else 16
        for delta, (row, column) in zip(stored["delta"], stored["places"].tolist(), strict=True):
            delta[:, row : row + size, column : column + size] = 0
        assert not stored["delta"].any()


def test_what_samples_share_is_told(tmp_path, capsys):
    assert main(["perturbation=universal", "optim.epsilon=0.5", "optim.lr=0.2", "save=all", *SMALL]) == 0
    assert "One perturbation for each batch of 256: with another batch_size" in capsys.readouterr().out
    assert main(["optim=l2_projected", "optim.param_ndim=null", *SMALL]) == 0
    assert "One ball for each batch of 256: with another batch_size" in capsys.readouterr().out
