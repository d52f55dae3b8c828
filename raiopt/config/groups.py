"""The options of the command: a table of import paths and overridden defaults. Does not import torch.

The settings of an option, with types, defaults and documentation, are read from the class or function at its import
path: see `raiopt.config.signatures`. hydra-zen makes the typed configs. Named experiments are YAML files in conf/; no
option is defined in both places.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import cached_property
from typing import Any

from hydra_zen import MISSING, ZenStore, builds
from omegaconf import DictConfig, OmegaConf, open_dict

from raiopt.config.signatures import REQUIRED, Argument, constant, described, stub

store = ZenStore(name="raiopt", overwrite_ok=True)
PLUGINS = "hydra_plugins.raiopt"
"""The package in which Hydra finds raiopt's launchers and sweepers."""
NOT_SETTINGS: dict[str, set[str]] = {
    "optim": {"params", "InnerOpt", "generator", "div_by_zero_eps", "p", "transform"},
    "optim/InnerOpt": {"params", "lr", "maximize", "foreach", "capturable", "differentiable", "fused"},
    "model": set(),
    "data": {"geometry", "categories", "num_classes"},
    "perturbation": {"images", "data_or_shape", "generators", "init_fn", "device", "dtype", "delta_ndim", "mask"},
    "init": {"x", "param_ndim", "generator"},
    "criterion": {"logits", "target", "labels", "clean"},
    "schedule": {"optimizer", "steps"},
    "solver": {"optimizer", "perturbation", "init", "criterion", "schedule", "seed"},
    "tracker": {"outputs"},
    "hydra/launcher": set(),
    "hydra/sweeper": set(),
}
"""The arguments of each group's targets that are no settings: passed by the command itself, or not offered."""


@dataclass
class InnerOption:
    """The type of every option of optim/InnerOpt, so that a plain string in its place is rejected."""


@dataclass(frozen=True)
class Option:
    """An option of a group.

    Attributes:
        target: The import path of the class or function that it calls.
        doc: Its description in one line.
        settings: Its settings, each with this option's default.
        fixed: Settings that define the option and cannot be changed.
        optim: Settings of `optim` that the option changes as well.
        inner: Its default option of optim/InnerOpt, if it has an inner optimizer.
        ball: The ball of an optimizer without a setting for the ball.
    """

    group: str
    name: str
    target: str
    doc: str
    settings: Mapping[str, Argument]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    optim: Mapping[str, Any] = field(default_factory=dict)
    inner: str | None = None
    ball: str | None = None

    @cached_property
    def node(self) -> Any:
        """The typed config made by hydra-zen."""
        settings = dict(self.settings)
        if self.inner:
            settings["InnerOpt"] = Argument(InnerOption)
        settings = {
            key: argument._replace(default=MISSING) if argument.default is REQUIRED else argument
            for key, argument in settings.items()
        }
        references = [key for key, argument in settings.items() if str(argument.default).startswith("${")]
        typed = [(key, settings[key].type, settings.pop(key).default) for key in references]  # builds() drops the type
        bases = (InnerOption,) if self.group == "optim/InnerOpt" else ()
        return builds(
            stub(self.target, self.doc, settings),
            populate_full_signature=True,
            zen_partial=None if self.group.startswith("hydra/") else True,
            builds_bases=(*bases, make_dataclass("References", typed)) if typed else bases,
            hydra_defaults=["_self_", {"InnerOpt": self.inner}] if self.inner else None,
        )

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings that users may change, with their defaults; "???" if there is none."""
        values = {key: "???" if each.default is REQUIRED else each.default for key, each in self.settings.items()}
        own = {key: value for key, value in values.items() if key not in self.fixed}
        return own | {f"optim.{key}": value for key, value in self.optim.items()}

    def config(self) -> DictConfig:
        """Returns the typed config without entries that only Hydra understands."""
        found = OmegaConf.structured(self.node)
        with open_dict(found):
            found.pop("defaults", None)
        return found


OPTIONS: dict[str, dict[str, Option]] = {}
"""All of raiopt's built-in options, by group and name; groups come before their nested groups."""


def option_of(group: str, config: Any) -> Option | None:
    """Returns the option of a group from which a config was made; None if it is not a built-in option.

    >>> option_of("optim", OPTIONS["optim"]["l1q"].config()).name
    'l1q'
    """
    if not isinstance(config, Mapping | DictConfig):
        return None
    fitting = [
        option
        for option in OPTIONS[group].values()
        if option.target == config.get("_target_")
        and all(key in config and config[key] == value for key, value in option.fixed.items())
    ]
    return max(fitting, key=lambda option: len(option.fixed), default=None)


