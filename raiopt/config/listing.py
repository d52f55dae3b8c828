"""The help page and the lists of options in each group."""

from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import OmegaConf

from raiopt import checks
from raiopt.config.explain import typed
from raiopt.config.groups import CHOSEN, OPTIONS
from raiopt.config.sources import composed, options, read_from_yaml
from raiopt.config.words import dotted

USAGE = """raiopt measures the robust accuracy of an image classifier. An attack is an optimizer.

usage: raiopt [key=value ...]                     one job
       raiopt -m [key=value1,value2 ...]          a job for each combination
       raiopt report FOLDER ...                   one page about runs and sweeps, and figures for papers
       raiopt list runs [FOLDER], raiopt show RUN, raiopt export RUN --png DIR
       raiopt rerun RUN                           repeats a run and compares the results
       raiopt track FOLDER                        logs finished runs and sweeps in MLflow
       raiopt doctor                              checks this machine, and estimates how long a run takes
       raiopt list [GROUP]                        the options of a group, and their defaults

  raiopt                                          built-in digits, adversarially trained network, Linf PGD
  raiopt optim=l2_projected optim.epsilon=1.5 solver.steps=40
  raiopt optim/InnerOpt=adam optim.lr=0.01        an option with GROUP=OPTION, a nested group with /
  raiopt -m name=mine optim.param_ndim=-1,1,null optim.lr=0.1,0.5        given again, it runs only missing jobs
  raiopt -m hydra/launcher=slurm hydra.launcher.partition=gpu optim.lr=0.1,0.5
  raiopt model=torchvision model.name=resnet50 model.weights=DEFAULT data=image_folder data.root=DIR
  raiopt experiment=step_size_grid                a named run or sweep; your own with --config-dir DIR
  raiopt report outputs/mine --check              exit status 1 if a result is not trustworthy

flags: --cfg job (show the config), -sc install=bash (tab completion), --version, --hydra-help (all others)
"""


def print_help(words: Sequence[str] = ()) -> int:
    """Prints usage, groups with their options, and every setting with its default."""
    print(USAGE)
    print("groups:")
    for group, names in sorted(options(words).items()):
        print(f"  {group}: {', '.join(names)}")
    print("\ndefaults:")
    config: Any = OmegaConf.to_container(composed([], words))
    del config["hydra"]
    for key, value in dotted(config):
        group = key.replace(".", "/")
        print(f"  {group}={CHOSEN[group]}" if group in CHOSEN else f"  {key}={typed(value)}")
    return 0


def list_options(groups: list[str], words: Sequence[str] = ()) -> int:
    """Prints the options of the named groups with explanations of their settings; without names, all groups."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    known = options(words)
    for group in groups:
        checks.choice("GROUP", group, sorted(known))
    console = Console()

    def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
        console.print()

    for group in groups or sorted(known):
        rows = [(f"{group}={name}", *_described(group, name, words)) for name in known[group]]
        print_table(escape(group), ("option", "what it is", "settings and their defaults"), rows)
        place = group.replace("/", ".")
        if groups and (texts := meanings(group)):
            print_table("", ("setting", "what it means"), [(f"{place}.{key}", text) for key, text in texts.items()])
    for title, names in _by_name(groups):
        console.print(f"[bold]{escape(title)}[/bold]: {escape(', '.join(names))}\n")
    return 0


def _described(group: str, name: str, words: Sequence[str]) -> tuple[str, str]:
    """Returns an option's description, and its settings with their defaults."""
    option = OPTIONS.get(group, {}).get(name)
    if option is None:
        doc, values = read_from_yaml(group, name, words)
    else:
        doc, values = option.doc, option.defaults
    return doc, ", ".join(f"{key}={'required' if value == '???' else typed(value)}" for key, value in values.items())


def meanings(group: str) -> dict[str, str]:
    """Returns the documentation of each setting of a group, from the first option that documents it."""
    found: dict[str, str] = {}
    for option in OPTIONS.get(group, {}).values():
        for key, argument in option.settings.items():
            if key not in option.fixed and not found.get(key):
                found[key] = argument.doc
    return {key: text for key, text in found.items() if text}


def _by_name(groups: list[str]) -> list[tuple[str, list[str]]]:
    """Returns torchvision's names of models and data sets, for explicitly requested groups only."""
    if not {"model", "data"} & set(groups):
        return []
    from raiopt import zoo

    lists = {"model": ("model.name of model=torchvision", zoo.torchvision_models)}
    lists["data"] = ("data.name of data=torchvision", zoo.torchvision_data_sets)
    return [(title, names()) for title, names in (lists[group] for group in groups if group in lists)]
