"""The key that identifies a job, independent of how its options were typed, and the job's fields of run.json."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from raiopt.config.jobs import plain
from raiopt.config.options import store
from raiopt.results.options import flat
from raiopt.results.record import SCHEMA, Record
from raiopt.results.record_reader import escaped
from raiopt.results.records import VOLATILE, is_volatile

VERSIONS = {"job": 1, "model": 1, "data": 1, "optim": 1, "optim/InnerOpt": 1, "perturbation": 1, "init": 1}
VERSIONS |= {"criterion": 1, "schedule": 1, "solver": 1}
"""The version of each option group, part of every job key. It is increased when options of the group change their
meaning but not their names and defaults. `job` stands for the options that belong to no group."""


@cache
def store_defaults(group: str, name: str) -> dict[str, Any] | None:
    """Returns the default values of an option in the store by dotted name; None if there is no such option.

    Args:
        group: The option's group; empty for the options that belong to no group, whose name is "raiopt".
    """
    entry = next((entry for entry in store if (entry["group"] or "", entry["name"]) == (group, name)), None)
    if entry is None:
        return None
    values = container_of(OmegaConf.structured(entry["node"]), resolve=False)
    values.pop("defaults", None)
    is_global = not group or entry["package"] == "_global_"
    return _asked(values) if is_global else flat(values, group.replace("/", "."))


def job_key(config: DictConfig, choices: Mapping[str, str]) -> str:
    """Returns the key of a job's config; choices are the options chosen for its groups."""
    kept = OmegaConf.masked_copy(config, [str(key) for key in config if key not in VOLATILE])
    return key_of(container_of(kept, resolve=True), choices)


def key_of(
    resolved: Mapping[str, Any],
    choices: Mapping[str, str],
    defaults: Callable[[str, str], Mapping[str, Any] | None] = store_defaults,
    versions: Mapping[str, int] = VERSIONS,
) -> str:
    """Returns a hash of ten hexadecimal digits that identifies a job's settings.

    It covers the chosen options and the values that differ from their defaults, but no import paths: renaming a target
    or adding an option with a default does not change the key. For a user-defined option all values count, because its
    defaults are not known here.

    Args:
        resolved: The job's config with references resolved.
        choices: The option chosen for each group.
        defaults: Looks up the default values of an option, as `store_defaults` does.
        versions: The version of each option group.
    """
    groups = {group: str(name) for group, name in choices.items() if group != "experiment" and not is_volatile(group)}
    values = _asked(resolved)
    usual = _usual_values(tuple(sorted(groups.items())), defaults)
    question = {
        "schema": SCHEMA,
        "job": versions["job"],
        "choices": {group: [versions.get(group, 1), name] for group, name in groups.items()},
        "values": {name: value for name, value in values.items() if not _is_usual(value, usual.get(name, ...), values)},
        "absent": sorted(usual.keys() - values.keys()),
        "stages": list((resolved.get("stages") or {}).items()),  # the order of stages is part of the key
    }
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:10]


@cache
def _usual_values(choices: tuple[tuple[str, str], ...], defaults: Callable[..., Any]) -> dict[str, Any]:
    """Returns the default values of all chosen options.

    Groups are sorted by name, so perturbation comes after optim, whose defaults some perturbations change.
    """
    found: dict[str, Any] = {}
    for group, name in [("", "raiopt"), *choices]:
        found |= defaults(group, name) or {}
    return {name: value for name, value in found.items() if value != "???"}


def _is_usual(value: Any, default: Any, values: Mapping[str, Any]) -> bool:
    if isinstance(default, str) and default.startswith("${"):
        default = values.get(default[2:-1], default)
    return type(value) is type(default) and (value == default or value != value)  # NaN is not equal to itself


def _asked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that are part of the key, except stages, which are added separately to keep their order."""
    return flat({key: value for key, value in config.items() if key not in VOLATILE and key != "stages"})


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a job's options by dotted name, as recorded in run.json.

    References to other options are resolved; other references, such as to environment variables, are not.

    Args:
        config: The config with references not resolved.
    """
    values = flat({key: value for key, value in config.items() if key not in VOLATILE})
    options = {}
    for name, value in values.items():
        if "._" in name or name[0] == "_":
            continue
        for _ in range(10 if isinstance(value, str) and value.startswith("${") else 0):  # references may be chained
            value = values.get(value[2:-1], value) if isinstance(value, str) else value
        options[name] = plain(value) if isinstance(value, float | list | dict) else value
    return options


def changed_defaults(record: Record | None, about: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the recorded and the current value of each option whose default changed since this job finished.

    Since equal keys mean equal given values, other values can only differ because a default changed. Options added or
    removed since are ignored.

    Args:
        record: The content of run.json.
        about: What `describe_job` returns now.
    """
    if record is None or (record.status, record.job_key) != ("finished", about["job_key"]):
        return {}
    before, today = record.options, escaped(about["options"])
    both = [(name, before[name], today[name]) for name in today if name in before]
    return {name: (old, new) for name, old, new in both if old != new and "${" not in f"{old}{new}"}


def describe_job(
    config: Mapping[str, Any],
    resolved: Mapping[str, Any],
    choices: Mapping[str, str],
    given: Iterable[str],
    command: list[str],
    number: int = 0,
) -> dict[str, Any]:
    """Returns the fields of run.json that describe a job, without its results.

    Args:
        config: The config with references not resolved.
        resolved: The config with references resolved.
        choices: The option chosen for each group.
        given: Names of the options that were given.
        command: The command-line words that repeat the job.
        number: Its number in the sweep.
    """
    return {
        "name": resolved.get("name"),
        "note": resolved.get("note"),
        "job_key": key_of(resolved, choices),
        "job_number": number,
        "command": ["raiopt", *command],
        "overrides": {name: choices[name] if name in choices else plain(value_at(resolved, name)) for name in given},
        "choices": dict(choices),
        "options": options_of(config),
        "seed": resolved.get("seed"),
    }


def value_at(config: Any, name: str) -> Any:
    """Returns the entry of a nested config at this dotted name, None if there is none."""
    for part in name.split("."):
        if isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            config = config.get(part) if isinstance(config, Mapping) else None
    return config


def container_of(config: DictConfig, resolve: bool) -> dict[str, Any]:
    """Returns a config as dictionaries and lists."""
    container = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(container, dict)
    return {str(name): value for name, value in container.items()}


def checked_name(name: str) -> str:
    """Returns the name of a run or sweep; raises unless it is a valid folder name."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(f"name={name!r} must be letters, digits, '.', '-' or '_', the first a letter or digit.")
    return name


def register_resolvers() -> None:
    """Registers OmegaConf resolvers for folder names, used in the config as ${raiopt....:}.

    Results are cached in the config, so that all jobs of a sweep have the same start time.
    """

    def sweep_folder(outputs: str, name: str | None) -> str:
        if not outputs:
            raise ValueError(f"outputs={outputs!r} must name a folder; the default is outputs=outputs.")
        return f"{outputs}/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}" if name is None else f"{outputs}/{checked_name(name)}"

    def run_folder(outputs: str, name: str | None, key: str) -> str:
        folder = sweep_folder(outputs, name)
        return folder if name is None else f"{folder}/{key}"

    def key(*, _root_: DictConfig) -> str:
        return job_key(_root_, _root_.hydra.runtime.choices)

    OmegaConf.register_new_resolver("raiopt.sweep_folder", sweep_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("raiopt.run_folder", run_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("raiopt.job_key", key, replace=True)
