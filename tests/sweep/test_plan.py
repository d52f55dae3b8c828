"""The remaining jobs of a sweep, according to its folders."""

import itertools
import json
from dataclasses import replace

import pytest

from raiopt.results.record import SCHEMA
from raiopt.sweep.plan import JobList, clear, plan
from raiopt.sweep.task import Task


def task(root, key, **overrides):
    about = {"job_key": key, "job_number": 0, "overrides": overrides, "options": {"optim.lr": 0.1, "new": 1}}
    return Task(key=key, folder=str(root / key), config={}, hydra={}, about=about)


def recorded(root, key, text=None, **record):
    (root / key).mkdir(parents=True)
    (root / key / "run.json").write_text(
        json.dumps({"schema": SCHEMA, "job_key": key, **record}) if text is None else text
    )
    return task(root, key)


LEFT = {"failed": set(), "none": {"failed", "killed", "running"}}


@pytest.mark.parametrize(("retry", "force"), list(itertools.product(LEFT, [False, True])))
def test_the_plan_follows_the_records(tmp_path, retry, force):
    tasks = [recorded(tmp_path, status, status=status) for status in ("finished", "failed", "killed", "running")]
    tasks += [recorded(tmp_path, "older", schema=SCHEMA - 1, status="finished"), task(tmp_path, "new")]
    tasks += [recorded(tmp_path, "half", text='{"schema": 1, "sta'), recorded(tmp_path, "list", text="[]")]
    made = plan(tasks, retry, force)
    finished = set() if force else {"finished"}
    assert {one.key for one, _ in made.finished} == finished
    assert {one.key for one, _ in made.left} == LEFT[retry]
    assert {one.key for one in made.todo} == {one.key for one in tasks} - finished - LEFT[retry]
    assert all(record.status == one.key for one, record in [*made.finished, *made.left])


def test_an_unknown_retry_is_refused(tmp_path):
    with pytest.raises(ValueError, match="retry='all' must be one of 'failed', 'none'"):
        plan([], "all")


def test_only_folders_that_a_new_run_would_overwrite_are_moved_aside(tmp_path):
    stay = [recorded(tmp_path, status, status=status) for status in ("failed", "killed", "running")]
    go = [recorded(tmp_path, "finished", status="finished"), recorded(tmp_path, "half", text="{")]
    go += [recorded(tmp_path, "older", schema=SCHEMA - 1, status="killed")]
    (tmp_path / "bare").mkdir()
    recorded(tmp_path, "since", status="finished")  # by a job that a cluster still had
    for one in [*stay, *go, task(tmp_path, "bare"), task(tmp_path, "new"), task(tmp_path, "since")]:
        clear(replace(one, config={"force": one.key == "finished"}))
    recorded(tmp_path, "half", text="{{")
    clear(go[1])
    assert {path.name for path in tmp_path.iterdir()} == {"failed", "killed", "running", "bare", "since", "replaced"}
    moved = tmp_path / "replaced"
    assert {path.name for path in moved.iterdir()} == {"finished-1", "half-1", "half-2", "older-1"}
    assert [(moved / f"half-{number}" / "run.json").read_text() for number in (1, 2)] == ["{", "{{"]


def listed(root, keys, swept, words):
    found = JobList(root)
    tasks = found.add([task(root, key, seed=key) for key in keys])
    found.save(swept, words)
    return [(one.key, one.about["job_number"]) for one in tasks]


def test_jobs_keep_their_numbers(tmp_path):
    assert listed(tmp_path, "ab", ["seed"], ["-m", "seed=1,2"]) == [("a", 0), ("b", 1)]
    assert listed(tmp_path, "cbcda", ["optim.lr", "seed"], ["-m"]) == [("c", 2), ("b", 1), ("d", 3), ("a", 0)]
    assert listed(tmp_path, "", [], ["-m", "seed=1,2"]) == []
    assert JobList(tmp_path).content == {
        "schema": SCHEMA,
        "swept": ["seed", "optim.lr"],
        "commands": [["-m"], ["-m", "seed=1,2"]],
        "jobs": {key: {"number": number, "overrides": {"seed": key}} for number, key in enumerate("abcd")},
    }


def test_a_folder_with_other_content_is_not_a_sweep(tmp_path):
    empty = {"schema": SCHEMA, "swept": [], "commands": [], "jobs": {}}
    assert JobList(tmp_path / "new").content == empty
    for name in (".lock", "sweep.json.tmp"):  # leftovers of a sweep that failed to start
        (tmp_path / name).touch()
    assert JobList(tmp_path).content == empty
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"contains something other than a sweep .*thesis.txt.*: give another name="):
        JobList(tmp_path)
    recorded(tmp_path, "job", status="finished")
    assert JobList(tmp_path).content == empty


@pytest.mark.parametrize("text", ["", '{"schema": 1, "jo', "{}", "[]", "1"])
def test_a_damaged_list_is_reported(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=r"sweep.json cannot be read .*: move it away, and repeat the command"):
        JobList(tmp_path)


def test_a_record_of_other_options_is_not_reused(tmp_path):
    tasks = [recorded(tmp_path, status, status=status, job_key="other") for status in ("finished", "failed", "killed")]
    made = plan(tasks, "none")
    assert (made.todo, made.finished, made.left) == (tasks, [], [])
    (tmp_path / "killed" / "chunks").mkdir()
    (tmp_path / "killed" / "chunks" / "run.json").write_text(
        json.dumps({"schema": SCHEMA, "status": "running", "job_key": "other"})
    )
    assert [bool(clear(one)) for one in tasks] == [False, True, False]
    assert {path.name for path in (tmp_path / "replaced").iterdir()} == {"finished-1", "killed-1"}


def test_a_finished_job_whose_defaults_changed_runs_again(tmp_path):
    same = recorded(tmp_path, "same", status="finished", options={"optim.lr": 0.1, "removed": 7})
    other = recorded(tmp_path, "other", status="finished", options={"optim.lr": 0.2})
    failed = recorded(tmp_path, "failed", status="failed", options={"optim.lr": 0.2})
    made = plan([same, other, failed])
    assert ([one.key for one, _ in made.finished], made.todo) == (["same"], [other, failed])
    assert (made.outdated, made.changes) == ([other], {"optim.lr": (0.2, 0.1)})
    assert [bool(clear(one)) for one in (same, other, failed)] == [True, False, True]
    assert [path.name for path in (tmp_path / "replaced").iterdir()] == ["other-1"]
