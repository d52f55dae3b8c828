"""The options of jobs on a Slurm cluster."""

from dataclasses import dataclass, field
from typing import Any

from raiopt.sweep.launcher import check_options

WARNING_SECONDS = 30
"""Seconds before its time limit at which a job receives a signal; Slurm may send it up to a minute earlier."""
RESERVED = ("array", "output", "error", "open-mode", "job-name", "requeue", "no-requeue", "signal")


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """Jobs of a Slurm cluster; null uses the cluster's default.

    Args:
        partition: The partition to run in.
        account: The account to charge.
        qos: A quality of service.
        constraint: Features that the node must have.
        gpus_per_node: GPUs per job; a job runs on one node.
        cpus_per_task: Cores per job.
        mem_gb: Memory per job in GB.
        timeout_min: Time limit of a job in minutes.
        array_parallelism: Largest number of parallel jobs of an array; null: no limit.
        max_requeues: How often a job that reaches its time limit is requeued, to continue after its last chunk. A job
            that Slurm itself removes from its node (preemption, node failure) is always requeued.
        setup: Lines of bash that run before each job.
        additional_parameters: Further options of sbatch; true for options without a value.

    Raises:
        ValueError: If a value is out of range, or an option of sbatch is set that raiopt sets itself.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    timeout_min: int | None = 60
    array_parallelism: int | None = None
    max_requeues: int = 3
    setup: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low = {"gpus_per_node": 0, "cpus_per_task": 1, "timeout_min": 1, "array_parallelism": 1, "max_requeues": 0}
        check_options("hydra.launcher", self, low, ["mem_gb"])
        for name in self.additional_parameters:
            if name.replace("_", "-") in RESERVED:
                raise ValueError(f"hydra.launcher.additional_parameters must not set {name}, which raiopt sets itself.")

    def for_submitit(self) -> dict[str, Any]:
        """Returns the options under submitit's names."""
        names = ("partition", "account", "qos", "constraint", "gpus_per_node", "cpus_per_task")
        # Since Slurm 22.05, srun gives a job one core unless the number is repeated.
        repeated = [] if self.cpus_per_task is None else [f"--cpus-per-task={self.cpus_per_task}"]
        return {
            **{name: value for name in names if (value := getattr(self, name)) is not None},
            **({} if self.mem_gb is None else {"mem": f"{max(1, round(1024 * self.mem_gb))}MB"}),
            "time": self.timeout_min,
            "signal_delay_s": WARNING_SECONDS
            if self.timeout_min is None
            else min(WARNING_SECONDS, 15 * self.timeout_min),
            "array_parallelism": self.array_parallelism
            or 1_000_000,  # submitit uses the number of jobs if that is smaller
            "setup": list(self.setup),
            "srun_args": repeated,
            "stderr_to_stdout": True,
            "wckey": None,
            "additional_parameters": {"requeue": True, **self.additional_parameters},
        }
