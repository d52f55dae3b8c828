"""The hydra-zen store: every config group of the command, typed. Imports no torch.

Building blocks live here, named experiments and sweeps as YAML in conf/; the same option never lives in both.
"""

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from hydra.conf import HydraConf, JobConf, RunDir, SweepDir
from hydra_zen import MISSING, ZenStore, make_custom_builds_fn
from omegaconf import OmegaConf

from raiopt import builders as b

partial = make_custom_builds_fn(zen_partial=True, populate_full_signature=True)
INNER = "sgd"
store = ZenStore(name="raiopt", overwrite_ok=True)


@dataclass
class InnerOption:
    """The type of every option of optim/InnerOpt, so that a plain text in its place is refused."""


@dataclass
class Optim:
    """What every option of optim lists.

    Args:
        lr: Step size, the learning rate of the inner optimizer.
        epsilon: Radius of the ball, in units of pixels in [0, 1].
        param_ndim: Over how many trailing dimensions transform and ball extend; -1: each sample, null: the batch.
        grad_scale: Multiplies the transformed gradient.
        grad_bias: Is added to it.
    """

    InnerOpt: InnerOption = MISSING
    lr: float = 0.025
    epsilon: float = 0.1
    param_ndim: int | None = -1
    grad_scale: float = 1.0
    grad_bias: float = 0.0


def _group(group: str, **options: Any) -> None:
    for name, node in options.items():
        store(node, group=group, name=name)


def _optim(function: Any, **defaults: float) -> Any:
    typed = [(f.name, f.type, defaults[f.name]) for f in fields(Optim) if f.name in defaults]
    base = make_dataclass("Optim", typed, bases=(Optim,))  # builds() would lose the types of these fields
    return partial(function, builds_bases=(base,), hydra_defaults=["_self_", {"InnerOpt": INNER}])


_group(
    "optim",
    linf_projected=_optim(b.linf_projected),
    l2_projected=_optim(b.l2_projected, epsilon=1.5, lr=0.3),
    signed=_optim(b.signed),
    l1_normed=_optim(b.l1_normed, lr=300.0),
    l2_normed=_optim(b.l2_normed, lr=3.0),
)
_group(
    "optim/InnerOpt",
    **{f.__name__: partial(f, builds_bases=(InnerOption,)) for f in (b.sgd, b.adam, b.adamw, b.rmsprop)},
)
_group(
    "model",
    digits_robust=partial(b.digits_robust),
    digits_standard=partial(b.digits_standard),
    torchvision=partial(b.torchvision_model, name=MISSING),
    python=partial(b.python_model, factory=MISSING),
)
_group(
    "data",
    digits=partial(b.digits),
    image_folder=partial(b.image_folder, root=MISSING),
    torchvision=partial(b.torchvision_data, name=MISSING, root=MISSING),
    python=partial(b.python_data, factory=MISSING),
)
_group("perturbation", additive=partial(b.additive))
store(
    OmegaConf.create({"perturbation": partial(b.universal), "optim": {"param_ndim": None}}),
    group="perturbation",
    name="universal",
    package="_global_",
    to_config=lambda node: node,
)
_group(
    "init",
    zero=partial(b.zero),
    uniform_linf=partial(b.uniform_linf, epsilon="${optim.epsilon}"),
    uniform_l2=partial(b.uniform_l2, epsilon="${optim.epsilon}"),
)
_group("criterion", cross_entropy=partial(b.cross_entropy), margin=partial(b.margin))
_group("solver", gradient_ascent=partial(b.gradient_ascent))


@dataclass
class Job:
    """The options of a job that belong to no group.

    Args:
        name: Of the run or sweep: its folder below `outputs`. null: the date and time.
        outputs: The folder of all results.
        note: Free text for run.json.
        seed: Key of all random starts.
        device: auto, cpu, cuda (cuda:1, ...) or mps.
        threads: Of torch on the CPU; null leaves torch's choice.
        batch_size: Samples attacked together; null: by the size of the images, 256 at most.
        save: Which perturbations are stored: fooled, all or none.
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
            {"solver": "gradient_ascent"},
            {"experiment": None},
        ]
    )
    name: str | None = None
    outputs: str = "outputs"
    note: str = ""
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    batch_size: int | None = None
    save: str = "fooled"
    model: Any = MISSING
    data: Any = MISSING
    optim: Any = MISSING
    perturbation: Any = MISSING
    init: Any = MISSING
    criterion: Any = MISSING
    solver: Any = MISSING


_JOB_LOG = {
    "version": 1,
    "formatters": {
        "file": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
        "terminal": {"format": "%(message)s"},
    },
    "handlers": {
        "file": {
            "class": "logging.FileHandler",
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
        {"launcher": "basic"},
        {"sweeper": "basic"},
        {"help": "default"},
        {"hydra_help": "default"},
        {"hydra_logging": "none"},
        {"job_logging": "none"},
        {"callbacks": None},
        {"env": "default"},
        "_self_",
    ],
    run=RunDir("${raiopt.run_folder:${outputs},${name},${raiopt.job_key:}}"),
    sweep=SweepDir("${raiopt.sweep_folder:${outputs},${name}}", "${raiopt.job_key:}"),
    job=JobConf(name="raiopt", chdir=False),
    job_logging=_JOB_LOG,
    hydra_logging=_SWEEP_LOG,
    callbacks={"raiopt": {"_target_": "raiopt.sweep.recorder.SweepRecorder"}},
    output_subdir=None,
)
store(Job, name="raiopt", to_config=lambda node: node)
store(_HYDRA, group="hydra", name="config", provider="raiopt")
