"""Turns the overrides of a sweep's jobs into tasks, a thousand a second; Hydra alone composes ten."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from raiopt.configs import SUBDIR
from raiopt.jobs import plain
from raiopt.stages import staged
from raiopt.sweep.job_key import key_of
from raiopt.sweep.task import Task


class Composer:
    """Makes tasks of lists of overrides.

    What Hydra composes depends on the options that are chosen for the groups; for each such choice it is asked once.
    The values that jobs set in one choice are written into its config one after another. What is not the plain setting
    of a value (+key, ~key, dictionaries, errors) is composed by Hydra each time, so that its rules and messages hold.

    Args:
        loader: Of Hydra.
        master: The config of the whole sweep.

    Raises:
        ValueError: If hydra.sweep.subdir asks for other names of the jobs' folders.
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

    def tasks(self, jobs: Sequence[Sequence[str]]) -> Iterator[Task]:
        """Yields a task for each job; its number is the position in the list.

        Raises:
            HydraException: If an override fits no config.
        ValueError: If one does not fit a stage.
        """
        for number, overrides in enumerate(jobs):
            yield self.task(list(overrides), number)

    def task(self, overrides: list[str], number: int) -> Task:
        """Returns the task for one job."""
        asked, resolved, choices = self._composed(overrides)
        key = key_of(resolved)
        given = {override.key_or_group: override for override in map(self._parsed, overrides)}
        about = {
            "name": resolved.get("name"),
            "note": resolved.get("note"),
            "job_key": key,
            "job_number": number,
            "command": ["raiopt", *overrides],
            "overrides": {name: choices[name] if name in choices else plain(_at(resolved, name)) for name in given},
            "choices": choices,
            "seed": resolved.get("seed"),
        }
        folder = str(self.folder / key)
        return Task(key=key, folder=folder, config=asked, hydra=self._told(overrides, number, folder), about=about)

    def _told(self, overrides: list[str], number: int, folder: str) -> dict[str, Any]:
        """Returns what Hydra would write into hydra.yaml for this job."""
        hydra: Any = self._hydra
        return {
            **hydra,
            "overrides": {**hydra["overrides"], "task": overrides},
            "job": {**hydra["job"], "num": number, "id": f"{hydra['job']['name']}_{number}"},
            "runtime": {**hydra["runtime"], "output_dir": folder},
        }

    def _composed(self, overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
        """Returns the config as it is asked for, the resolved one, and the choices."""
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
        return _container(config, resolve=False), _container(config, resolve=True), choices

    def _by_hydra(self, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
        config = self.loader.load_sweep_config(self.master, overrides)
        choices = {str(group): str(choice) for group, choice in config.hydra.runtime.choices.items()}
        with open_dict(config):
            config.pop("hydra")
        return config, {group: choice for group, choice in choices.items() if not group.startswith("hydra")}

    def _chooses(self, override: Override) -> bool:
        """Whether it chooses an option of a group; a dictionary for a group sets values, in the order of the words."""
        return self._is_group(override.key_or_group) and not isinstance(override.value(), dict)

    def _find_group(self, name: str) -> bool:
        return "/" in name or bool(self.loader.get_group_options(name))


class _Choice:
    """The config of one choice of groups, into which the values of one job after another are written.

    It is made into dictionaries once; of these, each job gets copies with its own values and what refers to them.
    """

    def __init__(self, config: DictConfig, choices: dict[str, str]) -> None:
        self.choices = choices
        self._fresh, self._known = config, set[str]()  # stages that were seen to fit this choice
        self._asked, self._resolved = _container(config, resolve=False), _container(config, resolve=True)
        self._references = list(_references(self._asked))
        self._begin()

    def _begin(self) -> None:
        self._config = self._fresh.copy()
        self._written: dict[str, str | None] = {}  # for each option the words that set it last, and its value since
        self._values: dict[str, Any] = {}

    def with_values(self, values: Sequence[Override]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns the config with these values, as asked and resolved; None if one of them does not fit."""
        keys = {override.key_or_group for override in values}
        if not self._written.keys() <= keys:  # what another job set there must not stay
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


def _container(config: DictConfig, resolve: bool) -> dict[str, Any]:
    container = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(container, dict)
    return {str(name): value for name, value in container.items()}


def _references(node: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of what refers to other entries; of a list with a reference in it, that of the list."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _references(value, f"{prefix}{name}.")
        elif "${" in str(value):
            yield f"{prefix}{name}"


def _copied(node: dict[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, dict) else value for name, value in node.items()}


def _put(node: Any, name: str, value: Any) -> None:
    """Writes a value that is there under its dotted name; an entry of a list is a KeyError or TypeError."""
    *path, last = name.split(".")
    for part in path:
        node = node[part]
    if not isinstance(node, dict) or last not in node:
        raise KeyError(name)
    node[last] = value


def _is_plain(override: Override) -> bool:
    """Whether it sets one value that is there, which is no dictionary, for these are merged, and no reference."""
    sets = not (override.is_add() or override.is_force_add() or override.is_delete()) and override.package is None
    return sets and not isinstance(override.value(), dict) and "${" not in str(override.value())


def _at(config: Any, name: str) -> Any:
    """Returns the entry of a nested config with this dotted name, None if there is none."""
    for part in name.split("."):
        if isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            config = config.get(part) if isinstance(config, dict) else None
    return config
