"""Queries Slurm about jobs: their state in the queue, and how jobs without a result ended."""

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
"""The final states of a Slurm job, each with an explanation."""

HOPELESS = re.compile(
    "badconstraints|partition(time|node)limit|invalid(account|qos)|(account|qos)notallowed|jobheldadmin|requeuedheld"
    "|joblaunchfailure|dependencyneversatisfied|reservationdeleted|(qos|assoc)(max|min).*(perjob|notsatisfied)"
)
"""Pending reasons, in lower case, with which a job would wait forever; many are limits per job."""


class InQueue(NamedTuple):
    """The entry of a job in the output of squeue."""

    state: str
    reason: str
    name: str


def ask(*words: str) -> str:
    """Runs a Slurm command and returns its output.

    Raises:
        OSError: If it fails (with its error message) or does not answer.
    """
    # Filters in the user's environment would hide jobs from squeue.
    env = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=env)
    except subprocess.TimeoutExpired:
        raise OSError(f"{words[0]} did not answer within 60 s") from None
    if done.returncode:
        raise OSError(message_of(done.stderr) or f"{words[0]} failed with exit code {done.returncode}")
    return done.stdout


def message_of(text: str) -> str:
    """Returns the error message of a Slurm command in one line, without the command's name.

    >>> message_of("sbatch: error: invalid partition specified: gpu\\nsbatch: error: Batch job submission failed")
    'invalid partition specified: gpu; Batch job submission failed'
    """
    return "; ".join(re.sub(r"^\w+:? (error|fatal): ", "", line.strip()) for line in text.splitlines() if line.strip())


def queue(jobs: Sequence[str]) -> dict[str, InQueue]:
    """Returns the jobs still known to Slurm, by job number, including those that ended some minutes ago.

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
        if "Invalid job id" in str(error):  # the error if Slurm no longer knows the only job asked for
            return {}
        raise
    return {number: InQueue(*rest) for number, *rest in (line.split("|", 3) for line in lines.splitlines())}


def entry(queue: Mapping[str, InQueue], job: str) -> InQueue | None:
    """Returns the entry of a job, or of its array if the whole array was cancelled."""
    return queue.get(job, queue.get(job.split("_")[0]))


def largest_array() -> int:
    """Returns the largest number of jobs in an array.

    Raises:
        OSError: If Slurm does not answer.
    """
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    return max(1, int(found[1])) if found else 1


def cancel(jobs: Sequence[str]) -> None:
    """Cancels queued and running jobs, if Slurm can be reached."""
    with suppress(OSError):
        ask("scancel", *by_array(jobs))


def by_array(jobs: Sequence[str]) -> list[str]:
    """Returns job numbers in the syntax of scancel, grouped by array: one request instead of thousands.

    >>> by_array(["7_0", "7_2", "8"])
    ['7_[0,2]', '8']
    """
    arrays: dict[str, list[str]] = {}
    for number, _, place in (job.partition("_") for job in jobs):
        arrays.setdefault(number, []).extend([place] if place else [])
    return [f"{number}_[{','.join(places)}]" if places else number for number, places in arrays.items()]


def is_hopeless(reason: str) -> bool:
    """Returns whether a job with this pending reason would wait forever.

    >>> is_hopeless("PartitionTimeLimit"), is_hopeless("launch failed requeued held"), is_hopeless("Priority")
    (True, True, False)
    """
    return HOPELESS.search(re.sub("[^a-z]", "", reason.lower())) is not None


def why_ended(job: str, found: InQueue | None) -> str:
    """Returns why a job without a result ended, according to Slurm."""
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
        about: JobState, ExitCode and TimeLimit from `scontrol show job`; each may be missing.

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
    number = int(code[2]) or int(code[1]) - 128  # shells and srun exit with 128 + signal
    if number in {*signal.Signals}:
        return killed_by(number)
    return exit_reason(int(code[1])) if int(code[1]) else f"failed: {about.get('Reason', '')}"