SHARED = described("raiopt.optim.bounded.bounded").arguments


def _option(
    group: str,
    name: str,
    path: str,
    *also: str,
    only: Collection[str] = (),
    target: str = "",
    doc: str = "",
    fixed: Mapping[str, Any] = {},
    optim: Mapping[str, Any] = {},
    inner: str | None = None,
    of_ball: str | None = None,
    **values: Any,
) -> None:
    """Stores an option.

    Args:
        path: The class or function whose arguments are the settings.
        also: Further classes or functions whose arguments are settings as well.
        only: The settings that are offered; empty: all except those in `NOT_SETTINGS`.
        target: The import path to call, if it is not `path`.
        fixed: Arguments that define this option and are not settings.
        optim: Settings of the optimizer that this option changes.
        inner: The default option of optim/InnerOpt; None: it has no inner optimizer.
        of_ball: The ball (linf, l2, l1 or l0), if there is no setting `ball`.
        values: Defaults of this option. Those that are not arguments of `path` are arguments of `bounded`.
    """
    found = [described(each) for each in (path, *also)]
    arguments = {key: argument for each in reversed(found) for key, argument in each.arguments.items()}
    kept = {key: arguments[key] for key in only or arguments if key not in NOT_SETTINGS[group]}
    for key, value in {**values, **fixed}.items():
        argument = arguments.get(key) or SHARED[key]
        if key == "ball" and not target:  # only `bounded` works without a ball
            argument = argument._replace(type=str)
        text = argument.doc if argument.doc and not argument.doc.startswith("See `") else ""
        kept[key] = argument._replace(default=value, doc=text or getattr(SHARED.get(key), "doc", ""))
    built = Option(group, name, target or path, doc or found[0].doc, kept, fixed, optim, inner, of_ball)
    OPTIONS.setdefault(group, {})[name] = built
    node = built.node
    if optim:  # it changes settings of another group, so it must be merged at the top level
        node = OmegaConf.create({group: node, "optim": dict(optim)})
        store(node, group=group, name=name, package="_global_", to_config=lambda node: node)
    else:
        store(node, group=group, name=name)


def _optim(name: str, path: str, inner: str | None = "sgd", epsilon: float = 0.1, **values: Any) -> None:
    _option("optim", name, f"raiopt.optim.{path}", inner=inner, epsilon=epsilon, **values)


def _transform(name: str, path: str, **values: Any) -> None:
    """Stores an optimizer option that transforms the gradient and then projects onto a ball."""
    own = constant("raiopt.optim.bounded.DEFAULTS").get(name, {})
    shared = {key: SHARED[key].default for key in ("ball", "param_ndim", "grad_scale", "grad_bias")}
    target, fixed = "raiopt.optim.bounded.bounded", {"transform": name}
    _optim(name, path, target=target, fixed=fixed, **own, **shared, **values)


SEED: dict[str, Any] = {"seed": "${seed}"}
STEPS: dict[str, Any] = {"steps": "${solver.steps}"}
MINIMUM: dict[str, Any] = {"epsilon": float("inf")}
_optim("linf_projected", "LinfProjectedOptim", lr=0.1, of_ball="linf")
_optim("l2_projected", "L2ProjectedOptim", epsilon=1.5, lr=1.5, of_ball="l2")
_optim("l1_projected", "L1ProjectedOptim", epsilon=12.0, lr=12.0, q=0.95, dq=0.05, **SEED, of_ball="l1")
_optim("l0_projected", "L0ProjectedOptim", epsilon=30.0, lr=3.0, of_ball="l0")
_optim("apgd", "AdaptiveStepOptim", lr=1.0, ball="linf", **STEPS)
_optim("steepest_projected", "SteepestProjectedOptim", lr=2.0, ball="linf")
_optim("fmn", "FMNOptim", lr=1.0, ball="l2", **MINIMUM, **STEPS)
_optim("ddn", "DDNOptim", lr=1.0, **MINIMUM, **STEPS, of_ball="l2")
_optim("alma", "ALMAOptim", lr=1.0, **MINIMUM, of_ball="l2")
_optim("cw", "CWOptim", inner="adam", lr=0.1, **MINIMUM, **STEPS, of_ball="l2")
_transform("signed", "SignedGradientOptim", lr=0.1)
_transform("l1_normed", "L1NormedGradientOptim", lr=300.0)
_transform("l2_normed", "L2NormedGradientOptim", lr=3.0)
_transform("steepest", "SteepestGradientOptim", lr=3.0)
_transform("top_q", "TopQGradientOptimizer", lr=30.0, **SEED)
_transform("l1q", "L1qNormedGradientOptim", lr=30.0, **SEED)
_optim("chain", "bounded.bounded", lr=0.025, members=["l1_normed", {"momentum": {"mu": 1.0}}, "signed"], **SEED)
_optim("linf_frank_wolfe", "LinfFrankWolfe", None, lr=2.0, of_ball="linf")
_optim("l2_frank_wolfe", "L2FrankWolfe", None, lr=2.0, epsilon=1.5, of_ball="l2")
_optim("l1_frank_wolfe", "L1FrankWolfe", None, lr=2.0, epsilon=12.0, of_ball="l1")
_optim("square", "SquareOptim", None, ball="linf", **STEPS)
for name, kind, settings in (
    ("sgd", "SGD", ("momentum", "dampening", "nesterov")),
    ("adam", "Adam", ("betas", "eps", "amsgrad")),
    ("adamw", "AdamW", ("betas", "eps", "weight_decay", "amsgrad")),
    ("rmsprop", "RMSprop", ("alpha", "eps", "momentum", "centered")),
):
    _option("optim/InnerOpt", name, f"torch.optim.{kind}", only=settings, doc=f"torch.optim.{kind}.")
