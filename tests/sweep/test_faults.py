"""Fault tolerance of local sweeps: each fault is caused in a real command, and the same command completes it."""

import json
import os
import re
import shlex
import signal
import subprocess

import polars as pl
import pytest

from tests.sweep.command import SMALL, Command, kill, records, run, stamps, until

SWEEP = ["-m", "name=s", "hydra.launcher.n_jobs=2", *SMALL]
HOLD = [*SWEEP, "model.factory=own:waits", "batch_size=4"]


@pytest.fixture
def start(tmp_path):
    """Starts commands, and ends what is left of them."""
    started = []

    def begin(*words, **environment):
        started.append(Command(tmp_path, *words, **environment))
        return started[-1]

    yield begin
    for command in started:
        command.end()


def held(folder, command, count):
    """Waits until `count` jobs are paused; returns their processes, by job key."""

    def found():
        workers = command.workers()
        pids = {path.parent.name: read_lock(path) for path in folder.glob("outputs/s/*/.lock.json")}
        pids = {key: pid for key, pid in pids.items() if pid in workers and (folder / f"waits-{pid}").exists()}
        return pids if len(pids) == count else None

    return until(found, f"not {count} jobs wait", command=command)


def read_lock(path):
    try:
        return json.loads(path.read_text())["pid"]
    except (OSError, ValueError):
        return None


def completes(folder, words, before):
    """The same command runs what is missing and nothing else; returns the records."""
    code, said = run(folder, *words)
    sweep = folder / "outputs" / "s"
    after = stamps(sweep)
    assert code == 0, said
    assert before.items() <= after.items()
    found = records(sweep)
    listed = json.loads((sweep / "sweep.json").read_text())["jobs"]
    assert set(after) == set(listed) == set(found)
    table = pl.read_parquet(sweep / "sweep.parquet")
    assert table["job"].to_list() == list(listed)
    assert (table["status"] == "finished").all()
    assert sum(": robust" in line for line in said.splitlines()) == len(after) - len(before)
    assert not list(sweep.glob("**/.lock*"))
    return found


FAULTS = {
    "raises": ("failed", "model.factory='own:raises' raised RuntimeError: no such weights"),
    "kills": ("killed", "its process was killed by SIGKILL (kill -9, or the system when memory was short)"),
    "crashes": ("killed", "its process was killed by SIGSEGV"),
    "leaves": ("killed", "its process ended with exit code 3"),
    "vanishes": ("killed", "its process ended with exit code 0"),
    "exits": ("killed", "its code called sys.exit('enough')"),
    "hangs": ("killed", "over its limit of 0.15 min (hydra.launcher.timeout_min)"),
}


def test_a_job_takes_nothing_down_with_it_and_its_output_is_kept(tmp_path):
    names = ",".join(f"own:{name}" for name in ["net", *FAULTS, "loud"])
    words = [*SWEEP, f"model.factory={names}", "hydra.launcher.timeout_min=0.15"]
    (tmp_path / "trouble").touch()
    code, said = run(tmp_path, *words)
    sweep = tmp_path / "outputs" / "s"
    found = {record["overrides"]["model.factory"][4:]: record for record in records(sweep).values()}
    assert code == 1
    assert {name: record["status"] for name, record in found.items() if name not in FAULTS} == {
        "net": "finished",
        "loud": "finished",
    }
    for name, (status, why) in FAULTS.items():
        assert (found[name]["status"], found[name]["error"]["message"]) == (status, why)
        assert f"model.factory=own:{name}: {status}: {why} (outputs/s/{found[name]['job_key']})" in said
    log = (sweep / found["loud"]["job_key"] / "run.log").read_text()
    texts = ["from print", "from warnings", "from logging", "from C"]
    assert [log.count(text) for text in texts] == [1, 1, 1, 1]
    assert not [text for text in texts if text in said]
    assert "Segmentation fault" in (sweep / found["crashes"]["job_key"] / "run.log").read_text()
    assert "RuntimeError: no such weights" in (sweep / found["raises"]["job_key"] / "run.log").read_text()
    assert pl.read_csv(sweep / "sweep.csv")["status"].to_list().count("finished") == 2

    before = stamps(sweep)
    code, said = run(tmp_path, *words, "retry=none")
    assert (code, stamps(sweep)) == (1, before)
    (tmp_path / "trouble").unlink()
    found = completes(tmp_path, words, stamps(sweep))
    assert not (sweep / "replaced").exists()
    assert {record["job_number"] for record in found.values()} == set(range(len(found)))


