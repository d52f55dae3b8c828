"""What Slurm says of jobs: where they are in its queue, and how those ended that left no result."""

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

ENDS = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "cancelled",
    "COMPLETED": "its process ended without a result",
    "DEADLINE": "over its deadline",
    "FAILED": "failed",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory: give it more by hydra.launcher.mem_gb",
    "PREEMPTED": "had to make room for another job",
    "REVOKED": "revoked",
    "TIMEOUT": "over its time limit",
}
"""The states in which a job of Slurm is over, in words."""

HOPELESS = re.compile(
    "badconstraints|partition(time|node)limit|invalid(account|qos)|(account|qos)notallowed|jobheldadmin|requeuedheld"
    "|joblaunchfailure|dependencyneversatisfied|reservationdeleted|(qos|assoc)(max|min).*(perjob|notsatisfied)"
)
"""Reasons for which a job would wait for ever, as small letters; many are limits of a single job."""


class InQueue(NamedTuple):
    """What squeue says of a job."""

    state: str
    reason: str
    name: str


def ask(*words: str) -> str:
    """Returns what a program of Slurm prints.

    Raises:
        OSError: If it fails, with what it says, or if it does not answer.
    """
    # A filter that the user set for squeue would hide jobs.
    env = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=env)
    except subprocess.TimeoutExpired:
        raise OSError(f"{words[0]} did not answer within 60 s") from None
    if done.returncode:
        raise OSError(said(done.stderr) or f"{words[0]} failed with exit code {done.returncode}")
    return done.stdout


def said(text: str) -> str:
    """Returns what a program of Slurm says, in one line, without its own name.

    >>> said("sbatch: error: invalid partition specified: gpu\\nsbatch: error: Batch job submission failed")
    'invalid partition specified: gpu; Batch job submission failed'
    """
    return "; ".join(re.sub(r"^\w+:? (error|fatal): ", "", line.strip()) for line in text.splitlines() if line.strip())


def queue(jobs: Sequence[str]) -> dict[str, InQueue]:
    """Returns by its number each job that Slurm remembers, those included that ended some minutes ago.

    Raises:
        OSError: If squeue does not tell.
    """
    if not jobs:
        return {}
    numbers = ",".join(dict.fromkeys(job.split("_")[0] for job in jobs))
    try:
        # -t all: finished ones too; -r: each job of an array on its own line
        told = ask("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%j", "-j", numbers)
    except OSError as error:
        if "Invalid job id" in str(error):  # said if there is but one number, and it is forgotten
            return {}
        raise
    return {number: InQueue(*rest) for number, *rest in (line.split("|", 3) for line in told.splitlines())}


def entry(queue: Mapping[str, InQueue], job: str) -> InQueue | None:
    """Returns the entry of a job; one of an array that was cancelled as a whole has that of the array."""
    return queue.get(job, queue.get(job.split("_")[0]))


def largest_array() -> int:
    """Returns how many jobs an array may have.

    Raises:
        OSError: If Slurm does not answer.
    """
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    return max(1, int(found[1])) if found else 1


def cancel(jobs: Sequence[str]) -> None:
    """Takes jobs out of the queue, and ends those that run, as far as Slurm can be reached."""
    with suppress(OSError):
        ask("scancel", *by_array(jobs))


def by_array(jobs: Sequence[str]) -> list[str]:
    """Returns jobs as scancel takes them, those of one array together: one request each, not thousands.

    >>> by_array(["7_0", "7_2", "8"])
    ['7_[0,2]', '8']
    """
    arrays: dict[str, list[str]] = {}
    for number, _, place in (job.partition("_") for job in jobs):
        arrays.setdefault(number, []).extend([place] if place else [])
    return [f"{number}_[{','.join(places)}]" if places else number for number, places in arrays.items()]


def is_hopeless(reason: str) -> bool:
    """Whether a job that waits for this reason waits for ever.

    >>> is_hopeless("PartitionTimeLimit"), is_hopeless("launch failed requeued held"), is_hopeless("Priority")
    (True, True, False)
    """
    return HOPELESS.search(re.sub("[^a-z]", "", reason.lower())) is not None


def why_ended(job: str, found: InQueue | None) -> str:
    """Returns why a job ended that left no result, as far as Slurm knows."""
    about: dict[str, str] = {}
    with suppress(OSError):
        about = dict(re.findall(r"(\w+)=(\S*)", ask("scontrol", "-o", "show", "job", job)))
    if not about:
        with suppress(OSError, ValueError):
            told = ask("sacct", "-X", "-n", "-P", "-o", "State,ExitCode,Timelimit", "-j", job).strip().split("\n")
            state, code, limit = told[-1].split("|")
            about = {"JobState": state.split()[0], "ExitCode": code, "TimeLimit": limit}
    if not about and found is not None:
        about = {"JobState": found.state}
    return told_end(about) if about else "left the queue without a result, as a job does that is cancelled early"


def told_end(about: Mapping[str, str]) -> str:
    """Returns in words how a job ended.

    Args:
        about: JobState, ExitCode and TimeLimit as `scontrol show job` gives them; all may be missing.

    >>> told_end({"JobState": "TIMEOUT", "TimeLimit": "1-02:30:00"})
    'over its limit of 1590 min'
    >>> told_end({"JobState": "FAILED", "ExitCode": "137:0"})
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
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"its process ended with exit code {code[1]}" if int(code[1]) else f"failed: {about.get('Reason', '')}"
    return f"its process was killed by {name}" + (
        " (kill -9, or the system when memory was short)" if name == "SIGKILL" else ""
    )
