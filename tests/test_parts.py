"""Every part of an attack can be exchanged in the command; the folder suffices to reconstruct its perturbations."""

import json
import shutil
import sys

import polars as pl
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.testing import assert_close

from raiopt import zoo
from raiopt.cli import main
from raiopt.config.explain import typed
from raiopt.config.options import store
from raiopt.results.record_reader import record_of

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
        *([f"optim={name}"] for name in OPTIMS if name != "alma"),
        ["optim=alma", "criterion=margin"],
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
        *([f"experiment={name}"] for name in ("mi_fgsm", "ni_fgsm", "vmi_fgsm")),
        *(["optim=square", f"optim.ball={ball}", "optim.epsilon=3"] for ball in ("l2", "l1")),
    ],
    ids=" ".join,
)
def test_every_part_can_be_exchanged(tmp_path, words):
    figures = run(tmp_path, *words, *SMALL)[1]["metrics"]
    assert figures["verified"] == figures["claimed"]


def test_alma_refuses_the_cross_entropy(capsys):
    assert main(["optim=alma", *SMALL]) == 1
    assert "criterion: it gives 2.303 where all classes are equally likely" in capsys.readouterr().err


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
def test_adversarial_images_of_every_perturbation_can_be_reconstructed(tmp_path, words, names, ball):
    (tmp_path / "kinds.py").write_text(OWN_KIND)
    common = ["data.limit=24", "batch_size=10", "solver.steps=4", "optim.lr=0.5", "model=digits_standard", "threads=1"]
    folder, found = run(tmp_path, *words, *common)
    stored = load_file(folder / "perturbations.safetensors")
    samples = pl.read_parquet(folder / "samples.parquet").filter("verified")
    assert stored.keys() == {"ids", "delta", *names}
    assert stored["ids"].tolist() == samples["id"].to_list()
    assert found["metrics"]["verified"] == found["metrics"]["claimed"] == len(samples) > 0
    assert str(record_of(found).ball) == ball
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


def test_shared_perturbations_and_balls_are_reported(tmp_path, capsys):
    assert main(["perturbation=universal", "optim.epsilon=0.5", "optim.lr=0.2", "save=all", *SMALL]) == 0
    assert (
        "One perturbation for each batch of 256, and no sample leaves it early: another batch_size"
        in capsys.readouterr().out
    )
    assert main(["optim=l2_projected", "optim.param_ndim=null", *SMALL]) == 0
    assert (
        "One ball for each batch of 256, and no sample leaves it early: another batch_size" in capsys.readouterr().out
    )


WRONG = 178
"""A test image that digits_standard takes for another digit."""

HALF = ["model=digits_standard", "optim.epsilon=0.1", "optim.lr=0.03", "data.limit=8", "solver.steps=3", "threads=1"]
"""About half of the images break."""


def asked(tmp_path, *words):
    """Returns the attacked rows of a run's samples, its record and its folder; its settings are in config.yaml."""
    folder, found = run(tmp_path, *HALF, *words)
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    for key, equals, value in (word.partition("=") for word in words if "." in word.partition("=")[0]):
        assert OmegaConf.select(config, key) == OmegaConf.create({"value": yaml.safe_load(value)}).value, equals
    samples = pl.read_parquet(folder / "samples.parquet").filter(pl.col("forward_passes").is_not_null())
    return samples, found, folder


def test_successful_samples_are_removed_early(tmp_path):
    samples, found, _ = asked(tmp_path)
    assert set(samples["stopped"]) == {"fooled", "steps"}
    for row in samples.iter_rows(named=True):
        assert row["verified"] == (row["stopped"] == "fooled")
        steps = row["first_fooled_step"] if row["verified"] else 3
        assert (row["steps"], row["forward_passes"]) == (steps, steps + 1)
        assert row["backward_passes"] - steps in {0, 1}  # it leaves after the gradient of the others
    assert found["metrics"]["verified_8bit"] is None


