"""The tables of command.md: every option of every group, every setting and every verb, as the code has them."""

import inspect
import io
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any
from unittest import mock

from hydra_zen import get_target
from omegaconf import OmegaConf

from raiopt import optim, perturbations, sampling, zoo
from raiopt.attacks import Attack, Inference
from raiopt.configs import Bounded, Job, store
from raiopt.explain import VERBS, options, typed
from raiopt.listing import USAGE, _yaml_comment
from raiopt.sweep.plugins import register_plugins
from raiopt.sweep.ray_engine import RayEngine
from raiopt.sweep.slurm_engine import SlurmOptions
from raiopt.verbs import carry_out

register_plugins()
DOCUMENTED: dict[str, list[Any]] = {
    "optim": [
        Bounded,
        optim.LpNormedGradientOptim,
        optim.TopQGradientOptimizer,
        optim.ProjectedParameterOptimizer,
        optim.SteepestProjectedOptim,
    ],
    "model": [Inference, zoo.torchvision_model],
    "data": [zoo.image_folder, zoo.torchvision_data],
    "perturbation": [perturbations.PatchPerturbation, perturbations.AffinePerturbation],
    "init": [sampling.uniform_like_linf_n_ball_],
    "solver": [Attack],
    "hydra/launcher": [SlurmOptions, RayEngine],
}
"""Whose docstrings tell the settings of a group, after those of its options and before what `MEANING` says."""

KWARGS = "Keyword arguments for the factory, as in `{depth: 3}`."
FACTORY = "`package.module:function`; modules of the current folder are found too."
MEANING = {
    "optim": {
        "ball": "The ball that the step projects onto: `linf`, `l2`, `l1`, `l0`, or null for none but the box; some "
        "know the first three alone.",
        "c": "The weight of the loss against the squared norm in the first round.",
        "clamp_max": "Larger entries of the gradient become this; null: no bound.",
        "clamp_min": "Smaller entries of the gradient become this; null: no bound.",
        "gamma": "By which share a radius changes at first, above 0, at most 0.5.",
        "lr": "Size of a step, with a schedule of the first one: the learning rate of the inner optimizer, if there is "
        "one. Of `apgd` and `steepest_projected` a multiple of epsilon.",
        "members": "The transforms in their order: names, or `{name: {setting: value}}`.",
        "mu": "The share of its way that a step goes on with.",
        "p_init": "The share of the image that the first squares cover, above 0, at most 1.",
        "q": "The share of the gradient's entries that is zeroed: 0.9 keeps the largest tenth.",
        "searches": "The number of rounds, each with a weight of its own.",
        "seed": "Of the draws of `dq`.",
        "steps": "How many steps its plan is made for; those of the solver unless it is given.",
        "use_default_lr_schedule": "Step t goes the share lr / (2 + t) of the way, t = 0, 1, ...; false: the share lr.",
    },
    "model": {
        "checkpoint": "Weights of your own: a safetensors file, or a state dict of `torch.save`.",
        "factory": f"{FACTORY} It returns a `torch.nn.Module` that makes logits of images.",
        "kwargs": KWARGS,
        "mean": "Of the images that it was trained on, one number or one a channel; null: the weights' own, else 0.",
        "name": "A classifier of torchvision; `raiopt list model` names all.",
        "std": "Likewise; null: the weights' own, else 1.",
    },
    "data": {
        "download": "Fetch the files into `root`.",
        "factory": f"{FACTORY} It returns images and labels, or a data set of such pairs.",
        "indices": 'Positions in the data, `[3,1,7]`, or a slice, `"10:20"` or `::-1`; null: all.',
        "kwargs": KWARGS,
        "limit": "The first so many samples, after `indices`; null: all.",
        "name": "A data set of torchvision; `raiopt list data` names all.",
        "num_shards": "In how many parts the data are split.",
        "root": "The folder of the images, or of the files of torchvision's data set.",
        "shard": "Which of these parts a job takes, counted from 0.",
    },
    "perturbation": {
        "factory": f"{FACTORY} It is called with the images and returns a perturbation.",
        "kwargs": KWARGS,
        "place": "Of the patch: `random` for each sample, `center`, or `[row,column]` of its corner.",
        "region": "`[top,left,height,width]` in pixels.",
    },
    "init": {"std": "Standard deviation of each entry."},
    "schedule": {
        "final": "The share of the step size that it falls to.",
        "shares": "What multiplies the step size in each step, as in `[1,0.5,0.25]`; the last one stays.",
    },
}
"""What the settings are that no docstring tells."""
TORCH = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}


