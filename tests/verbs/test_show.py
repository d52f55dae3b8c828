"""What the terminal shows of a run and of its samples, compared with the files of real runs."""

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

from raiopt import zoo
from raiopt.cli import main
from tests.results.sweeps import list_jobs, make

STYLES = re.compile("\x1b\\[[0-9;]*m")
CELL = re.compile("\x1b\\[38;2;(\\d+);(\\d+);(\\d+);48;2;(\\d+);(\\d+);(\\d+)m\u2580")
QUESTION = ["data.limit=40", "solver.steps=4", "optim.epsilon=0.2", "optim.lr=0.1", "threads=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that stored what broke, and one that stored all."""
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


def left_out(folder):
    """Whether each sample is kept to be shown."""
    return ~pl.col("id").is_in(load_file(folder / "exhibits.safetensors")["ids"].tolist())


def test_a_run_is_told_on_a_screen(runs, shown):
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
    told = ", ".join(f"{label} ({100 * np.mean(robust[label]):.1f} % of {len(robust[label])})" for label in order)
    assert f"least robust classes: {told}\n" in shown(runs["all"])


@pytest.mark.parametrize("verified", [True, False])
def test_a_sample_is_told_as_the_table_has_it(runs, shown, verified):
    row = table(runs["all"]).filter(pl.col("verified") == verified).row(0, named=True)
    text = " ".join(shown(runs["all"], "--sample", row["id"]).split())
    told = [
        f"sample {row['id']}, {row['name']} label {row['label']} ",
        f"clean prediction {row['clean_prediction']}, sure by {100 * row['clean_confidence']:.1f} %",
        f"under attack {row['adversarial_prediction']}, sure by {100 * row['adversarial_confidence']:.1f} %",
        f"verdict {'broken, verified' if verified else 'not broken'} ",
        f"Linf {row['linf']:.4g}, L2 {row['l2']:.4g}, L1 {row['l1']:,.4g}, L0 {row['l0']:,}",
        f"stopped {row['stopped']}, after {row['steps']} steps",
        f"passes {row['forward_passes']} forward, {row['backward_passes']} backward",
        "A terminal with colours would show it.",
    ]
    for part in told:
        assert part in text
    assert "\u2580" not in text


def test_losses_of_two_stages_do_not_stand_beside_each_other(shown, tmp_path):
    stages = "stages={first:[],second:[criterion=margin]}"
    assert main([*QUESTION[1:], "data.limit=10", stages, f"outputs={tmp_path}", "name=staged"]) == 0
    folder = next((tmp_path / "staged").iterdir())
    assert set(table(folder)["stage"].drop_nulls()) == {"first", "second"}
    for row in table(folder).drop_nulls("stage").iter_rows(named=True):
        text = " ".join(shown(folder, "--sample", row["id"]).split())
        assert f"stage {row['stage']} " in text
        before = f"{row['clean_loss']:.4g}, " if row["stage"] == "first" else ""
        assert f" loss {before}under attack {row['adversarial_loss']:.4g} " in text


def test_an_older_table_without_confidences_is_told_too(runs, shown, tmp_path):
    shutil.copytree(runs["all"], tmp_path / "old")
    older = table(runs["all"]).drop(pl.selectors.ends_with("confidence"))
    older.write_parquet(tmp_path / "old" / "samples.parquet")
    text = shown(tmp_path / "old", "--sample", 0)
    assert "clean prediction" in text
    assert "sure by" not in text


def drawn(text, height):
    """The three pictures, uint8 (3, H, W, 3), of a terminal that is wide enough for their pixels."""
    lines = [line for line in text.splitlines() if "\u2580" in line]
    assert len(lines) == height // 2
    cells = np.array([[list(map(int, cell)) for cell in CELL.findall(line)] for line in lines], dtype=np.uint8)
    rows = cells.reshape(len(lines), -1, 2, 3).transpose(0, 2, 1, 3).reshape(height, -1, 3)
    return np.stack(np.split(rows, 3, axis=1))


def expected(image, delta):
    """What shall be drawn of an image and a perturbation, float64 (C, H, W)."""
    parts = [image, 0.5 + delta / np.abs(delta).max() / 2, image + delta]
    return np.stack([np.moveaxis(part.clip(0, 1) * 255, 0, 2) for part in parts])


def test_a_kept_sample_is_drawn_pixel_by_pixel(runs, shown):
    kept = load_file(runs["fooled"] / "exhibits.safetensors")
    for row in (0, len(kept["ids"]) - 1):
        text = shown(runs["fooled"], "--sample", kept["ids"][row], columns=200)
        wanted = expected(kept["image"][row].astype(np.float64) / 255, kept["delta"][row].astype(np.float64))
        assert np.abs(drawn(text, 64) - wanted).max() <= 0.51
        assert f"\u00b1{np.abs(kept['delta'][row].astype(np.float64)).max():.3g}" in text


def test_any_other_sample_is_drawn_from_the_data(runs, shown):
    number = table(runs["fooled"]).filter(left_out(runs["fooled"]) & pl.col("verified"))["id"][0]
    stored = load_file(runs["fooled"] / "perturbations.safetensors")
    delta = stored["delta"][stored["ids"].tolist().index(number)].astype(np.float64)
    image = zoo.digits().image(number).numpy().astype(np.float64)
    text = shown(runs["fooled"], "--sample", number, columns=200)
    assert np.abs(drawn(text, 64) - expected(image, delta)).max() <= 0.51


def test_a_chunk_is_found_as_a_single_file_is(runs, shown, tmp_path):
    folder = tmp_path / "chunked"
    shutil.copytree(runs["fooled"], folder)
    (folder / "perturbations").mkdir()
    shutil.move(folder / "perturbations.safetensors", folder / "perturbations" / "000000.safetensors")
    number = table(folder).filter(left_out(folder) & pl.col("verified"))["id"][-1]
    assert shown(folder, "--sample", number, columns=200) == shown(runs["fooled"], "--sample", number, columns=200)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_picture_fits_the_terminal(runs, shown, columns):
    number = load_file(runs["all"] / "exhibits.safetensors")["ids"][0]
    lines = [STYLES.sub("", line) for line in shown(runs["all"], "--sample", number, columns=columns).splitlines()]
    assert max(map(len, lines)) <= columns
    assert max(line.count("\u2580") for line in lines) == 3 * ((columns - 4) // 3)


def test_what_was_not_stored_is_not_drawn(runs, shown):
    number = table(runs["fooled"]).filter(left_out(runs["fooled"]) & ~pl.col("verified"))["id"][0]
    text = shown(runs["fooled"], "--sample", number, columns=120)
    assert "not broken" in text
    assert "No picture: the run did not store what was added" in text
    assert "save=all" in text


def test_a_config_that_is_not_plainly_ours_is_not_run(runs, shown, tmp_path):
    folder = tmp_path / "strange"
    shutil.copytree(runs["fooled"], folder)
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("raiopt.builders.zoo.digits_robust", "os.getcwd"))
    number = table(folder).filter(left_out(folder) & pl.col("verified"))["id"][0]
    text = shown(folder, "--sample", number, columns=200)
    assert "broken, verified" in text
    assert "No picture:" in text
    assert "os.getcwd" in text


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
    assert shown(runs["all"], "--sample", 40, status=1).endswith("they are 0 to 39.\n")


def test_a_sweep_is_its_table(tmp_path, shown):
    list_jobs(tmp_path, {"a": {"optim.lr": 0.1}, "b": {"optim.lr": 0.2}})
    make(tmp_path, "a", 0.5)
    text = shown(tmp_path)
    assert "2 jobs in" in text
    assert "50.0 %" in text
    assert "--sample needs the folder of one" in shown(tmp_path, "--sample", 1, status=1)


def test_what_did_not_finish_says_why_and_how_it_was_asked(tmp_path, shown):
    folder = make(tmp_path, "job", status="failed", command=["raiopt", "optim.lr=-1"])
    text = shown(folder)
    assert "failed: lr=-1 must be [0, inf)" in text
    assert text.splitlines()[-1] == "raiopt optim.lr=-1"


def test_a_folder_of_neither_is_an_error(tmp_path, shown):
    assert "is the folder of no run and of no sweep" in shown(tmp_path, status=1)
    assert "is not there" in shown(tmp_path / "none", status=1)


def test_only_a_clean_image_from_the_data_needs_torch(runs):
    number = load_file(runs["all"] / "exhibits.safetensors")["ids"][0]
    code = (
        "import sys; from raiopt.cli import main\n"
        f"for more in ([], ['--sample', '{number}']): assert main(['show', {str(runs['all'])!r}, *more]) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    environment = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert "\u2580" in done.stdout
