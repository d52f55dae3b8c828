"""Local worker processes: how many, which devices and threads, how their end is reported; and the display."""

import io
import os
import signal
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from raiopt.results.record import BallInfo, ErrorInfo, Metrics, Record
from raiopt.results.record_reader import read_record
from raiopt.sweep import local, progress
from raiopt.sweep.endings import MAX_START_ATTEMPTS, exit_reason
from raiopt.sweep.hashes import check_hashes
from raiopt.sweep.local import LocalExecutor, LocalLauncher
from raiopt.sweep.progress import Progress
from raiopt.sweep.task import Task
from tests.sweep.command import until

OWN = """
import os
import torch
from torch import nn

def net(file, wait=None):
    with open(file, "a") as out:
        print(os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), torch.get_num_threads(), file=out)
    while wait and os.path.exists(wait):
        pass
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10))
"""


@pytest.fixture
def executor(tmp_path, monkeypatch):
    """Makes executors, and closes them; their workers find the module `ownnet`."""
    (tmp_path / "ownnet.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(*args, **options):
        made.append(LocalExecutor(*args, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def composed():
    """The config of a job, and its choices."""
    from hydra import compose, initialize_config_module

    from raiopt.config.options import store
    from raiopt.sweep.job_key import register_resolvers

    register_resolvers()
    store.add_to_hydra_store(overwrite_ok=True)
    words = ["model=python", "model.factory=ownnet:net", "data.limit=2", "solver.steps=1", "device=cpu"]
    with initialize_config_module("raiopt.conf", version_base="1.3"):
        config = compose("raiopt", words, return_hydra_config=True)
    choices = {key: name for key, name in config.hydra.runtime.choices.items() if not key.startswith("hydra")}
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return {key: value for key, value in plain.items() if key != "hydra"}, choices


@pytest.fixture
def task(tmp_path, composed):
    def make(key, **kwargs):
        config, choices = composed
        model = {**config["model"], "kwargs": {"file": str(tmp_path / "recorded"), **kwargs}}
        about = {"job_key": key, "job_number": 0, "command": ["raiopt"], "overrides": {"seed": key}, "choices": choices}
        folder = str(tmp_path / key)
        return Task(key=key, folder=folder, config={**config, "model": model}, hydra={}, about=about)

    return make


def ends(executor, count=1):
    found = []
    until(lambda: found.extend(executor.poll(0.1)) or len(found) >= count, "no task ended")
    return found


def recorded(tmp_path):
    return [line.split() for line in (tmp_path / "recorded").read_text().splitlines()]


def test_each_slot_has_its_gpus_and_threads(tmp_path, executor, task):
    (tmp_path / "wait").touch()
    workers = executor(2, threads=1, gpus=[["3"], ["5", "7"]])
    workers.start([task("a", wait=str(tmp_path / "wait")), task("b", wait=str(tmp_path / "wait"))])
    until(lambda: (tmp_path / "recorded").exists() and len(recorded(tmp_path)) == 2, "two jobs do not run")
    (tmp_path / "wait").unlink()
    found = ends(workers, 2)
    assert [one.why for one in found] == [None, None]
    assert {read_record(tmp_path / key).status for key in "ab"} == {"finished"}
    assert sorted(gpus for _, gpus, _ in recorded(tmp_path)) == ["3", "5,7"]
    assert {threads for *_, threads in recorded(tmp_path)} == {"1"}


def test_a_worker_that_died_while_idle_is_replaced(tmp_path, executor, task):
    workers = executor(1, threads=1)
    for number, key in enumerate("abc"):
        workers.start([task(key)])
        (found,) = ends(workers)
        assert (found.task.key, found.why) == (key, None)
        assert read_record(tmp_path / key).status == "finished"
        if number == 1:
            os.kill(int(recorded(tmp_path)[-1][0]), signal.SIGKILL)
    pids = [pid for pid, *_ in recorded(tmp_path)]
    assert pids[0] == pids[1] != pids[2]


def test_a_killed_worker_is_reported_and_the_next_task_runs(tmp_path, executor, task):
    (tmp_path / "wait").touch()
    workers = executor(1, threads=1)
    for number in (signal.SIGTERM, signal.SIGSEGV):
        workers.start([task(f"job{number}", wait=str(tmp_path / "wait"))])
        before = len(recorded(tmp_path)) if (tmp_path / "recorded").exists() else 0
        until(lambda n=before: (tmp_path / "recorded").exists() and len(recorded(tmp_path)) > n, "the job does not run")
        os.kill(int(recorded(tmp_path)[-1][0]), number)
        assert ends(workers)[0].why == exit_reason(-number)
    workers.start([task("last")])
    assert ends(workers)[0].why is None


def test_a_task_is_given_up_when_workers_keep_dying_before_it_begins(executor, task, monkeypatch):
    made = []

    def pool(slot):
        made.append(local.ProcessPool(1, initializer=os._exit, initargs=(7,), context=slot.context))
        return made[-1]

    monkeypatch.setattr(local._Slot, "_pool", pool)
    workers = executor(1, threads=1)
    workers.start([task("a")])
    assert ends(workers)[0].why.startswith("its worker could not start: ")
    assert len(made) == MAX_START_ATTEMPTS + 1


def test_close_leaves_no_process(tmp_path, executor, task):
    (tmp_path / "wait").touch()
    workers = executor(2, threads=1)
    workers.start([task("a", wait=str(tmp_path / "wait"))])
    until(lambda: (tmp_path / "recorded").exists() and recorded(tmp_path), "the job does not run")
    workers.close()
    (pid, *_) = recorded(tmp_path)[0]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_hashes_are_compared_on_the_cpu(tmp_path, executor, task):
    workers = executor(1, threads=1)
    workers.start([task("a")])
    ends(workers)
    record = read_record(tmp_path / "a")
    one = task("a")
    elsewhere = Task(**{**one.plain(), "config": {**one.config, "device": "cuda:99"}})
    check_hashes([(elsewhere, record)])
    other = replace(record, hashes=replace(record.hashes, data="0" * 64))
    with pytest.raises(FileExistsError, match=r"and 0 more finished jobs had other data \(hash 0000000000, now"):
        check_hashes([(elsewhere, other)])
    check_hashes([])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, "its process ended with exit code 0"),
        (3, "its process ended with exit code 3"),
        (-9, "its process was killed by SIGKILL (kill -9, or the system when memory was short)"),
        (-15, "its process was killed by SIGTERM"),
        (-40, "its process was killed by signal 40"),
    ],
)
def test_the_exit_of_a_process_is_described(code, said):
    assert exit_reason(code) == said