def arguments(documented: Any) -> dict[str, str]:
    """Returns what the section "Args" of a docstring says of each argument, in the words of the command.

    >>> arguments(Bounded)["grad_bias"]
    'Is added to it.'
    """
    section = re.search(r"^Args:\n((?: {4}.*\n|\n)+)", f"{inspect.getdoc(documented)}\n", re.MULTILINE)
    found = re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    words = {"None": "null", "True": "true", "False": "false"}
    told = {}
    for names, text in found:
        line = re.sub(r"\b(None|True|False)\b", lambda match: words[match[0]], " ".join(text.split()))
        told |= dict.fromkeys(names.split(", "), line)
    return {name: text for name, text in told.items() if not text.startswith("See `")}


def meanings(group: str) -> dict[str, str]:
    """Returns what each setting of a group is."""
    targets = [get_target(_node(group, name)) for name in options()[group]]
    told = dict(MEANING.get(group, {}))
    for documented in [*targets, *DOCUMENTED.get(group, [])]:
        told = arguments(documented) | told
    return told


def settings(group: str, name: str) -> dict[str, Any]:
    """Returns the settings of an option and their defaults: "???" for those that have to be given."""
    node = OmegaConf.to_container(OmegaConf.structured(_node(group, name)))
    assert isinstance(node, dict)
    return {str(key): node[key] for key in node if key not in ("InnerOpt", "defaults") and str(key)[0] != "_"}


def _entry(group: str, name: str) -> Any:
    return next(entry for entry in store if (entry["group"], entry["name"]) == (group, name))


def _node(group: str, name: str) -> Any:
    entry = _entry(group, name)
    return entry["node"].perturbation if entry["package"] == "_global_" else entry["node"]


def reference() -> str:
    """Returns the Markdown of all tables."""
    stored = {entry["group"] for entry in store}
    lines = ["```text", USAGE.rstrip(), "```", "", "## For every job", "", *_table(Job(), arguments(Job))]
    for group, names in sorted(options().items(), key=lambda item: item[0].startswith("hydra/")):
        lines += ["", f"## `{group}`", "", *(_group(group, names) if group in stored else _files(group, names))]
    for verb in VERBS:
        lines += ["", f"## `raiopt {verb}`", "", "```text", _help(verb), "```"]
    return "\n".join([*lines, ""])


def _table(node: Any, told: dict[str, str]) -> Iterator[str]:
    yield from ["| setting | default | what it says |", "|---|---|---|"]
    for name, text in told.items():
        yield f"| `{name}` | `{_shown(getattr(node, name))}` | {_cell(text)} |"


def _files(group: str, names: list[str]) -> Iterator[str]:
    yield from ["| option | what it is |", "|---|---|"]
    for name in names:
        yield f"| `{group}={name}` | {_cell(_yaml_comment(group, name))} |"


def _group(group: str, names: list[str]) -> Iterator[str]:
    of = {name: settings(group, name) for name in names}
    keys = dict.fromkeys(key for own in of.values() for key in own)
    first, most = of[names[0]], len(names) / 2
    having = {key: [own[key] for own in of.values() if key in own] for key in first}
    alike = [key for key, found in having.items() if len(found) > most and found.count(first[key]) == len(found)]
    if group == "optim/InnerOpt":
        alike, keys = [], {}  # told by torch
    yield from ["| option | what it is | its own defaults |", "|---|---|---|"]
    for name, own in of.items():
        entry = _entry(group, name)
        also = entry["node"].optim if entry["package"] == "_global_" else {}
        shown = {**{key: value for key, value in own.items() if key not in alike}, **_prefixed("optim", also)}
        yield f"| `{group}={name}` | {_cell(_what(group, name))} | {_cell(_assignments(shown))} |"
    told = meanings(group)
    if keys:
        yield from ["", "| setting | default | what it says |", "|---|---|---|"]
    for key in keys:
        default = f"`{_shown(first[key])}`" if key in alike else ""
        yield f"| `{group.replace('/', '.')}.{key}` | {_cell(default)} | {_cell(told[key])} |"


def _prefixed(prefix: str, node: Any) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in node.items()}


def _assignments(values: dict[str, Any]) -> str:
    return " ".join(f"`{key}={_shown(value)}`" for key, value in values.items())


def _what(group: str, name: str) -> str:
    if group == "optim/InnerOpt":
        page = f"https://docs.pytorch.org/docs/stable/generated/torch.optim.{TORCH[name]}.html"
        return f"[torch.optim.{TORCH[name]}]({page})"
    return (inspect.getdoc(get_target(_node(group, name))) or "").partition("\n")[0]


def _shown(value: Any) -> str:
    return "required" if value == "???" else typed(value) or '""'


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _help(verb: str) -> str:
    with redirect_stdout(io.StringIO()) as out, mock.patch.dict(os.environ, COLUMNS="100"):
        carry_out([verb, "--help"])
    return out.getvalue().rstrip()
