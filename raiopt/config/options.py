"""The config of a job: its groups, the options that belong to no group, and Hydra's own settings."""

from dataclasses import dataclass, field
from typing import Any

from hydra.conf import HydraConf, JobConf, RunDir, SweepDir
from hydra_zen import MISSING
from omegaconf import OmegaConf

from raiopt.config.groups import CHOSEN, store


@dataclass
class JobOptions:
    """The options of a job that belong to no group.

    Args:
        name: Name of the run or sweep: its folder below `outputs`. null: the date and time.
        outputs: The folder of all results.
        note: Free text for run.json.
        seed: Seed of all random starts.
        stages: For each stage of the attack, a list of the options that it changes, as on the command line. A stage
            attacks the samples that no earlier stage attacked successfully. Empty: a single attack without stages.
        device: auto, cpu, cuda (cuda:1, ...) or mps.
        threads: CPU threads of torch; null: torch's choice.
        batch_size: Samples attacked together; null: chosen by image size, at most 256.
        save: Which perturbations are stored: fooled, all or none.
        force: Run finished jobs again; their folders are moved to replaced/ next to them.
        retry: Which jobs of a sweep that ended without a result are run again: failed (all) or none.
        yes: Confirms a sweep of more than 10,000 jobs.
    """

    defaults: list[Any] = field(
        default_factory=lambda: ["_self_", *({group: name} for group, name in CHOSEN.items() if "/" not in group)]
    )
    name: str | None = None
    outputs: str = "outputs"
    note: str = ""
    seed: int = 0
    stages: dict[str, list[str]] = field(default_factory=dict)
    device: str = "auto"
    threads: int | None = None
    batch_size: int | None = None
    save: str = "fooled"
    force: bool = False
    retry: str = "failed"
    yes: bool = False
    model: Any = MISSING
    data: Any = MISSING
    optim: Any = MISSING
    perturbation: Any = MISSING
    init: Any = MISSING
    criterion: Any = MISSING
    schedule: Any = MISSING
    solver: Any = MISSING
    tracker: Any = MISSING


SUBDIR = "${raiopt.job_key:}"
"""Hydra's setting for a job's folder inside its sweep's folder: different jobs never share one."""
_FORMATS = {
    "file": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
    "terminal": {"format": "%(message)s"},
}
_FILE = {
    "class": "raiopt.results.files.LogFile",
    "formatter": "file",
    "filename": "${hydra.runtime.output_dir}/run.log",
}
_TERMINAL = {"class": "logging.StreamHandler", "formatter": "terminal", "stream": "ext://sys.stderr"}


def _logging(level: str, **handlers: Any) -> dict[str, Any]:
    root = {"level": level, "handlers": list(handlers)}
    shared = {"version": 1, "formatters": _FORMATS, "disable_existing_loggers": False}
    return {**shared, "handlers": handlers, "root": root}


_DEFAULTS = {"output": "default", "launcher": "local", "sweeper": "grid", "help": "default", "hydra_help": "default"}
_DEFAULTS |= {"hydra_logging": "none", "job_logging": "none", "callbacks": None, "env": "default"}
_HYDRA = HydraConf(
    defaults=[*({group: name} for group, name in _DEFAULTS.items()), "_self_"],
    run=RunDir("${raiopt.run_folder:${outputs},${name},${raiopt.job_key:}}"),
    sweep=SweepDir("${raiopt.sweep_folder:${outputs},${name}}", SUBDIR),
    job=JobConf(name="raiopt", chdir=False),
    job_logging=_logging("INFO", file=_FILE, terminal={**_TERMINAL, "level": "WARNING"}),
    hydra_logging=_logging("WARNING", terminal=_TERMINAL),
    callbacks={"raiopt": {"_target_": "raiopt.sweep.session.SweepCallback"}},
    output_subdir=None,
)


def _open_to_stages(job: Any) -> Any:
    """Returns the config of a job, in which `stages={...}` and `stages.NAME=[...]` may add new names."""
    node = OmegaConf.structured(job)
    OmegaConf.set_struct(node.stages, False)
    return node


store(JobOptions, name="raiopt", to_config=_open_to_stages)
store(_HYDRA, group="hydra", name="config", provider="raiopt")