def test_stop_never_takes_all_steps(tmp_path):
    samples, _, _ = asked(tmp_path, "solver.stop=never")
    assert set(samples["stopped"]) == {"steps"}
    assert set(samples["steps"]) == {3}
    assert 0 < samples["verified"].sum() < 8


def test_restarts_add_their_passes(tmp_path):
    samples, found, _ = asked(tmp_path, "solver.restarts=2", "init=uniform_linf", "solver.stop=never")
    assert set(samples["forward_passes"]) == {8}
    assert set(samples["restart"]) == {0, 1}
    assert found["metrics"]["backward_passes"] == 8 * 6


def test_max_passes_is_respected_and_recorded(tmp_path):
    samples, _, _ = asked(tmp_path, "solver.max_passes=4")
    assert all(row["forward_passes"] + row["backward_passes"] <= 4 for row in samples.iter_rows(named=True))
    assert set(samples["stopped"]) == {"fooled", "passes"}


def test_without_use_best_the_last_iterate_counts(tmp_path):
    samples, _, _ = asked(tmp_path, "solver.use_best=false", "solver.stop=never")
    assert set(samples["best_step"]) == {3}


def test_best_by_norm_keeps_the_smallest_that_fools(tmp_path):
    samples, _, folder = asked(tmp_path, "solver.best_by=norm", "solver.stop=never")
    broken = samples.filter("verified")
    assert (broken["best_step"] == broken["first_fooled_step"]).all()  # a ball that is not reached grows with each step
    assert (broken["best_step"] < 3).any()
    shutil.rmtree(folder)
    by_loss = asked(tmp_path, "solver.stop=never")[0].filter("verified")
    assert (broken["linf"] < by_loss["linf"]).any()


def test_several_targets_are_tried_side_by_side(tmp_path):
    words = ["solver.targeted=true", "solver.target=[next,least_likely,3]", "optim.epsilon=0.4", "optim.lr=0.1"]
    samples, found, _ = asked(tmp_path, *words, "data.limit=16")
    reached = samples.filter(pl.col("verified") & (pl.col("adversarial_prediction") == pl.col("target")))
    assert found["metrics"]["target_reached"] == pytest.approx(len(reached) / len(samples))
    assert len(reached) > 0
    missed = samples.filter(pl.col("stopped") == "steps")
    rows = [3 - (label == 3) - (label == 2) for label in missed["label"]]  # 3 is next of 2: asked twice
    assert (missed["forward_passes"] >= pl.Series(rows) * 4).all()
    assert not (samples["target"] == samples["label"]).any()


def test_a_sample_that_is_its_target_is_left_alone(tmp_path):
    labels = [int(zoo.digits().labels[i]) for i in range(8)]
    folder, found = run(tmp_path, *HALF, "solver.targeted=true", f"solver.target={labels[0]}")
    samples = pl.read_parquet(folder / "samples.parquet")
    expected = [label == labels[0] for label in labels]
    assert (samples["stopped"] == "is_target").to_list() == expected
    assert samples["forward_passes"].is_null().to_list() == expected
    assert found["metrics"]["attacked"] == 8 - sum(expected)


def test_robust_accuracies_of_several_radii_agree_with_a_run_for_each(tmp_path):
    radii = [0.03, 0.06, 0.12]
    samples, found, folder = asked(tmp_path, f"solver.epsilons={radii}", "optim.lr=0.05")
    figures = found["metrics"]
    assert figures["epsilons"] == radii
    for radius, robust in zip(radii, figures["robust_accuracies"], strict=True):
        held = [not (row["verified"] and row["epsilon"] <= radius) for row in samples.iter_rows(named=True)]
        assert robust == sum(held) / 8
    assert set(samples["epsilon"]) <= set(radii)
    assert (samples["linf"] <= samples["epsilon"] * (1 + 1e-6)).all()
    assert all(len(row) == 3 for row in samples["broken_at"])
    shutil.rmtree(folder)
    alone = [1.0] * 3
    for number, radius in enumerate(radii):
        _, found, folder = asked(tmp_path, "optim.lr=0.05", f"optim.epsilon={radius}")
        alone[number] = found["metrics"]["robust_accuracy"]
        shutil.rmtree(folder)
    assert figures["robust_accuracies"] == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("attacked", [False, True])
