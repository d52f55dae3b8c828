"""Runs loaded from folders of a job, of a sweep, of a day; damaged files."""

import json
import os

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from raiopt.reports.runs import differing_options, labels, load_run, load_runs
from tests.results.sweeps import list_jobs, make


def names(runs):
    return [run.folder.name for run in runs]


def test_a_day_holds_runs_and_sweeps(tmp_path):
    day = tmp_path / "2026-01-01"
    make(day, "10-00-00", 0.5)
    make(day, "12-00-00", 0.4)
    sweep = day / "11-00-00"
    for name in "ab":
        make(sweep, name, 0.3)
    list_jobs(sweep, {"b": {}, "a": {}, "c": {}})
    assert sorted(names(load_runs([tmp_path]))) == ["10-00-00", "12-00-00", "a", "b", "c"]
    found = load_runs([sweep, sweep / "a"])
    assert names(found) == ["b", "a", "c"]  # each once, as they were numbered
    assert [run.sweep for run in found] == [sweep] * 3
    assert [run.job.status for run in found] == ["finished", "finished", "missing"]


def test_replaced_runs_are_not_listed(tmp_path):
    make(tmp_path, "a", 0.5)
    make(tmp_path / "replaced", "a-1", 0.9)
    assert names(load_runs([tmp_path])) == ["a"]


def test_shards_are_one_run_with_all_samples(tmp_path):
    for shard in range(2):
        given = {"data.shard": shard, "data.num_shards": 2}
        folder = make(tmp_path, f"s{shard}", 0.5, number=shard, overrides=given)
        pl.DataFrame({"id": [shard]}).write_parquet(folder / "samples.parquet")
    (run,) = load_runs([tmp_path])
    assert run.parts == (tmp_path / "s0", tmp_path / "s1")
    assert run.samples().collect()["id"].to_list() == [0, 1]


def test_labels_show_differing_options_and_are_unique(tmp_path):
    for number, lr in enumerate([0.1, 0.1, 0.5]):
        given = {"optim.lr": lr, "optim.epsilon": 1.0, "note": str(number)}
        make(tmp_path, f"j{number}", 0.5, number=number, overrides=given)
    runs = load_runs([tmp_path])
    assert differing_options(runs) == ["optim.lr"]
    assert labels(runs) == ["lr=0.1 (j0)", "lr=0.1 (j1)", "lr=0.5"]
    assert labels(runs[:1]) == ["j0"]
    models = [make(tmp_path / m, "j", 0.5, choices={"model": m, "optim": "signed"}) for m in ("digits", "other")]
    assert labels(load_runs(models)) == ["digits", "other"]


@pytest.mark.parametrize("table", ["samples", "trace"])
def test_a_damaged_table_is_named(tmp_path, table):
    run = load_run(make(tmp_path, "a", 0.5))
    with pytest.raises(ValueError, match=f"{table}.parquet does not exist"):
        getattr(run, table)()
    (run.folder / f"{table}.parquet").write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(ValueError, match=f"{table}.parquet cannot be read"):
        getattr(run, table)()


@pytest.mark.parametrize("name", ["samples.parquet", "trace.parquet", "exhibits.safetensors"])
def test_a_pipe_in_place_of_a_table_is_not_waited_for(tmp_path, name):
    run = load_run(make(tmp_path, "a", 0.5))
    os.mkfifo(run.folder / name)
    with pytest.raises(ValueError, match="no regular file"):
        getattr(run, name.partition(".")[0])()


def test_exhibits_and_classes_are_optional(tmp_path):
    run = load_run(make(tmp_path, "a", 0.5))
    assert (run.exhibits(), run.class_names) == ({}, None)
    save_file({"ids": np.arange(3)}, run.folder / "exhibits.safetensors")
    (run.folder / "classes.json").write_text(json.dumps(["cat", 7]))
    assert run.exhibits()["ids"].tolist() == [0, 1, 2]
    assert run.class_names == ["cat", "7"]
    (run.folder / "exhibits.safetensors").write_bytes(b"no")
    (run.folder / "classes.json").write_text("{")
    with pytest.raises(ValueError, match=r"exhibits\.safetensors cannot be read"):
        run.exhibits()
    assert run.class_names is None


def test_control_characters_of_a_record_are_escaped(tmp_path):
    folder = make(tmp_path, "a", 0.5, note="\x1b[2J\x9b1m", overrides={"\x07name": ["a\nb", "\x07"]})
    content = json.loads((folder / "run.json").read_text()) | {"note": "\x1b[2J\x9b1m"}
    (folder / "run.json").write_text(json.dumps(content | {"overrides": {"\x07name": ["a\nb", "é"]}}))
    record = load_run(folder).record
    assert record.note == "\\x1b[2J\\x9b1m"
    assert record.overrides == {"\\x07name": ["a\nb", "é"]}


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        load_runs([tmp_path / "missing"])
    with pytest.raises(ValueError, match="contains no runs"):
        load_runs([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        load_run(tmp_path)