INFERENCE, SHARD = "raiopt.fast.Inference", "raiopt.zoo.data.shard_of"
for name, path in (
    ("digits_robust", "digits_robust"),
    ("digits_standard", "digits_standard"),
    ("torchvision", "torchvision_model"),
    ("python", "python_model"),
):
    _option("model", name, f"raiopt.zoo.{path}", INFERENCE)
for name, path in (
    ("digits", "digits"),
    ("image_folder", "image_folder"),
    ("torchvision", "torchvision_data"),
    ("python", "python_data"),
):
    _option("data", name, f"raiopt.zoo.{path}", SHARD)
_option("perturbation", "additive", "raiopt.perturbations.AdditivePerturbation")
_option("perturbation", "masked", "raiopt.perturbations.regions.masked")
_option("perturbation", "python", "raiopt.zoo.factories.python_perturbation")
_option(
    "perturbation",
    "universal",
    "raiopt.perturbations.AdditivePerturbation",
    doc="One perturbation for all samples of a batch, added to each.",
    fixed={"delta_ndim": -1},
    optim={"param_ndim": None},
)
_option("perturbation", "patch", "raiopt.perturbations.regions.patch", optim={"epsilon": 1.0})
_option("perturbation", "affine", "raiopt.perturbations.AffinePerturbation", optim={"epsilon": 1.0, "lr": 0.2})
EPSILON: dict[str, Any] = {"epsilon": "${optim.epsilon}"}
_option("init", "zero", "raiopt.sampling.zeros_like_")
for ball in ("linf", "l2", "l1"):
    _option("init", f"uniform_{ball}", f"raiopt.sampling.uniform_like_{ball}_n_ball_", **EPSILON)
_option("init", "gaussian", "raiopt.sampling.gaussian_like_", std=0.001)
for name in ("cross_entropy", "margin", "probability_margin", "dlr", "targeted_dlr", "kl_divergence"):
    _option("criterion", name.removesuffix("_divergence"), f"raiopt.perturbations.{name}")
for name in ("auto", "constant", "linear", "cosine", "exponential"):
    _option("schedule", name, f"raiopt.optim.schedules.{name}")
_option("solver", "gradient_ascent", "raiopt.attacks.Attack", steps=40)
for name in ("none", "mlflow"):
    _option("tracker", name, f"raiopt.sweep.tracker_options.{name}")
for name, path, kind in (
    ("local", "local.LocalLauncher", "LocalLauncher"),
    ("slurm", "slurm_options.SlurmOptions", "SlurmLauncher"),
    ("ray", "ray.RayLauncher", "RayLauncher"),
):
    _option("hydra/launcher", name, f"raiopt.sweep.{path}", target=f"{PLUGINS}.{kind}")
for name, path in (("grid", "grid.GridSweeper"), ("optuna", "tuning.OptunaSweeper")):
    kind = path.partition(".")[2]
    _option("hydra/sweeper", name, f"raiopt.sweep.{path}", target=f"{PLUGINS}.{kind}")


CHOSEN: dict[str, Any] = {"model": "digits_robust", "data": "digits", "optim": "linf_projected"}
CHOSEN |= {"perturbation": "additive", "init": "zero", "criterion": "cross_entropy", "schedule": "auto"}
CHOSEN |= {"solver": "gradient_ascent", "tracker": "none", "experiment": None}
"""The default option of each group."""
CHOSEN["optim/InnerOpt"] = OPTIONS["optim"][CHOSEN["optim"]].inner
