"""The command as a user types it: jobs, sweeps, folders, and messages for bad input."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from raiopt import zoo
from raiopt.cli import main
from raiopt.results.record import SCHEMA
from raiopt.results.tables import load_sweep

SMALL = ["data.limit=8", "solver.steps=2", "threads=1"]
OWN = '''
import torch
from torch import nn

class Sick(nn.Module):
    """Three classes; NaN for images whose first pixel is white."""
    def forward(self, x):
        logits = torch.stack([x.mean((1, 2, 3)), 0.5 - x.mean((1, 2, 3)), -x.amax((1, 2, 3))], 1)
        return torch.where(x[:, 0, 0, 0, None] > 0.999, torch.nan, logits)

def sick():
    return Sick()

def data():
    x = torch.linspace(0, 0.9, 6).view(6, 1, 1, 1).expand(6, 3, 4, 4).clone()
    x[3, 0, 0, 0] = 1
    return x, torch.ones(6).long()
'''


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def folders(tmp_path):
    return sorted(path.parent for path in tmp_path.glob("outputs/**/run.json"))


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_job_leaves_a_complete_folder(tmp_path, capsys):
    assert main([*SMALL, "optim.epsilon=0.4", "optim.lr=0.2", "save=all", "note=hello"]) == 0
    (folder,) = folders(tmp_path)
    assert {path.name for path in folder.iterdir()} == {
        ".hydra",
        "classes.json",
        "exhibits.safetensors",
        "gallery.png",
        "perturbations.safetensors",
        "run.json",
        "run.log",
        "samples.parquet",
        "trace.parquet",
    }
    assert {path.name for path in (folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    found = record(folder)
    assert (found["status"], found["schema"], found["note"]) == ("finished", SCHEMA, "hello")
    assert (found["ball"]["norm"], found["ball"]["epsilon"]) == ("linf", 0.4)
    assert found["hashes"]["weights"] == zoo.load_model("digits_robust").weights_hash()
    samples = pl.read_parquet(folder / "samples.parquet")
    assert len(samples) == 8
    assert found["metrics"]["forward_passes"] == samples["forward_passes"].sum()
    assert found["metrics"]["backward_passes"] == samples["backward_passes"].sum()
    assert len(pl.read_parquet(folder / "trace.parquet")) == 3
    stored = load_file(folder / "perturbations.safetensors")
    assert stored["delta"].shape == (samples["forward_passes"].count(), 3, 64, 64)
    assert stored["delta"].abs().max() <= 0.4 * (1 + 1e-6)
    out = capsys.readouterr().out
    assert "clean accuracy" in out
    assert f"results in {folder.relative_to(tmp_path)}" in out


def test_stored_perturbations_can_be_verified_without_raiopts_engine(tmp_path):
    assert main(["data.limit=16", "solver.steps=4", "optim.epsilon=0.4", "optim.lr=0.2", "save=all"]) == 0
    (folder,) = folders(tmp_path)
    stored, samples = load_file(folder / "perturbations.safetensors"), pl.read_parquet(folder / "samples.parquet")
    data = zoo.digits(limit=16)
    rows = [data.ids.index(i) for i in stored["ids"].tolist()]
    images = torch.stack([data.image(row) for row in rows])
    prediction = zoo.load_model("digits_robust")((images + stored["delta"]).clamp(0, 1)).argmax(1)
    attacked = samples.filter(pl.col("forward_passes").is_not_null())
    assert prediction.tolist() == attacked["adversarial_prediction"].to_list()
    assert attacked["verified"].sum() > 0
    norms = stored["delta"].double().flatten(1).norm(dim=1)
    assert_close(norms, torch.tensor(attacked["l2"].to_list(), dtype=torch.float64))


@pytest.mark.parametrize(("save", "rows"), [("fooled", "verified"), ("none", None)])
def test_save_says_which_perturbations_are_stored(tmp_path, save, rows):
    assert main([*SMALL, "optim.epsilon=0.4", "optim.lr=0.2", f"save={save}"]) == 0
    (folder,) = folders(tmp_path)
    if rows is None:
        assert not (folder / "perturbations.safetensors").exists()
    else:
        samples = pl.read_parquet(folder / "samples.parquet").filter(pl.col(rows))
        assert load_file(folder / "perturbations.safetensors")["ids"].tolist() == samples["id"].to_list()


@pytest.mark.parametrize("changes", [["batch_size=3"], ["data.indices=::-1"], []])
def test_equal_options_give_equal_starts_and_verdicts(tmp_path, changes):
    words = ["data.split=test", "data.limit=null", "data.indices=0:8", "save=all", "init=uniform_linf", "threads=1"]
    if "data.indices=::-1" in changes:
        words[2], changes = "data.indices=7::-1", []
    assert main([*words, "solver.steps=0", *changes]) == 0
    assert main([*words[:2], "data.indices=0:8", *words[3:], "solver.steps=0"]) == 0
    (one, two) = (load_file(folder / "perturbations.safetensors") for folder in folders(tmp_path))
    order, other = one["ids"].argsort(), two["ids"].argsort()
    assert torch.equal(one["ids"][order], two["ids"][other])
    assert torch.equal(one["delta"][order], two["delta"][other])
    assert one["delta"].abs().amax() > 0.09


def test_a_sweep_is_a_table_of_its_jobs(tmp_path, capsys):
    words = ["-m", "optim=l1_normed,l2_projected", "optim.param_ndim=-1,null", "optim.grad_scale=1,2"]
    assert main([*words, "data.limit=4", "solver.steps=1", "save=none"]) == 0
    jobs = folders(tmp_path)
    assert len(jobs) == 8
    assert len({job.parent for job in jobs}) == 1
    assert all(record(job)["status"] == "finished" for job in jobs)
    assert sorted({str(record(job)["overrides"]["optim.param_ndim"]) for job in jobs}) == ["-1", "None"]
    table = pl.read_parquet(jobs[0].parent / "sweep.parquet")
    assert {"optim", "optim.param_ndim", "optim.grad_scale", "ball", "robust_accuracy", "best"} <= set(table.columns)
    assert table["optim.param_ndim"].to_list() == [-1, -1, None, None] * 2
    assert set(table["ball"]) == {"Linf 0.1", "L2 1.5", "L2 1.5 in all"}
    assert (jobs[0].parent / "sweep.csv").exists()
    out = capsys.readouterr().out
    assert "8 jobs" in out
    assert "param_ndim" in out


def test_a_job_that_fails_is_a_row_and_the_others_finish(tmp_path, capsys):
    assert main([*SMALL, "-m", "optim.lr=0.1,-1,0.2", "save=none"]) == 1
    table = pl.read_parquet(next(tmp_path.glob("outputs/*/*/sweep.parquet")))
    assert table["status"].to_list() == ["finished", "failed", "finished"]
    assert "lr=-1.0 must be" in table["error"][1]
    failed = tmp_path / "outputs"
    (log,) = [path for path in failed.glob("**/run.log") if table["job"][1] in str(path)]
    assert "Traceback" in log.read_text()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert "lr=-1.0 must be" in captured.out


def test_an_experiment_may_be_a_sweep(tmp_path):
    words = ["experiment=step_size_grid", "data.limit=2", "save=none", "hydra.sweeper.params={solver.steps:'0,1'}"]
    assert main(words) == 0
    asked = {(job["solver.steps"], job["optim.lr"]) for job in (record(f)["overrides"] for f in folders(tmp_path))}
    assert asked == {(steps, lr) for steps in (0, 1) for lr in (0.0125, 0.025, 0.05, 0.1)}


def test_a_named_job_with_equal_options_runs_once(tmp_path, capsys):
    assert main([*SMALL, "name=first"]) == 0
    (folder,) = folders(tmp_path)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "run.log"}
    assert folder.parent == tmp_path / "outputs" / "first"
    assert main([*SMALL, "name=first", "note=again", "optim.lr=0.10"]) == 0
    assert "finished before" in capsys.readouterr().out
    assert files == {n: (folder / n).read_bytes() for n in files}
    assert main([*SMALL, "name=first", "optim.lr=0.05"]) == 0
    assert len(folders(tmp_path)) == 2


@pytest.mark.parametrize("sweep", [[], ["-m", "hydra/launcher=basic"]])
def test_a_finished_run_is_not_reused_after_a_default_changed(tmp_path, capsys, sweep):
    words = [*sweep, *SMALL, "name=a"]
    assert main(words) == 0
    (folder,) = folders(tmp_path)
    before = {**record(folder), "options": {**record(folder)["options"], "optim.lr": 0.7, "removed": 1}}
    (folder / "run.json").write_text(json.dumps(before))
    assert main(words) == 0
    said = (
        "1 finished job runs again because a default changed: optim.lr=0.7 is now 0.1. Old results move to replaced/."
    )
    assert said in capsys.readouterr().out
    assert record(folder)["options"]["optim.lr"] == 0.1
    assert record(folder.parent / "replaced" / f"{folder.name}-1") == before
    assert main([*words, "optim.lr=0.1"]) == 0
    assert "runs again" not in capsys.readouterr().out


def test_a_given_folder_is_reused_only_for_equal_options(tmp_path, capsys):
    words, folder = ["data.limit=8", "threads=1", "hydra.run.dir=mine"], tmp_path / "mine"
    assert main([*words, "solver.steps=1"]) == 0
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.log"}
    capsys.readouterr()
    assert main([*words, "solver.steps=2", "optim.epsilon=0.3"]) == 1
    said = capsys.readouterr()
    assert "finished before" not in said.out
    assert "mine holds the results of another question: raiopt " in said.err
    assert "solver.steps=1. Nothing was overwritten; give another name=... or hydra.run.dir=..." in said.err
    assert files == {path: path.read_bytes() for path in files}
    assert main([*words, "solver.steps=1"]) == 0
    assert "finished before" in capsys.readouterr().out

    log = (folder / "run.log").read_text()
    assert main([*words, "solver.steps=2", "optim.epsilon=0.3", "force=true"]) == 0
    assert (record(folder)["ball"]["epsilon"], record(folder)["choices"]["optim"]) == (0.3, "linf_projected")
    moved = tmp_path / "replaced" / "mine-1"
    assert all((moved / path.relative_to(folder)).read_bytes() == content for path, content in files.items())
    assert (moved / "run.log").read_text() == log
    assert "Done with 8 of 8 samples" in (folder / "run.log").read_text()


def test_finished_batches_of_other_options_are_not_removed(tmp_path, capsys, monkeypatch):
    words = ["data.limit=8", "threads=1", "batch_size=4", "hydra.run.dir=mine"]
    with monkeypatch.context() as patch:
        patch.setattr("raiopt.experiment._finish", lambda *_: 1 / 0)
        assert main([*words, "solver.steps=1"]) == 1
    chunks = sorted((tmp_path / "mine" / "chunks").iterdir())
    assert main([*words, "solver.steps=2"]) == 1
    assert "holds the results of another question" in capsys.readouterr().err
    assert sorted((tmp_path / "mine" / "chunks").iterdir()) == chunks
    assert main([*words, "solver.steps=1"]) == 0
    assert record(tmp_path / "mine")["continued"]["batches"] == 2


def test_force_never_moves_the_working_directory(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main([*SMALL, "hydra.run.dir=."]) == 0
    assert main([*SMALL, "hydra.run.dir=.", "force=true"]) == 1
    assert "holds the working directory" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_jobs_of_a_sweep_never_share_a_folder(tmp_path, capsys):
    words = ["-m", *SMALL, "hydra/launcher=basic", "hydra.sweep.dir=mine"]
    assert main([*words, "hydra.sweep.subdir=one", "optim.epsilon=0.1,0.3"]) == 1
    assert "hydra.sweep.subdir=one has no effect" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
    assert main([*words, "optim.epsilon=0.1,0.3"]) == 0
    first, second = sorted(
        (path.parent for path in tmp_path.glob("mine/*/run.json")), key=lambda f: record(f)["ball"]["epsilon"]
    )
    assert main([*words, "optim.epsilon=0.1,0.3,0.5"]) == 0
    shutil.rmtree(second)
    first.rename(second)
    table = load_sweep("mine")
    assert table.filter(job=second.name)["status"].to_list() == ["unreadable"]
    assert "of another question" in table.filter(job=second.name)["error"].item()
    capsys.readouterr()
    assert main([*words, "optim.epsilon=0.1,0.3,0.5"]) == 0
    assert "1 of 3 jobs were finished before" in capsys.readouterr().out
    assert [record(folder)["ball"]["epsilon"] for folder in (first, second)] == [0.1, 0.3]
    assert record(tmp_path / "mine" / "replaced" / f"{second.name}-1")["ball"]["epsilon"] == 0.1


def test_a_finished_run_about_other_weights_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    words = ["model=python", "model.factory=mine:sick", "data=python", "data.factory=mine:data", "solver.steps=1"]
    assert main([*words, "name=a"]) == 0
    (folder,) = folders(tmp_path)
    changed = record(folder)
    changed["hashes"]["data"] = "0" * 64
    (folder / "run.json").write_text(json.dumps(changed))
    assert main([*words, "name=a"]) == 1
    assert "contains a finished run with other data" in capsys.readouterr().err
    assert record(folder) == changed


def test_samples_that_are_not_finite_are_marked_and_reported(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    words = ["model=python", "model.factory=mine:sick", "data=python", "data.factory=mine:data"]
    assert main([*words, "solver.steps=3"]) == 0
    samples = pl.read_parquet(folders(tmp_path)[0] / "samples.parquet")
    assert samples["stopped"][3] == "not_finite"
    assert samples["clean_prediction"].is_null().to_list() == [False, False, False, True, False, False]
    assert record(folders(tmp_path)[0])["metrics"]["undecided"] == 1
    assert "not finite at the clean image: undecided" in capsys.readouterr().err


def test_user_images_in_a_flat_folder_with_predicted_labels(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (70, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "pictures" / f"{number}.png")
    words = ["data=image_folder", "data.root=pictures", "data.labels=predicted", "data.size=64"]
    assert main([*words, "solver.steps=1"]) == 0
    samples = pl.read_parquet(folders(tmp_path)[0] / "samples.parquet")
    assert samples["name"].to_list() == ["0.png", "1.png", "2.png"]
    assert (samples["label"] == samples["clean_prediction"]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim=l2_proj"], "optim=l2_proj is not an option of optim. Did you mean l2_projected"),
        (["optim/InnerOpt=adan"], "optim/InnerOpt=adan is not an option of optim/InnerOpt. Did you mean adam"),
        (["optim.lrr=1"], "optim.lrr is not an option. Did you mean optim.lr"),
        (
            ["optim=square", "optim.lr=1"],
            "optim.lr is not a setting of optim=square, which has optim.steps, optim.epsilon, ",
        ),
        (["optim.q=0.9"], "optim.q is not a setting of optim=linf_projected, which has "),
        (["optim.InnerOpt.betas=[0,0]"], "optim.InnerOpt.betas is not a setting of optim/InnerOpt=sgd, which has "),
        (["optimm=signed"], "optimm is not an option. Did you mean optim"),
        (["solverr.steps=1"], "solverr.steps is not an option. Did you mean solver"),
        (["optim=adam", "optim.InnerOpt.betas=[0,0]"], "optim=adam is not an option of optim"),
        (["optim.InnerOpt=adam"], "write it with a slash: optim/InnerOpt=adam"),
        (["experiment=nosuch"], "experiment=nosuch is not an option of experiment. There are fast, mi_fgsm"),
        (["optim.epsilon=-1"], "optim: epsilon=-1.0 must be a finite number, at least 0"),
        (["optim.epsilon=nan"], "optim: epsilon=nan must be a finite number"),
        (["experiment=standard", "~stages.sqare"], "stages.sqare is not an option. Did you mean stages.square"),
        (["stages.a=solver.steps=3"], "stages.a=solver.steps=3 cannot be read. Stages are lists of words"),
        (["optim=fmn", "optim.ball=null"], "optim.ball=null is not allowed; it must have a value."),
        (["optim.epsilon=much"], "optim.epsilon=much must be a number."),
        (["optim.lr=-0.1"], "optim: lr=-0.1 must be a finite number, at least 0"),
        (["optim.lr=inf"], "optim: lr=inf must be a finite number"),
        (["solver.steps=-1"], "solver.steps=-1 must be an integer, at least 0"),
        (["solver.steps=1.5"], "solver.steps=1.5 must be an integer."),
        (["optim.param_ndim=7"], "optim: param_ndim=7 is out of range"),
        (["optim.param_ndim=None"], "optim.param_ndim=None must be an integer. Did you mean null?"),
        (["batch_size=0"], "batch_size=0 must be an integer, at least 1"),
        (["threads=0"], "threads=0 must be an integer, at least 1"),
        (["threads=100000"], "threads=100000 must be an integer, at least 1, at most 1024"),
        (['solver.target="\x1b[31mx"'], r"solver.target='\x1b[31mx' must be one of"),
        (["save=some"], "save='some' must be one of 'fooled', 'all', 'none'"),
        (["device=cuda:99"], "device=cuda:99 does not exist"),
        (["device=gpu"], "device='gpu' must be one of 'auto', 'cpu', 'cuda', 'mps'"),
        (["data.split=val"], "'val'"),
        (["data.limit=0"], "data.limit=0 must be an integer, at least 1"),
        (["data.indices=[3,3]"], "data.indices contains 3 twice"),
        (["data.indices=[500]"], "data.indices contains 500, but the data set has 500 samples"),
        (["model=torchvision"], "model.name must be given"),
        (["model=torchvision", "model.name=resnet81", "model.weights=DEFAULT"], "resnet18"),
        (["data=image_folder", "data.root=nowhere"], "nowhere"),
        (["solver.target=[]"], "solver.target=[] names none: a class, next"),
        (["solver.num_targets=2"], "solver.num_targets=2 needs one rule that orders the classes: solver.target=next"),
        (["schedule=cosine", "optim=apgd"], "schedule: apgd sets its own step size: take schedule=auto"),
        (["solver.targeted=true", "solver.target=12"], "solver.target=12 must be an integer, at least 0, at most 9"),
        (
            ["solver.targeted=true"],
            "solver.targeted=true needs solver.target=...: a class, next, least_likely, likely, malt or a list of",
        ),
        (["solver.targeted=true", "solver.target=[next,foo]"], "solver.target='foo' must be one of 'next'"),
        (["solver.stop=allways"], "solver.stop='allways' must be one of 'fooled', 'never'"),
        (["solver.restarts=0"], "solver.restarts=0 must be an integer, at least 1"),
        (["solver.restarts=2", "perturbation=universal"], "solver.restarts=2 needs samples that are independent"),
        (["solver.epsilons=[0.2,0.1]"], "solver.epsilons=[0.2, 0.1] must increase: [0.1, 0.2]"),
        (["solver.epsilons=[0.1,0.1]"], "solver.epsilons=[0.1, 0.1] must increase: [0.1]"),
        (["solver.epsilons=0.1"], "solver.epsilons=0.1 must be a list, as in [1,2]."),
        (["solver.epsilons=[]"], "solver.epsilons=[] must be a list of radii"),
        (["solver.epsilons=[0.1,much]"], "solver.epsilons[1]=much must be a number."),
        (["solver.epsilons=[0.1,0.2]", "optim.param_ndim=null"], "epsilon"),
        (["solver.epsilons=[0.1,0.2]", "optim=signed", "optim.ball=null"], "solver.epsilons needs an optimizer with a"),
        (["solver.max_passes=2"], "solver.max_passes=2 must be at least 3"),
        (["solver.max_passes=5", "solver.restarts=2"], "solver.max_passes=5 must be at least 6"),
        (["solver.max_passes=1.5"], "solver.max_passes=1.5 must be an integer."),
        (
            ["solver.quantize=true", "perturbation=patch"],
            "solver.quantize=true needs an additive",
        ),
        (["solver.quantize=maybe"], "solver.quantize=maybe must be true or false."),
        (["solver.best_by=size"], "solver.best_by='size' must be one of null, 'loss', 'norm'"),
        (
            ["solver.best_by=norm", "solver.use_best=false"],
            "solver.best_by=norm has no effect with solver.use_best=false, which keeps the last",
        ),
        (["model.precision=half"], "model.precision='half' must be one of 'float32', 'bfloat16', 'float16'"),
        (["model.precision=float16", "device=cpu"], "model.precision=float16 needs CUDA, not cpu; bfloat16 works"),
        (["model.channels_last=maybe"], "model.channels_last=maybe must be true or false."),
        (["model.fold=1.5"], "model.fold=1.5 must be true or false."),
        (["name=../up"], "name='../up' must be letters"),
        (["outputs="], "outputs='' must name a folder"),
        (["outputs=null"], "outputs"),
        (["lr=0.1"], "lr is not an option. Did you mean optim.lr?"),
        (["optim.InnerOpt.lr=0.1"], "optim.InnerOpt.lr is not an option. Did you mean optim.lr?"),
        (["data.indices=3"], "data.indices=3 must be a list like [3,1,7]"),
        (
            ["optim/InnerOpt=adam", "optim.InnerOpt.betas=[0.9]"],
            "optim.InnerOpt.betas=[0.9] must be a list of 2 numbers, as in optim.InnerOpt.betas=[0.9,0.999]",
        ),
        (["optim=signed", "optim.ball=l3"], "optim: ball='l3' must be one of 'linf', 'l2', 'l1', 'l0', 'null'"),
        (["optim=linf_frank_wolfe", "optim/InnerOpt=adam"], "optim=linf_frank_wolfe has no inner optimizer"),
        (["optim=chain", "optim.members=[sined]"], "optim: members='sined' must be one of"),
        (["optim=chain", "optim.members=[{top_q:{qq:1}}]"], "qq is not a setting of top_q. Did you mean"),
        (["optim=chain", "optim.members=signed"], "optim: members='signed' must be a list, as in optim.members=["),
        (["perturbation=patch", "perturbation.size=65"], "perturbation: size=65 must be an integer, at least 1, at"),
        (["perturbation=patch", "perturbation.place=left"], "perturbation: place='left' must be one of 'random'"),
        (["perturbation=patch", "perturbation.place=[49,0]"], "but the patch lies within the image only from (0, 0)"),
        (["perturbation=masked"], "perturbation.region must be given"),
        (
            ["perturbation=masked", "perturbation.region=[0,0,65,1]"],
            "perturbation: region=[0, 0, 65, 1] must lie within",
        ),
        (["perturbation=affine", "perturbation.scale=1"], "perturbation: scale=1.0 must be below 1"),
        (
            ["perturbation=affine", "optim.param_ndim=3"],
            "optim: param_ndim=3 is out of range for a tensor of shape (2, 4)",
        ),
        (
            ["perturbation=affine", "optim=l0_projected", "optim.pixels=true"],
            "optim: pixels=true needs data (C, H, W), but with param_ndim=-1",
        ),
        (["perturbation=python", "perturbation.factory=math:sqrt"], "perturbation: "),
        (["optim=chain", "optim.members=[3]"], "members: 3 must be a name or one {name: {setting: value}}"),
        (["optim=chain", "optim.members=null"], "members=null must be a list, as in optim.members=[l1_normed,"),
        (["optim=signed", "optim.ball=l0"], "epsilon=0.1 must be a finite number, at least 1. In an L0 ball it is a"),
        (["stages=[a,b]"], "stages=[a,b]: stages are a mapping of names to lists of words, as in stages={first:["),
        (["stages={inf:[solver.steps=3]}"], "lists of words, as in stages={first:[solver.steps=10]}. inf, nan, null,"),
        (["stages=3"], "stages=3: stages are a mapping of names to lists of words"),
        (["stages.ce=3"], "stages.ce=3: stages are a mapping of names to lists of words"),
        (
            ["criterion=targeted_dlr"],
            "criterion: targeted_dlr needs a target: solver.target=likely, malt or next; without",
        ),
        (
            ["criterion=kl", "solver.targeted=true", "solver.target=next"],
            "criterion: kl has no target to move towards: leave out solver.target=..., or take",
        ),
        (["init=gaussian", "init.std=-1"], "init: std=-1.0 must be a finite number, at least 0"),
        (["solver.target=foo"], "'next', 'least_likely', 'likely', 'malt', 'the number of a class'"),
        (["model=python", "model.factory=math:sqrt"], "model.factory='math:sqrt' raised TypeError"),
        (["model=python", "model.factory=math:sqrt", "model.kwargs={mode:nan}"], "model.factory='math:sqrt' raised"),
        (["outputs=file/inside"], "file/inside"),
        (["+surplus=1"], "+surplus has no effect"),
        (["~optim.lr"], "optim.lr cannot be removed."),
        (["-m", "optim=fmn", "optim.ball=l2,null"], "optim.ball=null is not allowed; it must have a value."),
        (["perturbation=masked", "perturbation.region=3"], "perturbation.region=3 must be a list, as in [1,2]."),
        (["model=python", "model.factory=math:sqrt", "model.kwargs=3"], "model.kwargs=3 must be a mapping"),
        (["solver.best_by=[a]"], "solver.best_by=[a] must be a text."),
        (["-m", "hydra.launcher.n_jobs=x"], "hydra.launcher.n_jobs=x must be an integer."),
        (["stages={a:[optim/InnerOpt=adam,optim.InnerOpt.betas=3]}"], "stages.a: optim.InnerOpt.betas=3: it must be a"),
        (["~optim"], "~optim removes what every job needs"),
        (["lsit"], "Did you mean 'raiopt list'"),
        (["list", "optima"], "GROUP='optima' must be one of"),
        (["--config-dir", ".", "list", "optim"], "The verb comes first, before flags and options: raiopt list"),
        (["-m", "optim.lr=glob(*)"], "The sweep has no jobs"),
        (["-m", "optim.lr=0.1,abc"], "optim.lr=abc must be a number."),
        (["optim.lr=[unclosed"], "optim.lr=[unclosed cannot be read"),
    ],
)
def test_bad_input_is_one_message_before_any_work(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.setattr("raiopt.attacks.Engine.run", lambda *_: pytest.fail("attacked"))
    (tmp_path / "file").write_text("in the way")
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("raiopt: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert "Traceback" not in captured.err + captured.out
    assert not list(tmp_path.glob("outputs/**/samples.parquet"))
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_error_in_a_user_model_names_the_file_with_its_traceback(tmp_path, capsys):
    (tmp_path / "broken.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(7, 3)\n")
    assert main(["model=python", "model.factory=broken:net", "solver.steps=1"]) == 1
    (folder,) = folders(tmp_path)
    assert f"The traceback is in {folder / 'run.log'}." in capsys.readouterr().err
    assert "Traceback" in (folder / "run.log").read_text()
    assert record(folder)["status"] == "failed"


def test_the_full_traceback_is_printed_on_request(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="epsilon=-1"):
        main(["optim.epsilon=-1"])
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_ctrl_c_is_reported_and_recorded(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("raiopt.experiment.load", interrupted)
    assert main(SMALL) == 130
    assert "interrupted" in capsys.readouterr().err
    assert record(folders(tmp_path)[0])["status"] == "killed"


def test_ctrl_c_in_a_sweep_leaves_the_table_so_far(tmp_path, monkeypatch, capsys):
    from raiopt import experiment

    real, calls = experiment.load, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr("raiopt.experiment.load", interrupted)
    words = ["-m", "hydra/launcher=basic", "optim.lr=0.1,0.2,0.3", "data.limit=2", "solver.steps=0"]
    assert main(words) == 130
    table = next(tmp_path.glob("outputs/*/*/sweep.parquet"))
    assert pl.read_parquet(table)["status"].to_list() == ["finished", "killed", "missing"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("raiopt: interrupted; what was finished is kept. Go on with: raiopt -m ")
    assert main(shlex.split(last.partition(": raiopt ")[2])) == 0  # as jobs of the same folder
    assert pl.read_parquet(table)["status"].to_list() == ["finished"] * 3
    assert len(calls) == 4


def test_help_lists_groups_and_settings(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "optim/InnerOpt: sgd, adam, adamw, rmsprop" in out
    assert "  optim.lr=0.1\n" in out
    assert "  optim/InnerOpt=sgd\n" in out


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("optim", ["l2_projected", "epsilon=1.5"]),
        ("model", ["digits_standard", "resnet50"]),
        ("data", ["image_folder", "CIFAR10"]),
        ("experiment", ["step_size_grid", "A sweep of 12 jobs"]),
        ("perturbation", ["place=random", "optim.lr=0.2", "region=required"]),
    ],
)
def test_list_prints_the_available_options(capsys, group, words):
    assert main(["list", group]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(word in out for word in words)


def test_list_alone_lists_every_group(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(f"{option}=" in out for option in ("criterion", "data", "init", "model", "optim", "solver"))


@pytest.mark.parametrize(("typed", "expected"), [("optim/InnerOpt=", "optim/InnerOpt=adam"), ("optim.", "optim.lr=")])
def test_tab_completion_knows_groups_and_settings(typed, expected):
    environment = {**os.environ, "COMP_LINE": f"raiopt {typed}", "COMP_POINT": str(len(typed) + 7)}
    done = subprocess.run(
        [sys.executable, "-m", "raiopt", "-sc", "query=bash"], env=environment, capture_output=True, text=True
    )
    assert expected in done.stdout.split()


def test_a_search_without_gradients_is_reported(tmp_path, capsys):
    (tmp_path / "flat.py").write_text(
        "import torch\nfrom torch import nn\nclass Flat(nn.Module):\n    def forward(self, x):\n"
        "        zero = 0 * x.mean((1, 2, 3))\n        return torch.stack([zero, zero + 1] + 8 * [zero], 1)\n"
    )
    assert main(["model=python", "model.factory=flat:Flat", "data.limit=40", "solver.steps=2"]) == 0
    attacked = record(folders(tmp_path)[0])["metrics"]["attacked"]
    assert f"The gradient was zero at every step for {attacked} of {attacked} samples" in capsys.readouterr().err
    assert attacked > 0
    assert main(SMALL) == 0
    assert "gradient was zero" not in capsys.readouterr().err


def test_published_weights_are_taken_from_the_cache(tmp_path, monkeypatch):
    """A file under the published name, that raiopt must load without a network, warning that it is another one."""
    from raiopt.zoo import vision

    weights = vision.models.SqueezeNet1_1_Weights.DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network"))
    cached = tmp_path / "torch" / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save(vision.models.squeezenet1_1().state_dict(), cached)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (80, 60), "teal").save(tmp_path / "pictures" / "a.png")
    words = ["model=torchvision", "model.name=squeezenet1_1", "model.weights=DEFAULT", "data=image_folder"]
    with pytest.warns(UserWarning, match="is not the published file"):
        assert main([*words, "data.root=pictures", "data.labels=predicted", "solver.steps=1"]) == 0
    found = record(folders(tmp_path)[0])
    assert (found["model"]["preset"], found["model"]["classes"]) == ("SqueezeNet1_1_Weights.IMAGENET1K_V1", 1000)


def test_a_chain_is_described_by_its_members(capsys):
    assert main(["experiment=mi_fgsm", *SMALL]) == 0
    assert "chain of l1_normed, momentum, signed with sgd, 2 steps, Linf 0.1" in capsys.readouterr().out
