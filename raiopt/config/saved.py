"""The config in a run's folder, read as data: all of it is checked before any of it is used."""

import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from raiopt.config.jobs import build
from raiopt.config.options import CHOSEN, OPTIONS, JobOptions, option_of
from raiopt.config.words import refused_value, staged, type_rule
from raiopt.results.files import LinkError, read_file
from raiopt.results.options import flat

if TYPE_CHECKING:
    from raiopt import experiment

GROUPS = [group for group in OPTIONS if not group.startswith("hydra/")]
"""The groups that make up a job."""
MAX_FILE_BYTES, MAX_LEVELS, MAX_ENTRIES = 2**20, 20, 100_000
"""Limits of a config that is read: every entry is checked."""
IMPORT_PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+"
REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")
"""A reference to another value, without anything around it."""
MAX_SHOWN_CHARACTERS = 80
IGNORED_GROUP = "tracker"
"""The group that decides where runs are logged: a config of others does not."""


class UnsafeConfig(ValueError):
    """A saved config that asks for more than raiopt's own options do; the message names file, line and key."""


class _Node(NamedTuple):
    key: str  # with dots, entries of lists as [0]
    parent: str
    name: str  # in a list, its number
    value: Any  # of a scalar, its text
    line: int


def saved_config(folder: Path | str, allow: Collection[str] = ()) -> DictConfig:
    """Returns the config in a run's folder, which may come from anybody. Nothing is imported or opened for it.

    It is a config that the command could have composed: each group is one of raiopt's options, with its settings and
    their types. A setting that the file lacks has its default, as the tracker always has. Functions given by name
    (`model.factory`, `data.factory`, `perturbation.factory`), targets that are not raiopt's, and `data.download=true`
    have to be allowed.

    Args:
        folder: Holds `.hydra/config.yaml`, a file of at most 1 MB.
        allow: What may be used although it is not part of raiopt: "package.module:function" or "package.module.target"
            as in the file, or "data.download".

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeConfig: If it asks for anything else, or cannot be read.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / ".hydra").mkdir()
    >>> _ = (folder / ".hydra" / "config.yaml").write_text("seed: 3\\nmodel:\\n  _target_: os.system\\n")
    >>> try:
    ...     saved_config(folder)
    ... except UnsafeConfig as error:
    ...     print(str(error).partition("config.yaml, ")[2])
    line 3: model._target_: 'os.system' is not a target of raiopt's options. If you trust this code: --allow os.system.
    """
    return _Saved(Path(folder, ".hydra", "config.yaml")).config({allow} if isinstance(allow, str) else set(allow))


def saved_job(folder: Path | str, allow: Collection[str] = ()) -> "experiment.Job":
    """Returns the job whose config is in a run's folder, with nothing loaded yet; arguments and errors as above.

    Paths in it (`model.checkpoint`, `data.root`) are opened when it runs, as data.
    """
    config = saved_config(folder, allow)
    return build(config, choices(config))


def choices(config: DictConfig) -> dict[str, str]:
    """Returns the option of each group that a saved config was made from.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / ".hydra").mkdir()
    >>> _ = (folder / ".hydra" / "config.yaml").write_text("optim: {_target_: raiopt.optim.L2ProjectedOptim}")
    >>> {group: choice for group, choice in choices(saved_config(folder)).items() if group.startswith("optim")}
    {'optim': 'l2_projected', 'optim/InnerOpt': 'sgd'}
    """
    nodes = {group: OmegaConf.select(config, group.replace("/", ".")) for group in GROUPS}
    options = {group: option_of(group, node) for group, node in nodes.items() if node is not None}
    return {group: option.name if option else str(nodes[group]["_target_"]) for group, option in options.items()}