@pytest.fixture
def executor_for(monkeypatch):
    """Options of an executor: slots, threads, limit, GPUs."""

    def make(tasks, device="auto", visible=None, cores=6, **options):
        monkeypatch.setattr(local, "LocalExecutor", lambda *args: args)
        monkeypatch.setattr(local, "cores", lambda: cores)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            monkeypatch.setattr(local.shutil, "which", lambda name: None)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        launcher = LocalLauncher(**options)
        launcher.setup(hydra_context=None, task_function=None, config=OmegaConf.create({"device": device}))
        return launcher.executor(tasks)

    return make


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"tasks": 100}, (6, 1, None, [])),
        ({"tasks": 100, "cores": 64}, (8, 8, None, [])),
        ({"tasks": 2}, (2, 3, None, [])),
        ({"tasks": None, "n_jobs": 4}, (4, 1, None, [])),
        ({"tasks": 9, "n_jobs": 12}, (9, 1, None, [])),
        ({"tasks": 9, "n_jobs": 2, "threads": 5, "timeout_min": 0.5}, (2, 5, 0.5, [])),
        ({"tasks": 9, "visible": ""}, (6, 1, None, [])),
        ({"tasks": 9, "visible": "-1"}, (6, 1, None, [])),
        ({"tasks": 9, "visible": "3, 5,GPU-1a"}, (3, 2, None, [["3"], ["5"], ["GPU-1a"]])),
        ({"tasks": 2, "visible": "3,5,6"}, (2, 3, None, [["3"], ["5"]])),
        ({"tasks": 9, "visible": "0,1,2,3", "gpus_per_job": 2}, (2, 3, None, [["0", "1"], ["2", "3"]])),
        ({"tasks": 9, "visible": "0,1", "device": "cpu"}, (6, 1, None, [])),
        ({"tasks": 9, "visible": "0,1", "gpus_per_job": 0, "n_jobs": 4}, (4, 1, None, [])),
    ],
)
def test_slots_share_cores_and_gpus(executor_for, asked, given):
    assert executor_for(**asked) == given


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"visible": "0,1", "n_jobs": 3},
            "gpus_per_job=1 for 3 jobs at a time needs 3 GPUs, and device=auto has 2 here",
        ),
        ({"gpus_per_job": 1, "n_jobs": 1}, "needs 1 GPUs, and device=auto has 0 here: lower it"),
        ({"visible": "0,1", "gpus_per_job": 3}, "gpus_per_job=3 for 1 jobs at a time needs 3 GPUs"),
        ({"visible": "0", "device": "cpu", "gpus_per_job": 1}, "device=cpu has 0 here"),
        ({"n_jobs": 0}, "hydra.launcher.n_jobs=0"),
        ({"threads": 1.5}, "hydra.launcher.threads=1.5"),
        ({"timeout_min": 0}, "hydra.launcher.timeout_min=0"),
        ({"gpus_per_job": -1}, "hydra.launcher.gpus_per_job=-1"),
    ],
)
def test_options_beyond_this_machine_are_refused(executor_for, asked, said):
    with pytest.raises((ValueError, TypeError), match=said.replace("(", r"\(")):
        executor_for(9, **asked)


