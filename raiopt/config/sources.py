"""All available options: built-in ones, and those from conf/, `--config-dir` and installed packages."""

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from raiopt.config.groups import OPTIONS
from raiopt.config.signatures import Described, described

CONFIG_DIR = ("--config-dir", "-cd")


def loader(words: Sequence[str] = ()) -> ConfigLoaderImpl:
    """Returns Hydra's config loader, with the search path from these words, raiopt and Hydra's search path plugins.

    Raises:
        ValueError: If `--config-dir` is not a folder.
    """
    path = create_config_search_path("pkg://raiopt.conf")
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, folder = word.partition("=") if word.startswith(CONFIG_DIR) else (before, "=", word)
        if flag in CONFIG_DIR and equals:
            if not Path(folder).is_dir():
                raise ValueError(f"{flag} {folder} is not a folder.")
            path.prepend("command-line", f"file://{Path(folder).absolute()}", SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(path)


def composed(overrides: list[str], words: Sequence[str] = ()) -> DictConfig:
    """Returns the config, including Hydra's, with these overrides; flags in `words` may add sources of options."""
    return loader(words).load_configuration("raiopt", overrides, RunMode.RUN)


def options(words: Sequence[str] = ()) -> dict[str, list[str]]:
    """Returns the names of all options of each config group: built-in ones first, then the others in order."""
    names = {group: dict.fromkeys(own) for group, own in OPTIONS.items()}
    for source in loader(words).repository.get_sources():
        if source.provider != "hydra" and source.scheme() != "structured":  # skip the store, which Hydra would copy
            for group, name in _files(source):
                names.setdefault(group, {})[name] = None
    return {group: list(own) for group, own in names.items()}


def _files(source: ConfigSource, group: str = "") -> Iterator[tuple[str, str]]:
    """Yields group and name of every file in the groups of a source."""
    if group:
        yield from ((group, name) for name in sorted(source.list(group, ObjectType.CONFIG)))
    for name in source.list(group, ObjectType.GROUP):
        yield from _files(source, f"{group}/{name}".lstrip("/"))


def read_from_yaml(group: str, name: str, words: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """Returns the description of an option's YAML file (its first comment, or its target's docstring) and settings."""
    found = loader(words).repository.load_config(f"{group}/{name}")
    assert found is not None
    scheme, _, place = found.path.partition("://")
    root = resources.files(place.replace("/", ".")) if scheme == "pkg" else Path(place)
    text = (root / group / f"{name}.yaml").read_text(encoding="utf-8")
    comments = re.findall(r"^# *(?!@package|[\s#])(.*)", text, re.MULTILINE)
    values: Any = OmegaConf.to_container(found.config)
    target = values.pop("_target_", None)
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key != "InnerOpt"}
    return (comments[0] if comments else _described(target).doc), kept if target else {}


def _described(target: Any) -> Described:
    try:
        return described(str(target))
    except LookupError:
        return Described("", {})
