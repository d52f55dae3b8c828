"""run.json: its content at each stage of a run, and after errors."""

import json

import pytest

from raiopt.results.folder import RunFolder
from raiopt.results.lock import locked
from raiopt.results.record import SCHEMA, Metrics
from raiopt.results.record_reader import read_record


def on_disk(folder):
    return json.loads((folder.path / "run.json").read_text())


def test_running_then_finished(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.recording({"seed": 3}):
        assert on_disk(folder)["status"] == "running"
        assert folder.finished_record(None) is None
        folder.save(metrics=Metrics(robust_accuracy=0.5))
    record = on_disk(folder)
    assert record == folder.finished_record(None).as_json()
    assert (record["status"], record["schema"], record["seed"]) == ("finished", SCHEMA, 3)
    assert record["versions"]["torch"]
    assert record["seconds"] >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("error", [ValueError("no such thing"), KeyboardInterrupt()])
def test_an_error_is_recorded_and_raised(tmp_path, error):
    folder = RunFolder(tmp_path)
    with pytest.raises(type(error)), folder.recording({}):
        raise error
    record = on_disk(folder)
    assert record["status"] == ("failed" if isinstance(error, ValueError) else "killed")
    assert record["error"] == {"type": type(error).__name__, "message": str(error) or "interrupted"}
    assert folder.finished_record(None) is None


def test_a_record_that_cannot_be_written_keeps_the_previous_one(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save(status="running")
    with pytest.raises(ValueError, match="JSON"):
        folder.save(seconds=float("nan"))
    assert on_disk(folder)["seconds"] is None


@pytest.mark.parametrize("content", ["", '{"status": "fin', "[1]", "\xff"])
def test_invalid_records_read_as_none(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "nothing") is None


def test_a_finished_run_of_another_schema_is_not_reused(tmp_path):
    RunFolder(tmp_path).save(status="finished", schema=SCHEMA + 1)
    assert RunFolder(tmp_path).finished_record(None) is None


def test_results_of_other_options_are_never_reused(tmp_path):
    folder, batches = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run" / "chunks")
    folder.path.mkdir()
    folder.save(status="failed", schema=SCHEMA, job_key="a", command=["raiopt", "note=b c"])
    assert folder.finished_record("b") is None  # a failed run may be overwritten
    folder.save(status="finished")
    assert folder.finished_record("a").as_json() == on_disk(folder)
    with pytest.raises(FileExistsError, match=r"another question: raiopt 'note=b c'\. Nothing was overwritten"):
        folder.finished_record("b")
    batches.path.mkdir()
    batches.save(schema=SCHEMA, job_key="a")
    folder.save(status="killed")
    assert folder.finished_record("a") is None
    with pytest.raises(FileExistsError, match="another question"):
        folder.finished_record("b")


def test_a_folder_that_is_in_use_stays_where_it_is(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    (folder.path / "deeper").mkdir(parents=True)
    folder.save(status="finished", schema=SCHEMA)
    monkeypatch.chdir(folder / "deeper")
    with pytest.raises(ValueError, match="holds the working directory"):
        folder.set_aside()
    monkeypatch.chdir(tmp_path)
    with locked(folder.path), pytest.raises(FileExistsError, match="in use"):
        RunFolder(folder.path).set_aside()
    assert folder.set_aside() == tmp_path / "replaced" / "run-1"


def test_a_recording_that_is_abandoned_is_killed(tmp_path):
    folder = RunFolder(tmp_path)
    recording = folder.recording({})
    recording.__enter__()
    del recording  # as when Ctrl-C arrives while the context is left
    assert (folder.record.status, folder.record.error.message) == ("killed", "interrupted")