FINISHED = Record(
    status="finished", ball=BallInfo("linf", 0.1, finite=True), metrics=Metrics(robust_accuracy=0.5, attack_seconds=2.0)
)


def a_task(number):
    about = {"job_number": number, "overrides": {"optim.lr": number / 10, "name": "s"}}
    return Task(key=f"k{number}", folder=f"{os.getcwd()}/outputs/s/k{number}", config={}, hydra={}, about=about)


def robust(share):
    return replace(FINISHED, metrics=replace(FINISHED.metrics, robust_accuracy=share))


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def drawn(display, width=80):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(display)
    return [
        " ".join(line.translate({ord(mark): None for mark in "━╸╺"}).split()) for line in out.getvalue().splitlines()
    ]


def test_the_display_counts_jobs_and_estimates_the_remaining_time(clock, capsys):
    display = Progress(14, skipped=3, swept=["optim.lr"])
    assert drawn(display) == ["0 of 14 jobs 0 running 0 failed 3 finished before", "0:00:00 so far"]
    display.started([a_task(number) for number in range(12)])
    clock[0] += 60
    display.ended(a_task(0), robust(0.5))
    display.ended(a_task(1), robust(0.25))
    display.ended(a_task(2), replace(robust(0.3), ball=BallInfo("l2", 1.0, finite=True)))
    display.ended(a_task(3), replace(robust(0.1), status="failed", error=ErrorInfo("", "no\nmore")))
    assert drawn(display) == [
        "4 of 14 jobs 8 running 1 failed 3 finished before",
        "0:01:00 so far, about 0:02:30 left",
        *(f"0:01:00 optim.lr={number / 10}" for number in range(4, 12)),
        "best: robust 25.0 %, Linf 0.1 optim.lr=0.1",
        "best: robust 30.0 %, L2 1 optim.lr=0.2",
    ]
    display.started([a_task(12), a_task(13)])
    assert "and 2 more" in drawn(display)
    assert capsys.readouterr().out.splitlines() == [
        "   0 optim.lr=0.0: robust 50.0 %, Linf 0.1, 2.0 s",
        "   1 optim.lr=0.1: robust 25.0 %, Linf 0.1, 2.0 s",
        "   2 optim.lr=0.2: robust 30.0 %, L2 1, 2.0 s",
        "   3 optim.lr=0.3: failed: no (outputs/s/k3)",
    ]


def test_on_a_terminal_only_failures_are_printed(clock, capsys, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "Console", partial(Console, file=out, force_terminal=True, width=60))
    with Progress(None) as display:
        display.started([a_task(1), a_task(2)])
        clock[0] += 5
        display.ended(a_task(1), FINISHED)
        display.ended(a_task(2), Record(status="killed", error=ErrorInfo("", "[bold]over its limit")))
        assert drawn(display)[:2] == ["2 jobs 0 running 1 failed", "0:00:05 so far"]
    assert capsys.readouterr().out == ""
    assert "2 optim.lr=0.2 name=s: killed: [bold]over its limit" in out.getvalue().replace("\n", "")
    assert "robust 50.0 %, Linf 0.1, 2.0 s" not in out.getvalue()
