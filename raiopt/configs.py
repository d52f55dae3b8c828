"""The hydra-zen store: every config group of the command, typed. Imports no torch.

Building blocks live here, named experiments and sweeps as YAML in conf/; the same option never lives in both.
"""

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from hydra.conf import HydraConf, JobConf, RunDir, SweepDir
from hydra_zen import MISSING, ZenStore, make_custom_builds_fn
from omegaconf import OmegaConf

from raiopt.builders import attacks, trackers, zoo
from raiopt.builders import optimizers as o

partial = make_custom_builds_fn(zen_partial=True, populate_full_signature=True)
INNER = "sgd"
INNERS = {"cw": "adam"}
"""The inner optimizer of options that have another than the usual one."""
store = ZenStore(name="raiopt", overwrite_ok=True)


@dataclass
class InnerOption:
    """The type of every option of optim/InnerOpt, so that a plain text in its place is refused."""


@dataclass
class Bounded:
    """What every option of optim lists.

    Args:
        lr: Step size, the learning rate of the inner optimizer if there is one.
        epsilon: Radius of the ball; of an additive perturbation in units of pixels in [0, 1].
        param_ndim: Over how many trailing dimensions transform and ball extend; -1: each sample, null: the batch.
        grad_scale: Multiplies the transformed gradient.
        grad_bias: Is added to it.
    """

    lr: float = 0.025
    epsilon: float = 0.1
    param_ndim: int | None = -1
    grad_scale: float = 1.0
    grad_bias: float = 0.0


@dataclass
class GradientFree:
    """What is left of `Bounded` for an option of optim that moves by no gradient: no size of a step."""

    epsilon: float = 0.1
    param_ndim: int | None = -1


@dataclass
class Optim(Bounded):
    """An option of optim with an inner optimizer."""

    InnerOpt: InnerOption = MISSING


@dataclass
class Inference:
    """What every option of model lists beside what loads it: how the search runs it, as in attacks.Inference."""

    fold: bool = True
    channels_last: bool | None = None
    compile: bool = False
    precision: str = "float32"
    deterministic: bool = True


@dataclass
class Sharding:
    """What every option of data lists beside what opens it: which part of the samples a job takes, as in zoo.Shard."""

    shard: int | None = None
    num_shards: int | None = None


def _group(group: str, **options: Any) -> None:
    for name, node in options.items():
        store(node, group=group, name=name)


def _optim(function: Any, fields_of: Any = Optim, inner: str = INNER, **changes: Any) -> Any:
    typed = [(f.name, f.type, changes.pop(f.name)) for f in fields(fields_of) if f.name in changes]
    base = make_dataclass("Optim", typed, bases=(fields_of,))  # builds() would lose the types of these fields
    defaults: Any = ["_self_", {"InnerOpt": inner}] if fields_of is Optim else ["_self_"]
    return partial(function, builds_bases=(base,), hydra_defaults=defaults, **changes)


def _model(function: Any, **changes: Any) -> Any:
    """Returns an option of model; builds() would refuse settings that its function does not take."""
    return make_dataclass("Model", [], bases=(Inference, partial(function, **changes)))


def _data(function: Any, **changes: Any) -> Any:
    """Returns an option of data."""
    return make_dataclass("Data", [], bases=(Sharding, partial(function, **changes)))


def _perturbation(function: Any, **optim: Any) -> None:
    """Stores a perturbation that also changes settings of optim."""
    node = OmegaConf.create({"perturbation": partial(function), "optim": optim})
    name, same = function.__name__, lambda node: node
    store(node, group="perturbation", name=name, package="_global_", to_config=same)