def test_killed_workers_and_their_server(tmp_path, start):
    words = [*HOLD, "seed=1,2,3,4"]
    sweep = tmp_path / "outputs" / "s"
    (tmp_path / "hold").write_text("0")
    command = start(*words)
    working = held(tmp_path, command, 2)
    assert set(working.values()) == set(command.workers())
    first = next(iter(working))
    kill(working.pop(first))
    command.tells(rf"killed: its process was killed by SIGKILL.*{first}")
    working = held(tmp_path, command, 2)
    for pid in [command.server(), *command.workers()]:
        kill(pid)
    for key in working:
        command.tells(rf"killed: .*{key}\)")
    (tmp_path / "hold").unlink()
    assert command.ends() == 1
    found = records(sweep)
    assert {key for key, record in found.items() if record["status"] == "killed"} == {first, *working}
    (last,) = stamps(sweep)
    assert found[last]["seed"] == 4
    completes(tmp_path, words, stamps(sweep))


def test_a_killed_job_resumes_after_its_last_batch(tmp_path, start):
    (tmp_path / "hold").write_text("1")
    command = start(*HOLD, "seed=1,2")
    working = held(tmp_path, command, 2)
    for pid in working.values():
        kill(pid)
    assert command.ends() == 1
    (tmp_path / "hold").unlink()
    for record in completes(tmp_path, [*HOLD, "seed=1,2"], {}).values():
        assert record["continued"]["batches"] == 1
        assert record["continued"]["samples"] == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_launching_process(tmp_path, start, number):
    words = [*HOLD, "model.factory=own:net,own:waits", "seed=1,2,3"]
    (tmp_path / "hold").write_text("0")
    command = start(*words)
    held(tmp_path, command, 2)
    sweep = tmp_path / "outputs" / "s"
    before = stamps(sweep)
    assert len(before) == 3
    if number == signal.SIGINT:
        os.killpg(command.process.pid, number)
    else:
        kill(command.process.pid, number)
    assert command.ends() == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert stamps(sweep) == before
    statuses = sorted(record["status"] for record in records(sweep).values())
    assert statuses == ["finished"] * 3 + [("running" if number == signal.SIGKILL else "killed")] * 2
    if number != signal.SIGKILL:
        assert "Traceback" not in command.said()
        assert len(pl.read_parquet(sweep / "sweep.parquet")) == 6
        words = shlex.split(re.search("Go on with: raiopt (.*)", command.said())[1])
    (tmp_path / "hold").unlink()
    completes(tmp_path, words, before)


def test_a_sweep_is_locked_by_one_process(tmp_path, start):
    words = [*HOLD, "seed=1,2"]
    (tmp_path / "hold").write_text("0")
    first = start(*words)
    held(tmp_path, first, 2)
    code, said = run(tmp_path, *words)
    assert code == 1
    assert re.search(rf"raiopt: .*outputs/s is in use: process {first.process.pid} on \S+ works in it since", said)
    (tmp_path / "hold").unlink()
    assert first.ends() == 0
    completes(tmp_path, words, stamps(tmp_path / "outputs" / "s"))


