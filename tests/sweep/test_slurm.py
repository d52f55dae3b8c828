"""The executor for Slurm against stand-ins for Slurm's programs; scripts/test_slurm uses the real ones."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raiopt.results.record import SCHEMA
from raiopt.sweep import slurm, slurm_queue
from raiopt.sweep.slurm import GRACE, INTERVAL, PATIENCE, SlurmExecutor, SlurmLauncher, run_on_node
from raiopt.sweep.slurm_options import SlurmOptions
from raiopt.sweep.task import Task
from tests.sweep.fake_slurm import FakeSlurm


class Clock:
    """A clock that advances only when a caller waits."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds or 0.001


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(slurm, "monotonic", made)
    monkeypatch.setattr(slurm, "sleep", made.sleep)
    return made


@pytest.fixture
def fake(tmp_path, monkeypatch, clock):
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return FakeSlurm(tmp_path / "bin")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


def make_tasks(folder, count=3):
    return [
        Task(key=f"key{n}", folder=str(folder / f"key{n}"), config={"n": n}, hydra={}, about={"job_number": n})
        for n in range(count)
    ]


def started(folder, count=3, **options):
    executor = SlurmExecutor(folder, SlurmOptions(**options))
    executor.start(make_tasks(folder, count))
    return executor


def record(folder, key, status):
    path = folder / key / "run.json"
    path.parent.mkdir(exist_ok=True, parents=True)
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(json.dumps({"schema": SCHEMA, "status": status}))
    os.utime(path, ns=(before + 10**9, before + 10**9))


def ends(executor, seconds):
    """Returns why tasks ended within `seconds`, by their key."""
    clock, found = slurm.monotonic, {}
    until = clock() + seconds
    while clock() < until:
        found |= {ended.task.key: ended.why for ended in executor.poll(until - clock())}
        if not executor._followed:
            break
    return found


def script(folder):
    (path,) = (folder / ".slurm").glob("[0-9]*_submission.sh")
    return path.read_text().splitlines()


def test_tasks_become_one_array(fake, folder):
    started(folder)
    assert len(fake.calls("sbatch")) == 1
    assert list(fake.jobs) == ["1_0", "1_1", "1_2"]
    assert "#SBATCH --array=0-2%3" in script(folder)


def test_a_single_task_is_a_plain_job(fake, folder):
    executor = started(folder, 1)
    assert list(fake.jobs) == ["1"]
    record(folder, "key0", "finished")
    fake.job("1", "COMPLETED")
    assert ends(executor, 3) == {"key0": None}


def test_arrays_are_as_large_as_slurm_allows(fake, folder):
    fake.set(largest=2)
    executor = started(folder, 5)
    assert list(fake.jobs) == ["1_0", "1_1", "2_0", "2_1", "3"]
    noted = json.loads((folder / ".slurm/jobs.json").read_text())
    assert [about["job"] for about in noted.values()] == list(fake.jobs)
    executor.close()
    assert fake.calls("scancel") == [["1_[0,1]", "2_[0,1]", "3"]]


def test_options_become_sbatch_settings(fake, folder):
    asked = {"partition": "gpu", "account": "lab", "qos": "low", "constraint": "a100"}
    started(folder, **asked, gpus_per_node=2, cpus_per_task=8, mem_gb=1.5, timeout_min=90, array_parallelism=2,
            setup=["module load cuda"], additional_parameters={"exclude": "node7", "exclusive": True})  # fmt: skip
    lines = script(folder)
    wanted = ["account=lab", "array=0-2%2", "constraint=a100", "cpus-per-task=8", "exclude=node7", "exclusive",
              "gpus-per-node=2", "job-name=raiopt-sweep", "mem=1536MB", "partition=gpu", "qos=low", "requeue",
              "signal=USR2@30", "time=90"]  # fmt: skip
    kept = ("nodes", "open-mode", "output")
    assert [
        line[10:] for line in lines if line.startswith("#SBATCH --") and line[10:].split("=")[0] not in kept
    ] == wanted
    command = next(line for line in lines if line.startswith("srun"))
    assert "--cpus-per-task=8" in command
    assert lines.index("module load cuda") < lines.index(command)


def test_unset_options_are_left_to_the_cluster(fake, folder):
    started(folder, timeout_min=None)
    flags = {line[10:].split("=")[0] for line in script(folder) if line.startswith("#SBATCH --")}
    assert flags == {"array", "job-name", "nodes", "open-mode", "output", "requeue", "signal"}


