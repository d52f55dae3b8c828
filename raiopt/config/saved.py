"""Safe reading of the config in a run's folder: everything is checked before anything is used."""

import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from raiopt.config.groups import CHOSEN, OPTIONS, option_of
from raiopt.config.jobs import build
from raiopt.config.options import JobOptions
from raiopt.config.words import refused_value, staged, type_rule
from raiopt.results.files import LinkError, read_file
from raiopt.results.options import flat

if TYPE_CHECKING:
    from raiopt import experiment

GROUPS = [group for group in OPTIONS if not group.startswith("hydra/")]
"""The groups that make up a job."""
MAX_FILE_BYTES, MAX_LEVELS, MAX_ENTRIES = 2**20, 20, 100_000
"""Limits for the size of a saved config, because every entry is checked."""
IMPORT_PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+"
REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")
"""A plain reference to another value, with no surrounding text."""
MAX_SHOWN_CHARACTERS = 80
IGNORED_GROUP = "tracker"
"""The group that sets where runs are logged; a config from somebody else must not set it."""


class UnsafeConfig(ValueError):
    """A saved config that goes beyond raiopt's built-in options; the message names file, line and key."""


class _Node(NamedTuple):
    key: str  # with dots, entries of lists as [0]
    parent: str
    name: str  # in a list, its number
    value: Any  # of a scalar, its text
    line: int


def saved_config(folder: Path | str, allow: Collection[str] = ()) -> DictConfig:
    """Returns the config in a run's folder, which may be untrusted. Nothing that it names is imported or opened.

    The result is a config that the command could have composed: each group is one of raiopt's options, with its
    settings and their types. Settings missing from the file get their defaults; the tracker always does. Functions
    given by name (`model.factory`, `data.factory`, `perturbation.factory`), targets outside raiopt, and
    `data.download=true` must be allowed explicitly.

    Args:
        folder: The folder that contains `.hydra/config.yaml`, a file of at most 1 MB.
        allow: What the config may use beyond raiopt's own options: "package.module:function" or
            "package.module.target" as written in the file, or "data.download".

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeConfig: If it uses anything that is not allowed, or cannot be read.

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
    """Returns the job for the config in a run's folder, with nothing loaded yet; see `saved_config` for the arguments.

    Paths in it (`model.checkpoint`, `data.root`) are opened when the job runs, and read as data only.
    """
    config = saved_config(folder, allow)
    return build(config, choices(config))


def choices(config: DictConfig) -> dict[str, str]:
    """Returns the option of each group from which a saved config was made.

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
    """A config file with checked YAML and the line number of each entry."""

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
        except (
            yaml.YAMLError,
            OmegaConfBaseException,
            ValueError,
        ) as error:  # ValueError: a number with too many digits
            mark = getattr(error, "problem_mark", None)
            parts = [text for name in ("context", "problem") if (text := getattr(error, name, None))]
            why = " ".join(parts) or str(error).partition("\n")[0]
            raise self._refused_at(mark.line + 1 if mark else 1, why) from None
        if not isinstance(given, dict) or not given:
            raise self._refused_at(1, "it must be a mapping of options to their values")
        self.given: dict[Any, Any] = {key: value for key, value in given.items() if key != IGNORED_GROUP}

    def config(self, allowed: set[str]) -> DictConfig:
        """Returns raiopt's typed config with the values of the file; raises for anything unknown."""
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
        """Raises for YAML that parsers read differently, or that expands beyond the size of the file."""
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
        """Returns the typed settings of the option named by a group's `_target_`; without it, of the default option.

        The settings of an allowed target outside raiopt are not checked.
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
        """Raises for references that do not resolve to a value in a few steps, as they might be circular."""
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
        """Raises unless stages only change settings of raiopt's options, none of which names a function."""
        try:
            staged(config)
        except ValueError as error:
            key, _, why = str(error).partition(": ")
            raise self._refused(key, why.rstrip(".")) from None

    def _refused(self, key: str, why: str) -> UnsafeConfig:
        known = key
        while known and known not in self.lines:  # fall back to the line of the enclosing mapping
            known = re.sub(r"\.?[^.\[]*$|\[\d*\]?$", "", known)
        return self._refused_at(self.lines.get(known, 1), f"{key}: {why}" if key else why)

    def _refused_at(self, line: int, why: str) -> UnsafeConfig:
        seen = "".join(
            c if c.isprintable() else repr(c)[1:-1] for c in why
        )  # a terminal would interpret control characters
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
