"""What Slurm reports about jobs: their state in its queue, and how those without a result ended."""

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from raiopt.sweep.endings import exit_reason, killed_by

ENDS = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "cancelled",
    "COMPLETED": "its process ended without a result",
    "DEADLINE": "over its deadline",
    "FAILED": "failed",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory: give it more by hydra.launcher.mem_gb",
    "PREEMPTED": "preempted by another job",
    "REVOKED": "revoked",
    "TIMEOUT": "over its time limit",
}
"""The states in which a job of Slurm is over, each with the reason."""

HOPELESS = re.compile(
    "badconstraints|partition(time|node)limit|invalid(account|qos)|(account|qos)notallowed|jobheldadmin|requeuedheld"
    "|joblaunchfailure|dependencyneversatisfied|reservationdeleted|(qos|assoc)(max|min).*(perjob|notsatisfied)"
)
"""Reasons why a job would wait forever, in lower case; many are limits of a single job."""


class InQueue(NamedTuple):
    """What squeue reports about a job."""

    state: str
    reason: str
    name: str


def ask(*words: str) -> str:
    """Returns what a program of Slurm prints.

    Raises:
        OSError: If it fails, with its message, or if it does not answer.
    """
    # A filter in the user's environment would hide jobs from squeue.
    env = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=env)
    except subprocess.TimeoutExpired:
        raise OSError(f"{words[0]} did not answer within 60 s") from None
    if done.returncode:
        raise OSError(message_of(done.stderr) or f"{words[0]} failed with exit code {done.returncode}")
    return done.stdout


def message_of(text: str) -> str:
    """Returns the message of a program of Slurm in one line, without the program's name.

    >>> message_of("sbatch: error: invalid partition specified: gpu\\nsbatch: error: Batch job submission failed")
    'invalid partition specified: gpu; Batch job submission failed'
    """
    return "; ".join(re.sub(r"^\w+:? (error|fatal): ", "", line.strip()) for line in text.splitlines() if line.strip())


def queue(jobs: Sequence[str]) -> dict[str, InQueue]:
    """Returns by number the jobs that Slurm remembers, including those that ended some minutes ago.

    Raises:
        OSError: If squeue fails.
    """
    if not jobs:
        return {}
    numbers = ",".join(dict.fromkeys(job.split("_")[0] for job in jobs))
    try:
        # -t all: finished ones too; -r: each job of an array on its own line
        lines = ask("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%j", "-j", numbers)
    except OSError as error:
        if "Invalid job id" in str(error):  # the answer if Slurm has forgotten the only number
            return {}
        raise
    return {number: InQueue(*rest) for number, *rest in (line.split("|", 3) for line in lines.splitlines())}


def entry(queue: Mapping[str, InQueue], job: str) -> InQueue | None:
    """Returns the entry of a job; that of its array if the array was cancelled as a whole."""
    return queue.get(job, queue.get(job.split("_")[0]))


def largest_array() -> int:
    """Returns the number of jobs that an array may have.

    Raises:
        OSError: If Slurm does not answer.
    """
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    return max(1, int(found[1])) if found else 1


def cancel(jobs: Sequence[str]) -> None:
    """Removes jobs from the queue, and ends those that run, if Slurm can be reached."""
    with suppress(OSError):
        ask("scancel", *by_array(jobs))


def by_array(jobs: Sequence[str]) -> list[str]:
    """Returns jobs as scancel takes them, those of one array together: one request instead of thousands.

    >>> by_array(["7_0", "7_2", "8"])
    ['7_[0,2]', '8']
    """
    arrays: dict[str, list[str]] = {}
    for number, _, place in (job.partition("_") for job in jobs):
        arrays.setdefault(number, []).extend([place] if place else [])
    return [f"{number}_[{','.join(places)}]" if places else number for number, places in arrays.items()]


def is_hopeless(reason: str) -> bool:
    """Whether a job that waits for this reason waits forever.

    >>> is_hopeless("PartitionTimeLimit"), is_hopeless("launch failed requeued held"), is_hopeless("Priority")
    (True, True, False)
    """
    return HOPELESS.search(re.sub("[^a-z]", "", reason.lower())) is not None


def why_ended(job: str, found: InQueue | None) -> str:
    """Returns why a job without a result ended, as far as Slurm knows."""
    about: dict[str, str] = {}
    with suppress(OSError):
        about = dict(re.findall(r"(\w+)=(\S*)", ask("scontrol", "-o", "show", "job", job)))
    if not about:
        with suppress(OSError, ValueError):
            lines = ask("sacct", "-X", "-n", "-P", "-o", "State,ExitCode,Timelimit", "-j", job).strip().split("\n")
            state, code, limit = lines[-1].split("|")
            about = {"JobState": state.split()[0], "ExitCode": code, "TimeLimit": limit}
    if not about and found is not None:
        about = {"JobState": found.state}
    return end_reason(about) if about else "left the queue without a result, like a job that is cancelled early"


def end_reason(about: Mapping[str, str]) -> str:
    """Returns in words how a job ended.

    Args:
        about: JobState, ExitCode and TimeLimit as `scontrol show job` gives them; all may be missing.

    >>> end_reason({"JobState": "TIMEOUT", "TimeLimit": "1-02:30:00"})
    'over its limit of 1590 min'
    >>> end_reason({"JobState": "FAILED", "ExitCode": "137:0"})
    'its process was killed by SIGKILL (kill -9, or the system when memory was short)'
    """
    state = about.get("JobState", "FAILED")
    limit = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):\d+", about.get("TimeLimit", ""))
    if state == "TIMEOUT" and limit:
        days, hours, minutes = (int(part or 0) for part in limit.groups())
        return f"over its limit of {1440 * days + 60 * hours + minutes} min"
    code = re.fullmatch(r"(\d+):(\d+)", about.get("ExitCode", ""))
    if state != "FAILED" or not code:
        return ENDS.get(state, f"left the queue as {state}")
    number = int(code[2]) or int(code[1]) - 128  # a shell and srun add 128 to the signal
    if number in {*signal.Signals}:
        return killed_by(number)
    return exit_reason(int(code[1])) if int(code[1]) else f"failed: {about.get('Reason', '')}"