SEED: dict[str, Any] = {"seed": "${seed}"}
SMALLEST: dict[str, Any] = {"epsilon": float("inf"), "steps": "${solver.steps}"}
_group(
    "optim",
    linf_projected=_optim(o.linf_projected, lr=0.1),
    l2_projected=_optim(o.l2_projected, epsilon=1.5, lr=1.5),
    l1_projected=_optim(o.l1_projected, epsilon=12.0, lr=12.0, **SEED),
    l0_projected=_optim(o.l0_projected, epsilon=30.0, lr=3.0),
    apgd=_optim(o.apgd, lr=1.0, steps="${solver.steps}"),
    steepest_projected=_optim(o.steepest_projected, lr=2.0),
    fmn=_optim(o.fmn, lr=1.0, **SMALLEST),
    ddn=_optim(o.ddn, lr=1.0, **SMALLEST),
    alma=_optim(o.alma, lr=1.0, epsilon=float("inf")),
    cw=_optim(o.cw, inner=INNERS["cw"], lr=0.1, **SMALLEST),
    signed=_optim(o.signed, lr=0.1),
    l1_normed=_optim(o.l1_normed, lr=300.0),
    l2_normed=_optim(o.l2_normed, lr=3.0),
    linf_normed=_optim(o.linf_normed, lr=0.3),
    lp_normed=_optim(o.lp_normed, lr=3.0),
    steepest=_optim(o.steepest, lr=3.0),
    top_q=_optim(o.top_q, lr=30.0, **SEED),
    l1q=_optim(o.l1q, lr=30.0, **SEED),
    clamped=_optim(o.clamped, lr=100.0),
    plain=_optim(o.plain, lr=100.0),
    chain=_optim(o.chain, members=["l1_normed", {"momentum": {"mu": 1.0}}, "signed"], **SEED),
    linf_frank_wolfe=_optim(o.linf_frank_wolfe, Bounded, lr=2.0),
    l2_frank_wolfe=_optim(o.l2_frank_wolfe, Bounded, lr=2.0, epsilon=1.5),
    l1_frank_wolfe=_optim(o.l1_frank_wolfe, Bounded, lr=2.0, epsilon=12.0),
    l1q_frank_wolfe=_optim(o.l1q_frank_wolfe, Bounded, lr=2.0, epsilon=12.0, **SEED),
    square=_optim(o.square, GradientFree, steps="${solver.steps}"),
)
_group(
    "optim/InnerOpt",
    **{f.__name__: partial(f, builds_bases=(InnerOption,)) for f in (o.sgd, o.adam, o.adamw, o.rmsprop)},
)
_group(
    "model",
    digits_robust=_model(zoo.digits_robust),
    digits_standard=_model(zoo.digits_standard),
    torchvision=_model(zoo.torchvision_model, name=MISSING),
    python=_model(zoo.python_model, factory=MISSING),
)
_group(
    "data",
    digits=_data(zoo.digits),
    image_folder=_data(zoo.image_folder, root=MISSING),
    torchvision=_data(zoo.torchvision_data, name=MISSING, root=MISSING),
    python=_data(zoo.python_data, factory=MISSING),
)
_group(
    "perturbation",
    additive=partial(attacks.additive),
    masked=partial(attacks.masked, region=MISSING),
    python=partial(attacks.python_perturbation, factory=MISSING),
)
_perturbation(attacks.universal, param_ndim=None)
_perturbation(attacks.patch, epsilon=1.0)
_perturbation(attacks.affine, epsilon=1.0, lr=0.2)
EPSILON: dict[str, Any] = {"epsilon": "${optim.epsilon}"}
_group(
    "init",
    zero=partial(attacks.zero),
    uniform_linf=partial(attacks.uniform_linf, **EPSILON),
    uniform_l2=partial(attacks.uniform_l2, **EPSILON),
    uniform_l1=partial(attacks.uniform_l1, **EPSILON),
    sphere_l2=partial(attacks.sphere_l2, **EPSILON),
    gaussian=partial(attacks.gaussian),
)
_group(
    "criterion",
    cross_entropy=partial(attacks.cross_entropy),
    margin=partial(attacks.margin),
    probability_margin=partial(attacks.probability_margin),
    dlr=partial(attacks.dlr),
    targeted_dlr=partial(attacks.targeted_dlr),
    kl=partial(attacks.kl),
)
_group(
    "schedule",
    auto=partial(attacks.auto),
    constant=partial(attacks.constant),
    linear=partial(attacks.linear),
    cosine=partial(attacks.cosine),
    exponential=partial(attacks.exponential),
    listed=partial(attacks.listed, shares=MISSING),
)
_group("solver", gradient_ascent=partial(attacks.gradient_ascent))
_group("tracker", none=partial(trackers.none), mlflow=partial(trackers.mlflow))