class _Saved:
    """A config file whose YAML was checked, and the line of each entry."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, dict[str, int]()
        text = self._text()
        try:
            self._check_syntax(text)
            for node in _nodes(yaml.compose(text, yaml.SafeLoader)):
                self.lines[node.key] = node.line
                if not f"{node.key}.".startswith(f"{IGNORED_GROUP}."):
                    self._check(node)
            given = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        except UnsafeConfig:
            raise
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:  # the last of a number too long
            mark = getattr(error, "problem_mark", None)
            parts = [text for name in ("context", "problem") if (text := getattr(error, name, None))]
            why = " ".join(parts) or str(error).partition("\n")[0]
            raise self._refused_at(mark.line + 1 if mark else 1, why) from None
        if not isinstance(given, dict) or not given:
            raise self._refused_at(1, "it must be a mapping of options to their values")
        self.given: dict[Any, Any] = {key: value for key, value in given.items() if key != IGNORED_GROUP}

    def config(self, allowed: set[str]) -> DictConfig:
        """Returns raiopt's typed config with the values of the file; what it does not know is refused."""
        config = OmegaConf.structured(JobOptions)
        with open_dict(config):
            del config["defaults"]
        for group in GROUPS:
            place = group.replace("/", ".")
            parent, _, name = place.rpartition(".")
            if name in list(OmegaConf.select(config, parent) if parent else config):
                OmegaConf.update(config, place, self._option(group, place, allowed), merge=False)
        try:
            merged = OmegaConf.merge(config, self.given)
            assert isinstance(merged, DictConfig)
            self._check_references(OmegaConf.to_container(merged, resolve=False))
            OmegaConf.to_container(merged, resolve=True)
        except OmegaConfBaseException as error:
            unknown = isinstance(error, (ConfigAttributeError, ConfigKeyError))
            text = "no option of raiopt has this name" if unknown else str(error).partition("\n")[0]
            value, rule = refused_value(text), type_rule(text)
            why = f"{'it' if value is None else _shown(value)} {rule}" if rule else text
            raise self._refused(str(getattr(error, "full_key", None) or ""), why) from None
        for key in sorted(OmegaConf.missing_keys(merged)):
            raise self._refused(key, "its value is missing")
        self._check_allowed(merged, allowed)
        self._check_stages(merged)
        return merged

    def _text(self) -> str:
        try:
            content = read_file(self.path, MAX_FILE_BYTES + 1)
        except LinkError as error:
            raise UnsafeConfig(f"{error}  A run's folder must contain the config itself.") from None
        except (FileNotFoundError, NotADirectoryError):
            missing = f"{self.path} does not exist: give the folder of one job, as in outputs/NAME/JOB."
            raise FileNotFoundError(missing) from None
        if len(content) > MAX_FILE_BYTES:
            raise UnsafeConfig(
                f"{self.path} is larger than {MAX_FILE_BYTES:,} bytes, too large for the config of a run."
            )
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise self._refused_at(line, "it must be text in UTF-8") from None

    def _check_syntax(self, text: str) -> None:
        """Refuses YAML that readers understand differently, or that expands beyond the size of the file."""
        depth = 0
        for number, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
            starts = isinstance(event, yaml.CollectionStartEvent)
            depth += starts - isinstance(event, yaml.CollectionEndEvent)
            line = event.start_mark.line + 1
            if getattr(event, "anchor", None) is not None:
                raise self._refused_at(line, "anchors and aliases (&, *) are not allowed in a saved config")
            if getattr(event, "tag", None) is not None:
                raise self._refused_at(line, f"tags are not allowed in a saved config: {_shown(event.tag)}")
            if number > MAX_ENTRIES:
                raise self._refused_at(line, f"more than {MAX_ENTRIES:,} entries are not allowed in a saved config")
            if depth > MAX_LEVELS:
                raise self._refused_at(line, f"more than {MAX_LEVELS} levels are not allowed in a saved config")

    def _check(self, node: _Node) -> None:
        places = [group.replace("/", ".") for group in GROUPS]
        reserved = node.name in ("_target_", "_partial_") and node.parent in places
        if node.name.startswith("_") and not reserved:
            raise self._refused(node.key, "names that begin with an underscore are Hydra's, and not allowed here")
        if node.name == "<<" or not re.fullmatch(r"[^.[\]]+", node.name):
            raise self._refused_at(node.line, f"{_shown(node.name)} is not the name of a setting")
        if isinstance(node.value, str) and "${" in node.value and _reference(node.value) is None:
            why = f"{_shown(node.value)} is not a value; only a plain reference, such as ${{optim.epsilon}}, is allowed"
            raise self._refused(node.key, why)

    def _option(self, group: str, place: str, allowed: set[str]) -> DictConfig:
        """Returns the typed settings of the option that a group's `_target_` names; the default one if there is none.

        The settings of a target that is allowed, but not one of raiopt's own, are taken as they are.
        """
        given = self.given
        for name in place.split("."):
            if name not in given:
                return OPTIONS[group][CHOSEN[group]].config()
            given = given[name]
            if not isinstance(given, dict):
                raise self._refused(place, f"{_shown(given)} is not an option of a group; it must be a mapping")
        if given.get("_partial_", True) is not True:
            raise self._refused(f"{place}._partial_", "it must be true")
        if (option := option_of(group, given)) is not None:
            return option.config()
        target = given.get("_target_")
        is_path = isinstance(target, str) and re.fullmatch(IMPORT_PATH, target)
        if is_path and target in allowed:
            return OmegaConf.create(given)
        hint = f". If you trust this code: --allow {target}" if is_path else ""
        raise self._refused(f"{place}._target_", f"{_shown(target)} is not a target of raiopt's options{hint}")

    def _check_references(self, config: Any) -> None:
        """Refuses references that do not lead to one value in a few steps: they might never end."""
        values = flat(config, lists=True)
        for key, value in values.items():
            name: Any = None
            for _ in range(MAX_LEVELS):
                name = _reference(value)
                if name not in values:
                    break
                value = values[name]
            if name is not None:
                raise self._refused(key, f"${{{name}}} leads to no value")

    def _check_allowed(self, config: DictConfig, allowed: set[str]) -> None:
        for group in GROUPS:
            place = group.replace("/", ".")
            settings = OmegaConf.select(config, place) or {}
            if "factory" in settings and (name := str(settings["factory"])) not in allowed:
                why = f"{_shown(name)} would be imported and run. If you trust this code: --allow {shlex.quote(name)}"
                raise self._refused(f"{place}.factory", why)
            if "download" in settings and settings["download"] and f"{place}.download" not in allowed:
                why = f"it would write into {_shown(settings['root'])}. If you want that: --allow {place}.download"
                raise self._refused(f"{place}.download", why)

    def _check_stages(self, config: DictConfig) -> None:
        """Refuses stages that change anything but settings of raiopt's options, none of which names a function."""
        try:
            staged(config)
        except ValueError as error:
            key, _, why = str(error).partition(": ")
            raise self._refused(key, why.rstrip(".")) from None

    def _refused(self, key: str, why: str) -> UnsafeConfig:
        known = key
        while known and known not in self.lines:  # else the line of the mapping that contains it
            known = re.sub(r"\.?[^.\[]*$|\[\d*\]?$", "", known)
        return self._refused_at(self.lines.get(known, 1), f"{key}: {why}" if key else why)

    def _refused_at(self, line: int, why: str) -> UnsafeConfig:
        seen = "".join(c if c.isprintable() else repr(c)[1:-1] for c in why)  # a terminal would obey the others
        return UnsafeConfig(f"{self.path}, line {line}: {seen}.")


def _nodes(root: Any) -> Iterator[_Node]:
    """Yields every entry of a YAML document, in order."""
    todo = [("", root)]
    while todo:
        parent, node = todo.pop()
        entries = []
        if isinstance(node, yaml.MappingNode):
            names = [key.value if isinstance(key, yaml.ScalarNode) else "" for key, _ in node.value]
            keys = [f"{parent}.{name}".lstrip(".") for name in names]
            entries = [(name, key, *pair) for name, key, pair in zip(names, keys, node.value, strict=True)]
        elif isinstance(node, yaml.SequenceNode):
            entries = [(str(number), f"{parent}[{number}]", value, value) for number, value in enumerate(node.value)]
        for name, key, first, value in entries:
            yield _Node(key, parent, name, value.value, first.start_mark.line + 1)
            todo.append((key, value))


def _reference(value: Any) -> str | None:
    found = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return found and found[1]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."
