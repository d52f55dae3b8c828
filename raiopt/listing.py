"""What can be asked for: the help page, and the options of each group."""

import inspect
from collections.abc import Iterator
from typing import Any

from hydra_zen import get_target
from omegaconf import OmegaConf

from raiopt import checks
from raiopt.configs import INNER, Job, store
from raiopt.explain import options, typed

USAGE = """raiopt finds the smallest changes of an input that break an image classifier. An attack is an optimizer.

usage: raiopt [key=value ...]                     one job
       raiopt -m [key=value1,value2 ...]          a job for each combination
       raiopt report FOLDER ...                   a page about runs and sweeps, and figures for papers
       raiopt list runs [FOLDER], raiopt show RUN, raiopt export RUN --png DIR
       raiopt rerun RUN                           repeats a run and compares
       raiopt doctor                              what this machine has, and how long a run would take
       raiopt list [GROUP]                        what a group offers, and its defaults

  raiopt                                          built-in digits, adversarially trained network, Linf PGD
  raiopt optim=l2_projected optim.epsilon=1.5 solver.steps=40
  raiopt optim/InnerOpt=adam optim.lr=0.01        a group's option with =, a group inside a group with /
  raiopt -m name=mine optim.param_ndim=-1,1,null optim.lr=0.1,0.5        again, it runs what is missing
  raiopt -m hydra/launcher=slurm hydra.launcher.partition=gpu optim.lr=0.1,0.5
  raiopt model=torchvision model.name=resnet50 model.weights=DEFAULT data=image_folder data.root=DIR
  raiopt experiment=step_size_grid                a named run or sweep; one's own with --config-dir DIR
  raiopt report outputs/mine --check              exit status 1 if a result cannot be believed

flags: --cfg job (show the config), -sc install=bash (tab completion), --version, --hydra-help (all others)
"""


def print_help() -> int:
    """Prints usage, groups with their options, and every setting with its default."""
    from hydra import compose, initialize_config_module

    print(USAGE)
    print("groups:")
    for group, names in sorted(options().items()):
        print(f"  {group}: {', '.join(names)}")
    print("\ndefaults:")
    chosen = {group: name for entry in Job().defaults if isinstance(entry, dict) for group, name in entry.items()}
    chosen["optim/InnerOpt"] = INNER
    with initialize_config_module("raiopt.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("raiopt"))
    for key, value in _settings(_without_targets(config)):
        print(f"  {key}={chosen.get(key) or typed(value)}")
    return 0


def _settings(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every key of a nested config, a group before what is in it, with its value."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield f"{prefix.replace('.', '/')}{key}", None  # a group: its option stands there
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _without_targets(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    return {key: _without_targets(value) for key, value in node.items() if not str(key).startswith("_")}


def list_options(groups: list[str]) -> int:
    """Prints what the groups offer; without a name, all groups."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    known = options()
    for group in groups:
        checks.choice("raiopt list", group, sorted(known))
    console = Console()
    for group in groups or sorted(known):
        table = Table(title=escape(group), title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("option", "what it is", "settings and their defaults"):
            table.add_column(column, overflow="fold")
        for name in known[group]:
            table.add_row(f"{escape(group)}={escape(name)}", *map(escape, _described(group, name)))
        console.print(table)
        console.print()
    for title, names in _by_name(groups):
        console.print(f"[bold]{escape(title)}[/bold]: {escape(', '.join(names))}\n")
    return 0


def _described(group: str, name: str) -> tuple[str, str]:
    """Returns the first line of the documentation of an option, and its settings."""
    entry = next((e for e in store if (e["group"], e["name"]) == (group, name)), None)
    if entry is None:
        return _yaml_comment(group, name), ""
    node = entry["node"]
    also = {}
    if entry["package"] == "_global_":
        node, also = node.perturbation, {f"optim.{key}": value for key, value in node.optim.items()}
    target = get_target(node)
    settings = _without_targets(OmegaConf.to_container(OmegaConf.structured(node)))
    settings.pop("InnerOpt", None)
    settings.pop("defaults", None)
    settings |= also
    text = ", ".join(f"{key}={'required' if value == '???' else typed(value)}" for key, value in settings.items())
    return (inspect.getdoc(target) or "").partition("\n")[0], text


def _yaml_comment(group: str, name: str) -> str:
    """Returns the first comment of a file in conf/, below its package line."""
    from importlib import resources

    text = (resources.files("raiopt.conf") / group / f"{name}.yaml").read_text(encoding="utf-8")
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    return comments[0] if comments else ""


def _by_name(groups: list[str]) -> list[tuple[str, list[str]]]:
    """Returns the names that torchvision offers for the groups that were asked for one by one."""
    if not {"model", "data"} & set(groups):
        return []
    from raiopt import zoo

    lists = {"model": ("model.name of model=torchvision", zoo.torchvision_models)}
    lists["data"] = ("data.name of data=torchvision", zoo.torchvision_data_sets)
    return [(title, names()) for title, names in (lists[group] for group in groups if group in lists)]
