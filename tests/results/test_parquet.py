"""Runs in folders named like glob patterns, next to a folder with other rows that the pattern matches."""

import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import raiopt
from raiopt.cli import main
from raiopt.reports.runs import labels
from raiopt.results.parquet import scan_parquet
from raiopt.results.perturbation_store import PerturbationStore
from raiopt.results.tables import save_sweep
from raiopt.results.tracked import tracked

BESIDE = {"v[1]": "v1", "a*b": "axb", "q?": "qq", "{x}": "x", "~": "home", "**": "deep", "[!a]": "b", "k=1": "k"}
RUN = ["data.limit=8", "solver.steps=2", "threads=1", "batch_size=4", "save=all", "optim.epsilon=0.3"]
SWEEP = ["-m", "hydra/launcher=basic", "name=s", "data.num_shards=2", "data.shard=0,1"]
READS = re.compile(r"\b(pl|polars)\.(scan|read)_\w+\(")


def emptied(folder: Path) -> None:
    """Leaves one row in each table below a folder, of another name."""
    for file in folder.rglob("*.parquet"):
        table = pl.read_parquet(file, glob=False).head(1)
        table = table.with_columns(name=pl.lit("WRONG")) if "name" in table.columns else table
        table.write_parquet(file)


@pytest.mark.parametrize("name", BESIDE)
def test_a_path_is_not_a_glob_pattern(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / BESIDE["~"]))
    for number, folder in enumerate((name, BESIDE[name])):
        Path(folder).mkdir()
        pl.DataFrame({"row": [number]}).write_parquet(tmp_path / folder / "t.parquet")
    file = Path(name, "t.parquet")
    assert scan_parquet(file).collect()["row"].to_list() == [0]
    assert scan_parquet([file, Path(BESIDE[name], "t.parquet"), file]).collect()["row"].to_list() == [0, 1, 0]
    assert scan_parquet(file).collect_schema() == {"row": pl.Int64}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A folder of a usual name in which a job and a sweep ran."""
    root = tmp_path_factory.mktemp("usual")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main([*RUN, "name=r"]) == 0
        assert main([*RUN, *SWEEP]) == 0
    return root


@pytest.mark.parametrize("name", ["v[1]", "a*b", "q?", "{x}"])
def test_everything_works_in_any_folder(tmp_path, monkeypatch, capsys, usual, name):
    emptied(shutil.copytree(usual, tmp_path / BESIDE[name]))
    here = tmp_path / name
    here.mkdir()
    monkeypatch.chdir(here)
    assert main([*RUN, "name=r"]) == 0
    assert main([*RUN, *SWEEP]) == 0
    (run,) = (path.parent for path in Path("outputs/r").glob("*/run.json"))
    shards = sorted(path.parent for path in Path("outputs/s").glob("*/run.json"))
    assert (tmp_path / BESIDE[name] / run).is_dir()

    expected = scan_parquet(usual / run / "samples.parquet").collect()
    assert expected["id"].to_list() == list(range(8))
    for samples in (raiopt.load_samples(run), raiopt.load_samples(here / run), raiopt.load_run(run).samples()):
        assert_frame_equal(samples.collect(), expected)
    loaded = raiopt.load_runs([here / "outputs"])
    assert [len(each.samples().collect()) for each in loaded] == [8, 8]
    assert len(set(labels(loaded))) == 2
    assert_frame_equal(loaded[0].trace(), pl.read_parquet(usual / run / "trace.parquet"))
    assert len(tracked(run).curves) == len(tracked(usual / run).curves) > 0
    assert list(PerturbationStore(run).rows) == list(range(8))
    assert raiopt.load_samples(shards[1]).collect()["id"].to_list() == list(range(8))
    table = raiopt.load_sweep("outputs/s")
    assert table["status"].to_list() == ["finished"]
    assert table["robust_accuracy"].to_list() == raiopt.load_sweep(usual / "outputs/s")["robust_accuracy"].to_list()
    assert len(scan_parquet(here / "outputs/s/sweep.parquet").collect()) == 1
    assert raiopt.to_xarray("outputs/s").sizes == raiopt.to_xarray(usual / "outputs/s").sizes

    capsys.readouterr()
    for words in (["show", str(run)], ["show", str(run), "--sample", "7"], ["show", "outputs/s"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert said
        assert "WRONG" not in said
    assert main(["list", "runs"]) == 0
    assert "2 runs and sweeps in outputs" in capsys.readouterr().out
    assert main(["export", str(run), "--png", "png", "--all"]) == 0
    assert len(list(Path("png").glob("*.png"))) == int(expected["forward_passes"].is_not_null().sum())
    assert main(["report", str(run), "outputs/s", "--out", "page.html", "--no-figures"]) == 0
    assert "WRONG" not in Path("page.html").read_text(encoding="utf-8")


def test_a_sweep_is_saved_in_a_folder_named_like_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("~", "home"):
        Path(folder).mkdir()
    save_sweep(pl.DataFrame({"job": ["a"]}), Path("~"))
    assert sorted(path.name for path in (tmp_path / "~").iterdir()) == ["sweep.csv", "sweep.parquet"]
    assert not list((tmp_path / "home").iterdir())


def test_files_are_read_in_one_place():
    root = Path(raiopt.__file__).parent
    reading = [
        path.relative_to(root).as_posix() for path in root.rglob("*.py") if READS.search(path.read_text("utf-8"))
    ]
    assert reading == ["results/parquet.py"]