@dataclass
class Job:
    """The options of a job that belong to no group.

    Args:
        name: Of the run or sweep: its folder below `outputs`. null: the date and time.
        outputs: The folder of all results.
        note: Free text for run.json.
        seed: Key of all random starts.
        stages: For each stage of the attack, what it changes: a list of words as on the command line. A stage takes on
            the samples that no earlier one broke. Empty: one attack, as the rest of the config says.
        device: auto, cpu, cuda (cuda:1, ...) or mps.
        threads: Of torch on the CPU; null leaves torch's choice.
        batch_size: Samples attacked together; null: by the size of the images, 256 at most.
        save: Which perturbations are stored: fooled, all or none.
        force: Run finished jobs again; their folders move to replaced/ beside them.
        retry: Which jobs of a sweep that ended without a result are run again: failed (all), killed or none.
        yes: A sweep of more than 10,000 jobs is meant.
    """

    defaults: list[Any] = field(
        default_factory=lambda: [
            "_self_",
            {"model": "digits_robust"},
            {"data": "digits"},
            {"optim": "linf_projected"},
            {"perturbation": "additive"},
            {"init": "zero"},
            {"criterion": "cross_entropy"},
            {"schedule": "auto"},
            {"solver": "gradient_ascent"},
            {"tracker": "none"},
            {"experiment": None},
        ]
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
"""The folder of a job in that of its sweep, as Hydra is told it: two questions never share one."""
_JOB_LOG = {
    "version": 1,
    "formatters": {
        "file": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
        "terminal": {"format": "%(message)s"},
    },
    "handlers": {
        "file": {
            "class": "raiopt.results.files.LogFile",
            "formatter": "file",
            "filename": "${hydra.runtime.output_dir}/run.log",
        },
        "terminal": {
            "class": "logging.StreamHandler",
            "formatter": "terminal",
            "level": "WARNING",
            "stream": "ext://sys.stderr",
        },
    },
    "root": {"level": "INFO", "handlers": ["file", "terminal"]},
    "disable_existing_loggers": False,
}
_SWEEP_LOG = {
    "version": 1,
    "formatters": {"plain": {"format": "%(message)s"}},
    "handlers": {"terminal": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"}},
    "root": {"level": "WARNING", "handlers": ["terminal"]},
    "disable_existing_loggers": False,
}
_HYDRA = HydraConf(
    defaults=[
        {"output": "default"},
        {"launcher": "local"},
        {"sweeper": "grid"},
        {"help": "default"},
        {"hydra_help": "default"},
        {"hydra_logging": "none"},
        {"job_logging": "none"},
        {"callbacks": None},
        {"env": "default"},
        "_self_",
    ],
    run=RunDir("${raiopt.run_folder:${outputs},${name},${raiopt.job_key:}}"),
    sweep=SweepDir("${raiopt.sweep_folder:${outputs},${name}}", SUBDIR),
    job=JobConf(name="raiopt", chdir=False),
    job_logging=_JOB_LOG,
    hydra_logging=_SWEEP_LOG,
    callbacks={"raiopt": {"_target_": "raiopt.sweep.recorder.SweepRecorder"}},
    output_subdir=None,
)


def _open_to_stages(job: Any) -> Any:
    """Returns the config of a job into which `stages={...}` and `stages.NAME=[...]` may write new names."""
    node = OmegaConf.structured(job)
    OmegaConf.set_struct(node.stages, False)
    return node


PLUGINS = "hydra_plugins.raiopt"


@dataclass
class Local:
    """hydra/launcher=local: warm worker processes on this machine, as in sweep.local_engine.LocalLauncher."""

    _target_: str = f"{PLUGINS}.LocalLauncher"
    n_jobs: int | None = None
    threads: int | None = None
    timeout_min: float | None = None
    gpus_per_job: int | None = None


@dataclass
class Slurm:
    """hydra/launcher=slurm: jobs of a Slurm cluster, as in sweep.slurm_engine.SlurmOptions."""

    _target_: str = f"{PLUGINS}.SlurmLauncher"
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


@dataclass
class Ray:
    """hydra/launcher=ray: tasks of a Ray cluster, as in sweep.ray_engine.RayEngine."""

    _target_: str = f"{PLUGINS}.RayLauncher"
    address: str | None = None
    num_cpus: float = 1
    num_gpus: float | None = None
    timeout_min: float | None = None
    runtime_env: dict[str, Any] | None = None


@dataclass
class Grid:
    """hydra/sweeper=grid: every combination, as in sweep.grid.GridSweeper."""

    _target_: str = f"{PLUGINS}.GridSweeper"
    params: dict[str, str] | None = None


@dataclass
class Optuna:
    """hydra/sweeper=optuna: a search, as in sweep.search.OptunaSweeper."""

    _target_: str = f"{PLUGINS}.OptunaSweeper"
    n_trials: int = 50
    metric: str = "robust_accuracy"
    direction: str = "minimize"
    n_jobs: int | None = None
    seed: int = 0
    params: dict[str, str] | None = None


_group("hydra/launcher", local=Local, slurm=Slurm, ray=Ray)
_group("hydra/sweeper", grid=Grid, optuna=Optuna)
store(Job, name="raiopt", to_config=_open_to_stages)
store(_HYDRA, group="hydra", name="config", provider="raiopt")
