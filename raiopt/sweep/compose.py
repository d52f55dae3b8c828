"""Composes the tasks of a sweep from the overrides of its jobs: a thousand per second, compared to Hydra's ten."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from raiopt.config.options import SUBDIR
from raiopt.config.words import staged
from raiopt.results.options import flat
from raiopt.sweep.job_key import container_of, describe_job
from raiopt.sweep.task import Task


class Composer:
    """Makes tasks from lists of overrides.

    Hydra composes each combination of group options only once; the values set by each job are then written into that
    config. Everything except plainly setting a value (+key, ~key, dictionaries, errors) is composed by Hydra for each
    job, so that its rules and messages apply.

    Args:
        loader: Hydra's config loader.
        master: The config of the whole sweep.

    Raises:
        ValueError: If hydra.sweep.subdir is set: the key of a job names its folder.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        given = OmegaConf.to_container(master.hydra.sweep, resolve=False)
        if isinstance(given, dict) and given["subdir"] != SUBDIR:
            raise ValueError(
                f"hydra.sweep.subdir={given['subdir']} has no effect: the key of a job names its folder. Leave it out; "
                "the folder of the sweep is name=... or hydra.sweep.dir=..."
            )
        self.loader, self.master = loader, master
        self.folder = Path(master.hydra.sweep.dir).absolute()
        self._hydra = OmegaConf.to_container(master.hydra, resolve=False, enum_to_str=True)
        self._choices: dict[tuple[str, ...], _Choice] = {}
        self._parsed = lru_cache(maxsize=100_000)(OverridesParser.create().parse_override)
        self._is_group = lru_cache(maxsize=None)(self._find_group)

    def tasks(self, jobs: Sequence[Sequence[str]], first: int = 0) -> list[Task]:
        """Returns a task for each job, numbered in their order."""
        return [self.task(list(overrides), number) for number, overrides in enumerate(jobs, first)]

    def task(self, overrides: list[str], number: int = 0) -> Task:
        """Returns the task for one job.

        Raises:
            HydraException: If an override does not fit the config.
            ValueError: If a stage cannot be read.
        """
        asked, resolved, choices = self._composed(overrides)
        given = dict.fromkeys(self._parsed(word).key_or_group for word in overrides)
        about = describe_job(asked, resolved, choices, given, overrides, number)
        folder = str(self.folder / about["job_key"])
        hydra = self._hydra_config(overrides, number, folder)
        return Task(key=about["job_key"], folder=folder, config=asked, hydra=hydra, about=about)

    def _hydra_config(self, overrides: list[str], number: int, folder: str) -> dict[str, Any]:
        """Returns the content of this job's .hydra/hydra.yaml."""
        hydra: Any = self._hydra
        return {
            **hydra,
            "overrides": {**hydra["overrides"], "task": overrides},
            "job": {**hydra["job"], "num": number, "id": f"{hydra['job']['name']}_{number}"},
            "runtime": {**hydra["runtime"], "output_dir": folder},
        }

    def _composed(self, overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
        """Returns the config with unresolved references, the resolved config, and the choices."""
        parsed = [(text, self._parsed(text)) for text in overrides]
        groups = tuple(text for text, override in parsed if self._chooses(override))
        values = [override for _, override in parsed if not self._chooses(override)]
        if all(map(_is_plain, values)):
            choice = self._choices.get(groups)
            if choice is None:
                choice = self._choices[groups] = _Choice(*self._by_hydra(list(groups)))
            made = choice.with_values(values)
            if made is not None:
                return *made, choice.choices
        config, choices = self._by_hydra(overrides)
        staged(config)
        return container_of(config, resolve=False), container_of(config, resolve=True), choices

    def _by_hydra(self, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
        config = self.loader.load_sweep_config(self.master, overrides)
        choices = {str(group): str(choice) for group, choice in config.hydra.runtime.choices.items()}
        with open_dict(config):
            config.pop("hydra")
        return config, {group: choice for group, choice in choices.items() if not group.startswith("hydra")}

    def _chooses(self, override: Override) -> bool:
        """Returns whether an override chooses an option of a group; a dictionary for a group sets values instead."""
        return self._is_group(override.key_or_group) and not isinstance(override.value(), dict)

    def _find_group(self, name: str) -> bool:
        return "/" in name or bool(self.loader.get_group_options(name))


class _Choice:
    """The config of one combination of group options, into which the values of each job are written.

    It is converted to dictionaries once; each job gets copies of them with its values and the values that refer to
    them.
    """

    def __init__(self, config: DictConfig, choices: dict[str, str]) -> None:
        self.choices = choices
        self._fresh, self._known = config, set[str]()  # stages that fit this choice
        self._asked, self._resolved = container_of(config, resolve=False), container_of(config, resolve=True)
        self._references = [name for name, value in flat(self._asked).items() if "${" in str(value)]
        self._begin()

    def _begin(self) -> None:
        self._config = self._fresh.copy()
        self._written: dict[str, str | None] = {}  # for each option, the word that set it last
        self._values: dict[str, Any] = {}

    def with_values(self, values: Sequence[Override]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns the config with these values, unresolved and resolved; None if a value is invalid."""
        keys = {override.key_or_group for override in values}
        if not self._written.keys() <= keys:  # values of earlier jobs must not persist
            self._begin()
        asked, resolved = _copied(self._asked), _copied(self._resolved)
        try:
            for override in values:
                key = override.key_or_group
                if self._written.get(key, "") != override.input_line:
                    OmegaConf.update(self._config, key, override.value(), merge=True)
                    self._written[key], self._values[key] = override.input_line, self._value(key)
            for key in keys:
                _put(asked, key, self._values[key])
                _put(resolved, key, self._values[key])
            for key in self._references:
                _put(resolved, key, self._value(key))
        except (OmegaConfBaseException, KeyError, TypeError):
            self._begin()
            return None
        if (stages := str(self._config.get("stages"))) not in self._known:
            staged(self._config)  # raises
            self._known.add(stages)
        return asked, resolved

    def _value(self, key: str) -> Any:
        value = OmegaConf.select(self._config, key, throw_on_missing=False)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _copied(node: dict[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, dict) else value for name, value in node.items()}


def _put(node: Any, name: str, value: Any) -> None:
    """Replaces the value at a dotted name; raises KeyError or TypeError for an entry of a list."""
    *path, last = name.split(".")
    for part in path:
        node = node[part]
    if not isinstance(node, dict) or last not in node:
        raise KeyError(name)
    node[last] = value


def _is_plain(override: Override) -> bool:
    """Returns whether an override sets one existing value to a constant; dictionaries would be merged instead."""
    sets = not (override.is_add() or override.is_force_add() or override.is_delete()) and override.package is None
    return sets and not isinstance(override.value(), dict) and "${" not in str(override.value())