def test_outdated_or_damaged_job_folders_are_run_again(tmp_path):
    words = [*SWEEP, "model.factory=own:net"]
    sweep = tmp_path / "outputs" / "s"
    found = completes(tmp_path, [*words, "seed=1,2,3,4"], {})
    old, half, none, kept = found
    older = {**found[old], "schema": 0}
    (sweep / old / "run.json").write_text(json.dumps(older))
    text = (sweep / half / "run.json").read_text()[:500]
    (sweep / half / "run.json").write_text(text)
    (sweep / none / "run.json").unlink()
    for folder in (sweep, sweep / none):
        (folder / ".lock").touch()
        (folder / ".lock.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "2020"}))
    before = {kept: stamps(sweep)[kept]}
    # more jobs, each question twice, the last four times
    found = completes(tmp_path, [*words, "seed=1,2,3,4,5,5", "optim.lr=0.1,10e-2"], before)
    assert len(found) == 5
    assert json.loads((sweep / "replaced" / f"{old}-1" / "run.json").read_text()) == older
    assert (sweep / "replaced" / f"{half}-1" / "run.json").read_text() == text
    assert all((sweep / "replaced" / f"{key}-1" / "samples.parquet").exists() for key in (old, half))

    before = stamps(sweep)
    code, _ = run(tmp_path, *words, "seed=1,2", "optim.lr=0.1", "force=true")
    assert code == 0
    changed = {key for key, stamp in stamps(sweep).items() if stamp != before[key]}
    assert {found[key]["seed"] for key in changed} == {1, 2}
    for key in changed:
        (last, *_) = sorted((sweep / "replaced").glob(f"{key}-*"), reverse=True)
        assert (last / "run.json").stat().st_mtime_ns == before[key]


def test_other_weights_are_refused_at_once(tmp_path):
    words = [*SWEEP, "model.factory=own:net"]
    assert run(tmp_path, *words, "seed=1,2")[0] == 0
    before = stamps(tmp_path / "outputs" / "s")
    (tmp_path / "seed").write_text("1")
    code, said = run(tmp_path, *words, "seed=1,2,3")
    assert code == 1
    assert "1 more finished jobs had other weights" in said
    assert stamps(tmp_path / "outputs" / "s") == before
    (tmp_path / "seed").unlink()
    completes(tmp_path, [*words, "seed=1,2,3"], before)


def test_a_name_of_another_folder_is_refused(tmp_path):
    other = tmp_path / "outputs" / "s"
    other.mkdir(parents=True)
    (other / "thesis.txt").write_text("mine")
    code, said = run(tmp_path, *SWEEP, "model.factory=own:net", "seed=1,2")
    assert code == 1
    assert "contains something other than a sweep (thesis.txt): give another name=..." in said
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


@pytest.fixture
def small_disk(tmp_path):
    """outputs/ on a disk that can be made larger; its size is given to the function that is returned."""
    place = tmp_path / "outputs"
    place.mkdir()

    def mount(*words):
        return subprocess.run(["mount", *words, str(place)], capture_output=True, text=True)

    try:
        failed = mount("-t", "tmpfs", "-o", "size=64k", "raiopt-test").stderr
    except OSError as error:
        failed = str(error)
    if failed:
        pytest.skip(f"no disk of its own can be mounted: {failed.strip()}")
    yield lambda size: mount("-o", f"remount,size={size}").check_returncode()
    until(lambda: subprocess.run(["umount", str(place)], capture_output=True).returncode == 0, "cannot unmount")


@pytest.mark.parametrize("size", ["4k", "48k", "160k"])
def test_a_full_disk(tmp_path, small_disk, size):
    words = [*SWEEP, "model.factory=own:net", "seed=range(1,7)", "save=all", "optim.epsilon=0.3"]
    small_disk(size)
    code, said = run(tmp_path, *words)
    assert code == 1
    assert "No space left on device" in said
    assert "Traceback" not in said
    small_disk("64m")
    found = completes(tmp_path, words, stamps(tmp_path / "outputs" / "s"))
    for key in found:
        assert len(pl.read_parquet(tmp_path / "outputs" / "s" / key / "samples.parquet")) == 8


def test_slots_have_their_gpus_also_where_jobs_were_finished(tmp_path, start):
    words = [*SWEEP, "model.factory=own:gpus", "device=cpu"]
    assert start(*words, "seed=1,2", CUDA_VISIBLE_DEVICES="3,5").ends() == 0
    assert set((tmp_path / "gpus").read_text().split()) == {"3,5"}
