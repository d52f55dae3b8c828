"""run.json: what it says at each moment, and what survives."""

import json

import pytest

from raiopt.results.folder import SCHEMA, RunFolder, read_record


def on_disk(folder):
    return json.loads((folder.path / "run.json").read_text())


def test_running_then_finished(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.recording({"seed": 3}):
        assert on_disk(folder)["status"] == "running"
        assert folder.finished_record() is None
        folder.save(metrics={"robust_accuracy": 0.5})
    record = on_disk(folder)
    assert record == folder.finished_record()
    assert (record["status"], record["schema"], record["seed"]) == ("finished", SCHEMA, 3)
    assert record["versions"]["torch"]
    assert record["seconds"] >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("error", [ValueError("no such thing"), KeyboardInterrupt()])
def test_an_error_is_recorded_and_goes_on(tmp_path, error):
    folder = RunFolder(tmp_path)
    with pytest.raises(type(error)), folder.recording({}):
        raise error
    record = on_disk(folder)
    assert record["status"] == ("failed" if isinstance(error, ValueError) else "killed")
    assert record["error"] == {"type": type(error).__name__, "message": str(error) or "interrupted"}
    assert folder.finished_record() is None


def test_a_record_that_cannot_be_written_leaves_the_last_one(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save(status="running")
    with pytest.raises(ValueError, match="JSON"):
        folder.save(loss=float("nan"))
    assert on_disk(folder) == {"status": "running"}


@pytest.mark.parametrize("content", ["", '{"status": "fin', "[1]", "\xff"])
def test_what_is_no_record_reads_as_empty(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    assert read_record(tmp_path) == {}
    assert read_record(tmp_path / "nothing") == {}


def test_a_finished_run_of_another_schema_is_not_ours(tmp_path):
    RunFolder(tmp_path).save(status="finished", schema=SCHEMA + 1)
    assert RunFolder(tmp_path).finished_record() is None
