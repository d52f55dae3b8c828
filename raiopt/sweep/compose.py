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

from raiopt.jobs import plain
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
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
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
        """
        for number, overrides in enumerate(jobs):
            yield self.task(list(overrides), number)

    def task(self, overrides: list[str], number: int) -> Task:
        """Returns the task for one job."""
        config, choices = self._composed(overrides)
        resolved = OmegaConf.to_container(config, resolve=True)
        unresolved = OmegaConf.to_container(config, resolve=False)
        assert isinstance(resolved, dict)
        assert isinstance(unresolved, dict)
        key = key_of({str(name): value for name, value in resolved.items()})
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
        config = {str(name): value for name, value in unresolved.items()}
        return Task(key=key, folder=folder, config=config, hydra=self._told(overrides, number, folder), about=about)

    def _told(self, overrides: list[str], number: int, folder: str) -> dict[str, Any]:
        """Returns what Hydra would write into hydra.yaml for this job."""
        hydra: Any = self._hydra
        return {
            **hydra,
            "overrides": {**hydra["overrides"], "task": overrides},
            "job": {**hydra["job"], "num": number, "id": f"{hydra['job']['name']}_{number}"},
            "runtime": {**hydra["runtime"], "output_dir": folder},
        }

    def _composed(self, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
        parsed = [self._parsed(text) for text in overrides]
        groups = [
            text for text, override in zip(overrides, parsed, strict=True) if self._is_group(override.key_or_group)
        ]
        values = [override for override in parsed if not self._is_group(override.key_or_group)]
        if all(_is_plain(override) for override in values):
            choice = self._choices.get(tuple(groups))
            if choice is None:
                choice = self._choices[tuple(groups)] = _Choice(*self._by_hydra(groups))
            config = choice.with_values(values)
            if config is not None:
                return config, choice.choices
        return self._by_hydra(overrides)

    def _by_hydra(self, overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
        config = self.loader.load_sweep_config(self.master, overrides)
        choices = {str(group): str(choice) for group, choice in config.hydra.runtime.choices.items()}
        with open_dict(config):
            config.pop("hydra")
        return config, {group: choice for group, choice in choices.items() if not group.startswith("hydra")}

    def _find_group(self, name: str) -> bool:
        return "/" in name or bool(self.loader.get_group_options(name))


class _Choice:
    """The config of one choice of groups, into which the values of one job after another are written."""

    def __init__(self, config: DictConfig, choices: dict[str, str]) -> None:
        self.config, self.choices = config, choices
        self._fresh = config.copy()
        self._keys: frozenset[str] = frozenset()

    def with_values(self, values: Sequence[Override]) -> DictConfig | None:
        """Returns the config with these values; None if one of them does not fit."""
        keys = frozenset(override.key_or_group for override in values)
        if self._keys - keys:  # what another job set there must not stay
            self.config, self._keys = self._fresh.copy(), frozenset()
        self._keys |= keys
        try:
            for override in values:
                OmegaConf.update(self.config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:
            self.config, self._keys = self._fresh.copy(), frozenset()
            return None
        return self.config


def _is_plain(override: Override) -> bool:
    """Whether it sets one value that is there; a dictionary would be merged into that of another job."""
    sets = not (override.is_add() or override.is_force_add() or override.is_delete()) and override.package is None
    return sets and not isinstance(override.value(), dict)


def _at(config: Any, name: str) -> Any:
    """Returns the entry of a nested config with this dotted name, None if there is none."""
    for part in name.split("."):
        if isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        else:
            config = config.get(part) if isinstance(config, dict) else None
    return config
