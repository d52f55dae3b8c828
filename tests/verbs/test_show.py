"""Terminal output about a run and its samples, compared with the files of real runs."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from raiopt.cli import main
from tests.results.sweeps import list_jobs, make

QUESTION = ["data.limit=40", "solver.steps=4", "optim.epsilon=0.2", "optim.lr=0.1", "threads=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that stored the adversarial perturbations, and one that stored all."""
    root = tmp_path_factory.mktemp("runs")
    for save in ("fooled", "all"):
        assert main([*QUESTION, f"save={save}", f"outputs={root}", f"name={save}", "note='[why] not'"]) == 0
    return {save: next((root / save).iterdir()) for save in ("fooled", "all")}


@pytest.fixture
def shown(capsys, monkeypatch):
    """What `raiopt show` prints, with the colours of a terminal, or without where it is none."""

    def of(*words, columns=0, status=0):
        for name, value in {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LINES": "90"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("COLUMNS", str(columns or 80))
        monkeypatch.setenv("FORCE_COLOR", "1" if columns else "")
        assert main(["show", *map(str, words)]) == status
        captured = capsys.readouterr()
        return captured.out if status == 0 or captured.out else captured.err

    return of


def table(folder):
    return pl.read_parquet(folder / "samples.parquet")


def test_a_run_fits_on_one_screen(runs, shown):
    text = shown(runs["all"])
    record = json.loads((runs["all"] / "run.json").read_text())
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert f"robust accuracy {100 * record['metrics']['robust_accuracy']:.1f} %" in lines
    assert shlex.join(record["command"]) in lines
    assert "note: [why] not" in lines
    assert any(re.match("(GREEN|AMBER|RED): ", line) for line in lines)
    assert len(lines) < 40


def test_the_least_robust_classes_are_those_of_the_table(runs, shown):
    frame = table(runs["all"])
    robust = {}
    for label, clean, verified in frame.select("label", "clean_prediction", "verified").rows():
        robust.setdefault(label, []).append(clean == label and not verified)
    order = sorted(robust, key=lambda label: (np.mean(robust[label]), label))[:3]
    weakest = ", ".join(f"{label} ({100 * np.mean(robust[label]):.1f} % of {len(robust[label])})" for label in order)
    assert f"least robust classes: {weakest}\n" in shown(runs["all"])


@pytest.mark.parametrize("verified", [True, False])
def test_a_sample_is_shown_as_in_the_table(runs, shown, verified):
    row = table(runs["all"]).filter(pl.col("verified") == verified).row(0, named=True)
    text = " ".join(shown(runs["all"], "--sample", row["id"]).split())
    parts = [
        f"sample {row['id']}, {row['name']} label {row['label']} ",
        f"clean prediction {row['clean_prediction']}, confidence {100 * row['clean_confidence']:.1f} %",
        f"adversarial prediction {row['adversarial_prediction']}, confidence ",
        f"{100 * row['adversarial_confidence']:.1f} % verdict ",
        f"verdict {'attacked successfully' if verified else 'robust'} ",
        f"Linf {row['linf']:.4g}, L2 {row['l2']:.4g}, L1 {row['l1']:,.4g}, L0 {row['l0']:,}",
        f"stopped {row['stopped']}, after {row['steps']} step",
        f"passes {row['forward_passes']} forward, {row['backward_passes']} backward",
        f"its adversarial image as PNG: raiopt export {runs['all']} --png DIR{'' if verified else ' --all'} pictures",
        f"pictures of some samples are in {runs['all'] / 'gallery.png'}",
    ]
    for part in parts:
        assert part in text


def test_losses_of_two_stages_are_not_shown_in_one_row(shown, tmp_path):
    stages = "stages={first:[],second:[criterion=margin]}"
    assert main([*QUESTION[1:], "data.limit=10", stages, f"outputs={tmp_path}", "name=staged"]) == 0
    folder = next((tmp_path / "staged").iterdir())
    assert set(table(folder)["stage"].drop_nulls()) == {"first", "second"}
    for row in table(folder).drop_nulls("stage").iter_rows(named=True):
        text = " ".join(shown(folder, "--sample", row["id"]).split())
        assert f"stage {row['stage']} " in text
        before = f"{row['clean_loss']:.4g}, " if row["stage"] == "first" else ""
        assert f" loss {before}under attack {row['adversarial_loss']:.4g} " in text


def test_an_older_table_without_confidences_is_shown_too(runs, shown, tmp_path):
    shutil.copytree(runs["all"], tmp_path / "old")
    older = table(runs["all"]).drop(pl.selectors.ends_with("confidence"))
    older.write_parquet(tmp_path / "old" / "samples.parquet")
    text = shown(tmp_path / "old", "--sample", 0)
    assert "clean prediction" in text
    assert "confidence" not in text


def test_a_sample_without_a_stored_perturbation_says_how_to_store_it(runs, shown):
    number = table(runs["fooled"]).filter(~pl.col("verified"))["id"][0]
    text = shown(runs["fooled"], "--sample", number)
    assert "verdict robust" in " ".join(text.split())
    assert "its perturbation was not stored: save=all stores it" in text


def test_a_chunk_is_found_as_a_single_file_is(runs, shown, tmp_path):
    folder = tmp_path / "chunked"
    shutil.copytree(runs["fooled"], folder)
    (folder / "perturbations").mkdir()
    shutil.move(folder / "perturbations.safetensors", folder / "perturbations" / "000000.safetensors")
    number = table(folder).filter(pl.col("verified"))["id"][-1]
    assert f"raiopt export {folder} --png DIR" in shown(folder, "--sample", number)


def test_a_sample_that_was_not_attacked_says_why(runs, shown, tmp_path):
    folder = tmp_path / "wrong"
    shutil.copytree(runs["all"], folder)
    attacked = [
        name for name in table(folder).columns if name not in ("id", "name", "label", "clean_prediction", "stopped")
    ]
    table(folder).with_columns(pl.lit(None).alias(name) for name in attacked).with_columns(
        stopped=pl.lit("misclassified")
    ).write_parquet(folder / "samples.parquet")
    assert "attacked            no: misclassified" in shown(folder, "--sample", 0)


def test_an_unknown_sample_is_an_error_with_the_range(runs, shown):
    assert shown(runs["all"], "--sample", 40, status=1).endswith("its ids are 0 to 39.\n")


def test_a_sweep_is_its_table(tmp_path, shown):
    list_jobs(tmp_path, {"a": {"optim.lr": 0.1}, "b": {"optim.lr": 0.2}})
    make(tmp_path, "a", 0.5)
    text = shown(tmp_path)
    assert "2 jobs in" in text
    assert "50.0 %" in text
    assert "--sample needs the folder of one" in shown(tmp_path, "--sample", 1, status=1)


def test_an_unfinished_run_shows_its_reason_and_command(tmp_path, shown):
    folder = make(tmp_path, "job", status="failed", command=["raiopt", "optim.lr=-1"])
    text = shown(folder)
    assert "failed: lr=-1 must be [0, inf)" in text
    assert text.splitlines()[-1] == "raiopt optim.lr=-1"


def test_a_folder_without_run_or_sweep_is_an_error(tmp_path, shown):
    assert "contains neither a run nor a sweep" in shown(tmp_path, status=1)
    assert "does not exist" in shown(tmp_path / "none", status=1)


def test_it_needs_no_torch(runs):
    number = load_file(runs["all"] / "exhibits.safetensors")["ids"][0]
    code = (
        "import sys; from raiopt.cli import main\n"
        f"for more in ([], ['--sample', '{number}']): assert main(['show', {str(runs['all'])!r}, *more]) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