def test_misclassified_samples_are_attacked_on_request(tmp_path, attacked):
    words = [*HALF, f"data.indices=[0,{WRONG}]", f"solver.attack_misclassified={str(attacked).lower()}"]
    words.append("solver.stop=never")
    folder, found = run(tmp_path, *words)
    row = pl.read_parquet(folder / "samples.parquet").row(1, named=True)
    assert row["label"] != row["clean_prediction"]
    assert (row["forward_passes"] is not None) == attacked
    assert row["stopped"] == ("steps" if attacked else "misclassified")
    assert found["metrics"]["clean_accuracy"] == 0.5
    assert found["metrics"]["robust_accuracy"] <= 0.5


def test_quantized_images_lie_on_the_grid_and_stay_adversarial_as_files(tmp_path, capsys):
    words = ["solver.quantize=true", "solver.verify_8bit=true", "save=all"]
    samples, found, folder = asked(tmp_path, *words)
    stored, data = load_file(folder / "perturbations.safetensors"), zoo.digits()
    images = torch.stack([data.image(i) for i in stored["ids"].tolist()])
    levels = (images + stored["delta"]).double() * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    count = samples["verified"].sum()
    assert found["metrics"]["verified_8bit"] == count > 0
    assert f"successful as 8-bit images {count} of {count}" in " ".join(capsys.readouterr().out.split())


def test_successes_are_rounded_to_8_bits_on_request(tmp_path):
    samples, found, _ = asked(
        tmp_path, "solver.verify_8bit=true", "optim=l2_projected", "optim.epsilon=5.0", "optim.lr=2.0"
    )
    broken = samples.filter("verified")
    assert len(broken) > 0
    assert found["metrics"]["verified_8bit"] == broken["verified_8bit"].sum()
    assert not samples.filter(~pl.col("verified"))["verified_8bit"].any()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fold", False),
        ("fold", True),
        ("channels_last", True),
        ("channels_last", False),
        ("precision", "bfloat16"),
    ],
)
def test_inference_options_reach_the_search(tmp_path, option, value):
    _, found, _ = asked(tmp_path, f"model.{option}={typed(value)}")
    assert found["inference"][option] == value


OWN_MODELS = """
import torch
from torch import nn

class Noisy(nn.Module):
    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)), 0.5 - x.mean((1, 2, 3))], 1) + 0.1 * torch.rand(())

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 4), nn.Flatten())

def data():
    return torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)), None
"""


def own(tmp_path, monkeypatch, factory):
    """Returns the command words of a job that attacks a user-defined model, in a module with a unique name."""
    name = f"own_{factory.lower()}"
    (tmp_path / f"{name}.py").write_text(OWN_MODELS)
    monkeypatch.delitem(sys.modules, name, raising=False)
    data = ["data=python", f"data.factory={name}:data"]
    return ["model=python", f"model.factory={name}:{factory}", *data, "solver.steps=2", "threads=1"]


@pytest.mark.skipif(shutil.which("g++") is None or sys.platform == "win32", reason="torch.compile needs a C++ compiler")
def test_a_model_is_compiled(tmp_path, monkeypatch):
    _, found = run(tmp_path, *own(tmp_path, monkeypatch, "small"), "model.compile=true")
    assert found["inference"]["compile"] is True
    assert found["metrics"]["claimed"] == found["metrics"]["verified"] > 0


def test_a_nondeterministic_model_must_be_allowed(tmp_path, monkeypatch, capsys):
    words = own(tmp_path, monkeypatch, "Noisy")
    assert main(words) == 1
    assert "not deterministic" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "outputs")
    _, found = run(tmp_path, *words, "model.deterministic=false")
    assert found["inference"]["nondeterministic"] > 0
    assert "An adversarial example may not fool it again." in capsys.readouterr().err
