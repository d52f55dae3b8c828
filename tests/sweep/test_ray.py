"""Ray: refusals and their messages, lost clusters, and how the end of each task is reported. See scripts/test_ray."""

import os
import socket
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from raiopt.sweep import ray, ray_driver
from raiopt.sweep.ray import RayExecutor, RayLauncher
from raiopt.sweep.ray_driver import Cluster, Job, lacking
from raiopt.sweep.task import Ended, Task
from tests.sweep import fake_ray

amounts = st.integers(0, 4)
nodes = st.lists(st.fixed_dictionaries({}, optional={"CPU": amounts, "GPU": amounts}), max_size=4)


@given(nodes=nodes, cpus=st.integers(1, 4), gpus=amounts)
def test_a_job_is_refused_only_if_no_node_has_its_resources(nodes, cpus, gpus):
    needs = {"num_cpus": cpus, "num_gpus": gpus}
    enough = [cpus <= node.get("CPU", 0) and gpus <= node.get("GPU", 0) for node in nodes]
    message = lacking(needs, nodes)
    assert (message == "") == any(enough)
    assert not message or f"num_gpus={gpus}" in message or f"num_cpus={cpus}" in message


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Puts the stand-in where the executor, and the process that it starts, find the package ray."""
    (tmp_path / "ray.py").write_text(Path(fake_ray.__file__).read_text())
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", None)
    del sys.modules["ray"]
    return tmp_path / "scratch"


def task(key, *attempts):
    return Task(
        key=key, folder=f"/{key}", config={"attempts": [words.split() for words in attempts]}, hydra={}, about={}
    )


def executor_of(**options):
    launcher = RayLauncher(**options)
    launcher.config = OmegaConf.create({"device": "auto"})
    return launcher.executor(1)


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'raiopt\[ray\]'"):
        RayExecutor({})


@pytest.mark.parametrize(
    "option",
    [{"num_cpus": 0}, {"num_gpus": -1}, {"timeout_min": 0}, {"address": "ray://head:10001"}, {"address": "head"}],
)
def test_options_out_of_range_are_named(installed, option):
    (name, value) = next(iter(option.items()))
    with pytest.raises(ValueError, match=f"hydra.launcher.{name}={value!r}"):
        RayLauncher(**option)


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("auto", None), ("cuda", None)])
def test_a_job_for_the_processor_takes_no_gpu(installed, device, gpus):
    launcher = RayLauncher(num_cpus=2)
    launcher.config = OmegaConf.create({"device": device})
    assert launcher.executor(3)._options["num_gpus"] == gpus


def test_jobs_run_to_their_ends_and_nothing_is_left(installed):
    executor = executor_of(num_cpus=2, runtime_env={"env_vars": {"A": "1"}})
    executor.start(
        [task("a", "runs ends"), task("b", "WorkerCrashedError", "runs OutOfMemoryError"), task("c", "hangs")]
    )
    ended = []
    while len(ended) < 2:
        ended += executor.poll(5)
    assert {entry.task.key: entry.why for entry in ended} == {
        "a": None,
        "b": "its process 7 on node3 was killed because memory was short: The first sentence",
    }
    driver = executor._driver
    executor.close()
    assert driver.returncode == 0
    assert not list(installed.iterdir())
    assert executor.poll(0) == []
    executor.close()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_gpus": 3}, r"hydra.launcher.num_gpus=3 is more than any node of the Ray cluster has \(1\): lower it."),
        ({"num_cpus": 9}, r"hydra.launcher.num_cpus=9 is more than any node of the Ray cluster has \(2\): lower it."),
    ],
)
def test_more_than_a_node_has_is_refused_at_once(installed, option, message):
    executor = executor_of(**option)
    with pytest.raises(ValueError, match=message):
        executor.start([task("a", "runs ends")])
    assert not list(installed.iterdir())


def test_a_lost_cluster_ends_all_tasks(installed):
    executor = executor_of()
    tasks = [task("a", "hangs"), task("b", "dies")]
    executor.start(tasks)
    assert executor.poll(60) == [Ended(one, "the Ray cluster was lost: The GCS is gone.") for one in tasks]
    assert not list(installed.iterdir())
    executor.start([task("c", "runs ends")])
    assert [entry.why for entry in executor.poll(60)] == [None]
    executor.close()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("Failed to connect", r"address='auto': no Ray cluster answers \(in 2 s\)"),
        ("InvalidAuthToken", "AUTH_MODE=token"),
    ],
)
def test_a_cluster_that_does_not_answer(installed, monkeypatch, said, message):
    monkeypatch.setenv("FAKE_RAY", said)
    monkeypatch.setattr(ray, "ANSWER_SECONDS", 2.0)
    with pytest.raises(ValueError, match=message):
        executor_of(address="auto").start([task("a", "runs ends")])
    assert not list(installed.iterdir())


def test_an_address_without_a_server_is_reported(installed):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ValueError, match=f"address='127.0.0.1:{port}': no Ray cluster answers .Connection refused"):
        executor_of(address=f"127.0.0.1:{port}").start([task("a", "runs ends")])


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """Returns what makes a cluster of the stand-in, in this process."""
    monkeypatch.setitem(sys.modules, "ray", fake_ray)
    monkeypatch.setattr(fake_ray, "asked", [])
    monkeypatch.setattr(fake_ray, "present", [{"CPU": 2.0}])

    def make(timeout_min=None, num_gpus=None, **options):
        options = {"address": None, "num_cpus": 1, "runtime_env": None, "scratch": str(tmp_path), **options}
        return Cluster(timeout_min=timeout_min, num_gpus=num_gpus, **options)

    return make


def ends(cluster, *attempts):
    """Polls until a task ends; returns why it ended."""
    cluster.submit(Job("a", task("a", *attempts).plain()))
    while not (ended := cluster.ended(0)):
        pass
    assert not cluster.jobs
    return ended


@pytest.mark.parametrize(
    ("attempts", "why"),
    [
        (["runs ends"], None),
        (["runs WorkerCrashedError"], "its process 7 on node3 was killed: The first sentence"),
        (["WorkerCrashedError", "WorkerCrashedError", "runs ends"], None),
        (
            ["WorkerCrashedError"] * 3,
            "its worker could not start: WorkerCrashedError: The first sentence. See https://x.",
        ),
        (["runs NodeDiedError"], "its node was lost: The first sentence"),
        (["LocalRayletDiedError"], "its node was lost: The first sentence"),
        (["runs TaskCancelledError"], "its process 7 on node3 was cancelled"),
        (["RayTaskError"], "its worker failed: RayTaskError: The first sentence. See https://x."),
    ],
)
def test_each_end_is_reported_in_plain_words(cluster, attempts, why):
    assert ends(cluster(), *attempts) == [("a", why)]


def test_the_limit_counts_from_when_a_job_runs(cluster, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(ray_driver, "monotonic", lambda: clock.now)
    ray = cluster(timeout_min=2)
    ray.submit(Job("waits", task("waits", "hangs").plain()))
    ray.submit(Job("runs", task("runs", "runs hangs").plain()))
    clock.now += 3600
    assert ray.ended(0) == []
    clock.now += 120
    assert ray.ended(0) == []
    clock.now += 1
    assert ray.ended(0) == []
    assert ray.ended(0) == [("runs", "over its limit of 2 min (hydra.launcher.timeout_min)")]
    assert [job.key for job in ray.jobs.values()] == ["waits"]


def test_jobs_do_not_wait_for_ever_for_a_node_that_has_left(cluster, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(ray_driver, "monotonic", lambda: clock.now)
    ray = cluster()
    ray.submit(Job("waits", task("waits", "hangs").plain()))
    ray.submit(Job("runs", task("runs", "runs hangs").plain()))
    monkeypatch.setattr(fake_ray, "present", [{"CPU": 0.5}])
    for _ in range(6):
        clock.now += ray_driver.PATIENCE / 6
        assert ray.ended(0) == []
    monkeypatch.setattr(fake_ray, "present", [{"CPU": 1.0}])
    clock.now += ray_driver.PATIENCE / 6
    assert ray.ended(0) == []
    monkeypatch.setattr(fake_ray, "present", [])
    ended = []
    for _ in range(8):
        clock.now += ray_driver.PATIENCE / 6
        ended += ray.ended(0)
    assert ended == [("waits", "hydra.launcher.num_cpus=1 is more than any node of the Ray cluster has (0): lower it.")]


@pytest.mark.parametrize(
    ("present", "wanted", "gpus", "calls"),
    [
        ([{"CPU": 2}], None, 0, 0),
        ([{"CPU": 2}, {"CPU": 2, "GPU": 1}], None, 1, 0),
        ([{"CPU": 2, "GPU": 4}], None, 1, 1),
        ([{"CPU": 2, "GPU": 4}], 0, 0, 0),
        ([{"CPU": 2, "GPU": 1}], 0.5, 0.5, 0),
    ],
)
def test_a_process_is_used_again_unless_it_could_get_another_gpu(cluster, monkeypatch, present, wanted, gpus, calls):
    monkeypatch.setattr(fake_ray, "present", present)
    cluster(num_gpus=wanted)
    asked = fake_ray.asked[-1]
    assert (asked["num_gpus"], asked["max_calls"], asked["max_retries"]) == (gpus, calls, 0)


def test_workers_work_where_the_sweep_was_started_unless_ray_brings_a_folder(cluster):
    assert cluster().folder == os.getcwd()
    assert cluster(runtime_env={"working_dir": "."}).folder is None


def test_ray_starts_in_a_folder_without_importable_modules(cluster, monkeypatch, tmp_path):
    began = []
    monkeypatch.setattr(fake_ray, "init", lambda **options: began.append((os.getcwd(), options["runtime_env"])))
    here = os.getcwd()
    (tmp_path / "scratch").mkdir()
    cluster(scratch=str(tmp_path / "scratch"), runtime_env={"py_modules": ["own"], "conda": "name"})
    cluster(scratch=str(tmp_path / "scratch"), runtime_env={"working_dir": "own", "pip": "needs.txt"})
    assert began == [
        (str(tmp_path / "scratch"), {"py_modules": [f"{here}/own"], "conda": "name"}),
        (here, {"working_dir": "own", "pip": "needs.txt"}),
    ]
    assert os.getcwd() == here


def test_a_running_cluster_is_joined_and_otherwise_one_is_started(cluster):
    for address in (None, "head:6379"):
        cluster(address=address)
    own, joined = [asked for asked in fake_ray.asked if "address" in asked]
    assert own["address"] == "local"
    assert "_temp_dir" in own
    assert joined["address"] == "head:6379"
    assert "_temp_dir" not in joined