def test_a_short_limit_is_reported_in_time(fake, folder):
    started(folder, timeout_min=1)
    assert "#SBATCH --signal=USR2@15" in script(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_min": 0},
        {"timeout_min": 1.5},
        {"gpus_per_node": -1},
        {"cpus_per_task": 0},
        {"mem_gb": 0},
        {"array_parallelism": 0},
        {"max_requeues": -1},
        {"additional_parameters": {"array": "0-3"}},
        {"additional_parameters": {"job_name": "mine"}},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises((ValueError, TypeError), match=r"hydra\.launcher\.\w+"):
        SlurmLauncher(**options)


def test_a_node_gets_the_task(fake, folder, monkeypatch):
    from submitit.core.utils import DelayedSubmission

    got = []
    monkeypatch.setattr("raiopt.config.jobs.work", got.append)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    started(folder)
    for number in range(3):
        DelayedSubmission.load(folder / f".slurm/1_{number}_submitted.pkl").result()
    assert got == [task.plain() for task in make_tasks(folder)]


def test_a_launcher_within_a_job_does_not_pass_on_its_slurm_variables(fake, folder, monkeypatch):
    within = {"SLURM_JOB_ID": "5", "SLURM_MEM_PER_CPU": "100", "SRUN_CPUS_PER_TASK": "1", "SLURM_CONF": "here"}
    for name, value in within.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    started(folder)
    passed = {name for name in fake.environment("sbatch") if name.startswith(("SLURM_", "SRUN_", "SBATCH_"))}
    assert passed == {"SLURM_CONF", "SBATCH_ACCOUNT"}
    assert os.environ["SLURM_MEM_PER_CPU"] == "100"


@pytest.mark.parametrize("status", ["finished", "failed", "killed"])
@pytest.mark.parametrize("state", ["COMPLETED", "COMPLETING", "FAILED", None])
def test_the_record_says_how_a_job_ended(fake, folder, state, status):
    executor = started(folder)
    record(folder, "key1", status)
    fake.job("1_1", state)
    assert ends(executor, GRACE - 1) == {"key1": None}
    assert not list((folder / ".slurm").glob("1_1_*.pkl"))
    assert (folder / ".slurm/1_0_submitted.pkl").exists()


def test_the_queue_says_when_a_job_is_over(fake, folder, monkeypatch):
    monkeypatch.setattr(slurm, "INTERVAL", 60)
    executor = started(folder)
    record(folder, "key1", "finished")
    fake.job("1_1", "RUNNING")
    assert ends(executor, 3 * PATIENCE) == {}


def test_a_delayed_result_is_accepted(fake, folder):
    executor = started(folder)
    record(folder, "key1", "running")
    fake.job("1_1", "COMPLETED")
    assert ends(executor, GRACE - 3) == {}
    record(folder, "key1", "finished")
    assert ends(executor, 3) == {"key1": None}


@pytest.mark.parametrize("status", ["finished", "failed", "killed"])
def test_the_record_of_an_earlier_job_does_not_count(fake, folder, status):
    record(folder, "key1", status)
    executor = started(folder)
    fake.job("1_1", "CANCELLED")
    assert ends(executor, GRACE + 3) == {"key1": "cancelled"}


LEFT_NO_RESULT = [
    ("FAILED", {"ExitCode": "137:0"}, "its process was killed by SIGKILL (kill -9, or"),
    ("FAILED", {"ExitCode": "0:9"}, "its process was killed by SIGKILL (kill -9, or"),
    ("FAILED", {"ExitCode": "139:0"}, "its process was killed by SIGSEGV"),
    ("FAILED", {"ExitCode": "1:0"}, "its process ended with exit code 1"),
    ("FAILED", {"ExitCode": "255:0"}, "its process ended with exit code 255"),
    ("FAILED", {"ExitCode": "0:53"}, "failed"),
    ("CANCELLED", {}, "cancelled"),
    ("TIMEOUT", {"TimeLimit": "00:05:00"}, "over its limit of 5 min"),
    ("TIMEOUT", {"TimeLimit": "2-01:00:00"}, "over its limit of 2940 min"),
    ("TIMEOUT", {"TimeLimit": "Partition_Limit"}, "over its time limit"),
    ("OUT_OF_MEMORY", {"ExitCode": "0:125"}, "out of memory"),
    ("NODE_FAIL", {}, "its node failed"),
    ("PREEMPTED", {}, "preempted by another job"),
    ("COMPLETED", {}, "its process ended without a result"),
    ("CANCELLED", {"known": False}, "cancelled"),
]


def test_why_a_job_left_no_result(fake, folder):
    executor = started(folder, len(LEFT_NO_RESULT) + 1)
    for number, (state, fields, _) in enumerate(LEFT_NO_RESULT):
        (folder / f".slurm/1_{number}_0_log.out").touch()
        record(folder, f"key{number}", "running")
        fake.job(f"1_{number}", state, **fields)
    assert ends(executor, GRACE - 1) == {}
    reasons = ends(executor, 4)
    assert len(reasons) == len(LEFT_NO_RESULT)
    for number, (_, _, why) in enumerate(LEFT_NO_RESULT):
        assert reasons[f"key{number}"].startswith(why)
        assert reasons[f"key{number}"].endswith(f"; see {folder / f'.slurm/1_{number}_0_log.out'}")
    assert not fake.calls("scancel")


def test_a_job_that_slurm_forgot_is_not_waited_for(fake, folder):
    executor = started(folder)
    for number in range(3):
        fake.job(f"1_{number}", None)
    reasons = ends(executor, GRACE + 3)
    assert sorted(reasons) == ["key0", "key1", "key2"]
    assert all(why.startswith("left the queue without a result") for why in reasons.values())


def test_accounting_is_asked_if_there_is_any(fake, folder):
    executor = started(folder)
    fake.set(sacct="FAILED|1:0|00:05:00\nTIMEOUT|0:0|00:05:00")
    fake.job("1_1", None)
    assert ends(executor, GRACE + 3) == {"key1": "over its limit of 5 min"}


def test_an_array_that_was_cancelled_as_a_whole(fake, folder):
    executor = started(folder)
    fake.set(jobs={"1": {"state": "CANCELLED", "reason": "Priority", "name": "raiopt-sweep"}})
    assert ends(executor, GRACE + 3) == dict.fromkeys(["key0", "key1", "key2"], "cancelled")


HOPELESS = [
    *("BadConstraints", "PartitionTimeLimit", "PartitionNodeLimit", "InvalidAccount", "InvalidQOS", "JobHeldAdmin"),
    *("launch failed requeued held", "launch_failed_requeued_held", "DependencyNeverSatisfied", "ReservationDeleted"),
    *("QOSMaxWallDurationPerJobLimit", "AssocMaxCpuPerJobLimit", "QOSMaxGRESPerJob", "QOSMinCpuNotSatisfied"),
]


def test_a_job_that_would_wait_for_ever_is_cancelled(fake, folder):
    executor = started(folder, len(HOPELESS) + 1)
    for number, reason in enumerate(HOPELESS):
        fake.job(f"1_{number}", "PENDING", reason=reason)
    assert ends(executor, GRACE - 1) == {}
    reasons = ends(executor, 4)
    assert reasons == {
        f"key{number}": f"Slurm would never start it: {reason}" for number, reason in enumerate(HOPELESS)
    }
    assert {job for job, about in fake.jobs.items() if about["state"] == "CANCELLED"} == {
        f"1_{number}" for number in range(len(HOPELESS))
    }


def test_a_job_that_can_go_on_is_waited_for(fake, folder, monkeypatch):
    monkeypatch.setattr(slurm, "INTERVAL", 600)
    states = ["PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "REQUEUED", "STAGE_OUT"]
    reasons = [
        "Resources",
        "JobHeldUser",
        "BeginTime",
        "QOSMaxJobsPerUserLimit",
        "AssocGrpCpuLimit",
        "JobArrayTaskLimit",
    ]
    pairs = [(state, reason) for state in states for reason in reasons] + [("RUNNING", "BadConstraints")]
    executor = started(folder, len(pairs))
    for number, (state, reason) in enumerate(pairs):
        fake.job(f"1_{number}", state, reason=reason)
    assert ends(executor, 7200) == {}


def test_a_reason_may_pass(fake, folder):
    executor = started(folder)
    for _ in range(3):
        fake.job("1_1", "PENDING", reason="JobHeldAdmin")
        assert ends(executor, GRACE - 3) == {}
        fake.job("1_1", "PENDING", reason="Priority")
        assert ends(executor, 3) == {}


def test_a_requeued_job_continues(fake, folder):
    executor = started(folder)
    record(folder, "key1", "running")
    for state, reason in [("RUNNING", "None"), ("COMPLETING", "None"), ("PENDING", "BeginTime"), ("RUNNING", "None")]:
        fake.job("1_1", state, reason=reason)
        assert ends(executor, GRACE - 1) == {}
    record(folder, "key1", "finished")
    fake.job("1_1", "COMPLETED")
    assert ends(executor, 3) == {"key1": None}


def test_a_node_may_not_keep_a_job_for_ever(fake, folder, monkeypatch):
    monkeypatch.setattr(slurm, "INTERVAL", 20)
    executor = started(folder)
    fake.job("1_1", "COMPLETING")
    assert ends(executor, PATIENCE - 1) == {}
    assert ends(executor, 30) == {"key1": "its node did not release it for 5 min"}


def test_slurm_may_be_unreachable_for_a_few_minutes_only(fake, folder, monkeypatch):
    monkeypatch.setattr(slurm, "INTERVAL", 20)
    executor = started(folder)
    for _ in range(2):  # an answer in between begins it anew
        fake.set(down="Unable to contact slurm controller")
        assert ends(executor, PATIENCE - 40) == {}
        fake.set(down="")
        assert ends(executor, 60) == {}
    fake.set(down="Unable to contact slurm controller")
    record(folder, "key1", "finished")
    reasons = ends(executor, PATIENCE + 60)
    assert reasons.pop("key1") is None
    assert sorted(reasons) == ["key0", "key2"]
    assert all(why.endswith("for 5 min: Unable to contact slurm controller") for why in reasons.values())


def test_the_queue_is_asked_rarely_and_for_all_at_once(fake, folder, clock):
    executor = started(folder)
    began = clock()
    for _ in range(50):
        assert executor.poll(0.2) == []
    assert clock() - began == pytest.approx(10, abs=0.1)
    assert len(fake.calls("squeue")) <= 10 / INTERVAL + 1
    assert fake.calls("squeue")[0][-2:] == ["-j", "1"]


def test_filters_of_the_user_do_not_hide_jobs(fake, folder, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    started(folder).poll(0)
    assert "SQUEUE_PARTITION" not in fake.environment("squeue")


def test_nothing_to_follow_is_not_waited_for(fake, folder, clock):
    executor = SlurmExecutor(folder, SlurmOptions())
    began = clock()
    executor.start([])
    assert executor.poll(100) == []
    assert clock() == began
    executor.close()
    assert not (fake.folder / "calls").exists()


def test_a_refusal_is_reported_at_once(fake, folder, capfd):
    fake.set(refusal="invalid partition specified: nosuch")
    with pytest.raises(ValueError, match="Slurm refuses the jobs: invalid partition specified: nosuch; Batch job"):
        started(folder)
    assert not list((folder / ".slurm").glob("*.pkl"))
    assert capfd.readouterr().err == ""


def test_a_cluster_that_does_not_answer_is_reported_at_once(fake, folder):
    fake.set(down="Unable to contact slurm controller (connect failure)")
    with pytest.raises(ValueError, match="Slurm does not answer: Unable to contact"):
        started(folder)


@pytest.mark.parametrize("program", ["sbatch", "srun", "squeue", "scontrol", "scancel"])
def test_a_machine_without_slurm(fake, folder, monkeypatch, program):
    (fake.folder / program).unlink()
    monkeypatch.setenv("PATH", str(fake.folder))
    with pytest.raises(ValueError, match=f"this machine has no {program}"):
        SlurmExecutor(folder, SlurmOptions())


def test_submitit_may_be_missing(fake, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"pip install 'raiopt\[slurm\]'"):
        SlurmExecutor(folder, SlurmOptions())


def test_a_folder_that_slurm_would_read_as_a_pattern(fake, tmp_path):
    with pytest.raises(ValueError, match="must not contain '%'"):
        SlurmExecutor(tmp_path / "100%j", SlurmOptions())


def test_close_cancels_remaining_jobs(fake, folder):
    executor = started(folder)
    record(folder, "key1", "finished")
    fake.job("1_1", "COMPLETED")
    ends(executor, 3)
    executor.close()
    assert fake.calls("scancel") == [["1_[0,2]"]]
    for number in (0, 2):
        fake.job(f"1_{number}", "COMPLETING")  # as long as their nodes clean up
    started(folder)
    assert len(fake.calls("sbatch")) == 2
    assert {about["job"] for about in json.loads((folder / ".slurm/jobs.json").read_text()).values()} == {
        "2_0", "2_1", "2_2"
    }  # fmt: skip


def test_close_returns_when_slurm_does_not_answer(fake, folder):
    executor = started(folder)
    fake.set(down="Unable to contact slurm controller")
    executor.close()
    assert len(fake.calls("scancel")) == 1


def test_jobs_of_a_dead_launcher_are_found_again(fake, folder):
    record(folder, "key0", "failed")
    started(folder, 5)
    record(folder, "key0", "killed")  # the job itself wrote this, after it was submitted
    for number, state in enumerate(["RUNNING", "PENDING", "CANCELLED", None]):
        fake.job(f"1_{number}", state)
    fake.job("1_4", "RUNNING", name="of somebody else")
    executor = started(folder, 5)
    assert len(fake.calls("sbatch")) == 2
    assert {key: it.job for key, it in executor._followed.items()} == {
        "key0": "1_0", "key1": "1_1", "key2": "2_0", "key3": "2_1", "key4": "2_2"
    }  # fmt: skip
    noted = json.loads((folder / ".slurm/jobs.json").read_text())
    assert {key: about["job"] for key, about in noted.items()} == {
        key: it.job for key, it in executor._followed.items()
    }
    fake.job("1_0", "COMPLETED")
    assert ends(executor, 3) == {"key0": None}


@pytest.fixture
def node(fake, monkeypatch):
    """Lets a job run in this process, and gives its signal handlers back."""
    numbers = [signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2]
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield monkeypatch
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("restarts", "again"), [(None, True), ("2", True), ("3", False)])
def test_a_job_whose_time_is_up_goes_back_into_the_queue(fake, node, restarts, again, capsys):
    if restarts is not None:
        node.setenv("SLURM_RESTART_COUNT", restarts)
    node.setattr("raiopt.config.jobs.work", lambda task: os.kill(os.getpid(), signal.SIGUSR2))
    run_on_node({}, max_requeues=3)
    assert fake.calls("scontrol") == ([["requeue", "17"]] if again else [])
    assert ("goes back into the queue" in capsys.readouterr().out) == again


def test_a_subprocess_of_a_job_does_not_requeue_it(fake, node):
    def work(task):
        node.setattr(os, "getpid", lambda: 0)  # as in a forked process, which has the handler too
        signal.raise_signal(signal.SIGUSR2)

    node.setattr("raiopt.config.jobs.work", work)
    run_on_node({}, max_requeues=3)
    assert fake.calls("scontrol") == []


def test_a_job_that_may_not_be_requeued_continues(fake, node):
    fake.set(down="Requested operation is presently disabled")
    done = []
    node.setattr("raiopt.config.jobs.work", lambda task: (os.kill(os.getpid(), signal.SIGUSR2), done.append(task)))
    run_on_node({"key": "a"}, max_requeues=3)
    assert done == [{"key": "a"}]


def test_a_job_ends_by_sigterm_and_uses_the_cores_it_has(fake, node):
    node.setenv("SLURM_CPUS_ON_NODE", "6")
    signal.signal(signal.SIGTERM, lambda *_: None)
    seen = []
    record = lambda task: seen.extend([signal.getsignal(signal.SIGTERM), os.environ["OMP_NUM_THREADS"]])  # noqa: E731
    node.setattr("raiopt.config.jobs.work", record)
    run_on_node({}, 0)
    assert seen == [signal.SIG_DFL, "6"]


@given(st.integers(0, 365), st.integers(0, 23), st.integers(0, 59))
def test_limits_are_reported_in_minutes(days, hours, minutes):
    clock = f"{hours:02}:{minutes:02}:00"
    text = f"{days}-{clock}" if days else clock
    total = (days * 24 + hours) * 60 + minutes
    assert slurm_queue.end_reason({"JobState": "TIMEOUT", "TimeLimit": text}) == f"over its limit of {total} min"


@given(st.lists(st.tuples(st.integers(1, 5), st.none() | st.integers(0, 9)), unique=True))
def test_scancel_is_reported_of_every_job_once(pairs):
    arrays = {number for number, place in pairs if place is not None}
    jobs = [str(n) if p is None else f"{n}_{p}" for n, p in pairs if p is not None or n not in arrays]
    words = slurm_queue.by_array(jobs)
    listed = [
        f"{word.partition('_')[0]}_{place}" if "_" in word else word
        for word in words
        for place in word.partition("_")[2].strip("[]").split(",")
    ]
    assert sorted(listed) == sorted(jobs)
    assert len(words) == len({job.partition("_")[0] for job in jobs})


def test_the_launcher_takes_what_hydra_gives(fake, tmp_path):
    from omegaconf import OmegaConf

    given_: Any = OmegaConf.create({"setup": ["module load cuda"], "additional_parameters": {"exclude": "node7"}})
    launcher = SlurmLauncher(**given_)
    launcher.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "sweep")}}})
    executor = launcher.executor(None)
    executor.start(make_tasks(Path(tmp_path / "sweep")))
    assert {"module load cuda", "#SBATCH --exclude=node7"} <= set(script(tmp_path / "sweep"))
