"""The command-line words (key=value) of stages, applied on top of the typed config of a job."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from raiopt import checks
from raiopt.config.groups import OPTIONS, option_of
from raiopt.results.words import joined

GROUPS = ("optim", "optim/InnerOpt", "criterion", "init", "schedule")
PARTS = ("optim", "criterion", "init", "schedule", "solver")
JOB_SETTINGS = (
    *("optim.epsilon", "optim.param_ndim", "optim.ball", "solver.epsilons", "solver.max_passes"),
    *("solver.attack_misclassified", "solver.quantize", "solver.verify_8bit"),
)
"""The settings that belong to the whole job and cannot differ between stages."""
BALL_SETTINGS = ("epsilon", "param_ndim", "ball", "pixels")
"""The settings that define the ball of the job's optimizer; the optimizer of a stage inherits them."""
VALUES = ("inf", "nan", "null", "true", "false")
"""Words that Hydra does not read as text, in upper case either."""
TYPE_RULES = {
    "could not be converted to Integer": "must be an integer",
    "could not be converted to Float": "must be a number",
    "is not a valid bool": "must be true or false",
    "to string": "must be a text",
    "is not a ListConfig": "must be a list, as in [1,2]",
    "hint 'typing.List[": "must be a list, as in [1,2]",
    "Dict[": "must be a mapping, as in {name:value}",
    "does not support deletion": "cannot be removed",
    "is not Optional": "is not allowed; it must have a value",
    "Incompatible value 'None'": "cannot be null",
}
"""The rule that a value violates, by a part of OmegaConf's error message."""
INNER_WORD = re.compile(r"""(?<=[\[,])\s*([\w./]+=(?:\[[^\[\]]*\]|[^\[\]{},'"])*)(?=[\],])""")
"""A word without quotes in a list; its value may be a list."""


def words_of(config: DictConfig) -> dict[str, list[str]]:
    """Returns the words of each stage of a job's config, in the order of the stages.

    Raises:
        ValueError: If they are not lists of texts.

    >>> words_of(OmegaConf.create({"stages": {"ce": ["solver.steps=10"]}}))
    {'ce': ['solver.steps=10']}
    """
    stages = config.get("stages") or {}
    found = OmegaConf.to_container(stages, resolve=False) if OmegaConf.is_config(stages) else stages
    if not isinstance(found, dict):
        raise ValueError(f"stages={found!r} must be a mapping of names to lists, as in {{first: [solver.steps=10]}}.")
    for name, words in found.items():
        if not re.fullmatch(r"[A-Za-z][\w-]*", str(name), re.ASCII):
            raise ValueError(f"stages: {name!r} must be letters, digits, '-' or '_', the first a letter.")
        if str(name).lower() in VALUES:
            raise ValueError(f"stages: {name!r} must not be {joined(VALUES, 'or')}: the command reads them as values.")
        if not isinstance(words, list) or any(not isinstance(word, str) for word in words):
            raise ValueError(f"stages.{name} must be a list of words as typed, as in [solver.steps=10].")
    return {str(name): words for name, words in found.items()}


def staged(config: DictConfig) -> dict[str, DictConfig]:
    """Returns the config of each stage of a job, in the order of the stages; empty if there are none.

    If a stage chooses an option of a group, it starts from that option's defaults; a new `optim` keeps the job's ball.

    Raises:
        ValueError: If a word is invalid in its stage; the message names both.
    """
    return {name: _Stage(name, config).changed(words) for name, words in words_of(config).items()}


class _Stage:
    """A stage; `config` is the job's config with the words of the stage applied so far."""

    def __init__(self, name: str, config: DictConfig) -> None:
        self.name, self.config = name, config.copy()
        OmegaConf.set_struct(self.config, True)

    def changed(self, words: list[str]) -> DictConfig:
        values: dict[str, Any] = {}
        for word in words:
            key, value = self._parsed(word)
            if key in values:
                raise self._refused(word, f"{key} is given twice")
            values[key] = value
        chosen = {group: values.pop(group) for group in GROUPS if group in values}
        for group, option in chosen.items():
            self._choose(group, option)
        for key, value in values.items():
            self._set(key, value)
        for key in sorted(OmegaConf.missing_keys(self.config)):
            if key.partition(".")[0] in chosen:
                raise ValueError(f"stages.{self.name}: {key} must be given: {key}=...")
        return self.config

    def _parsed(self, word: str) -> tuple[str, Any]:
        """Returns key and value of a word, which changes a setting or chooses the option of a group."""
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            raise self._refused(word, "it cannot be read; it must be key=value") from None
        changes = override.is_add() or override.is_force_add() or override.is_delete()
        if changes or override.package is not None or override.is_sweep_override():
            raise self._refused(word, "it must be one key=value, without +, ~, @ or several values")
        key, value = override.key_or_group, override.value()
        part = re.split("[./]", key)[0]
        if key in JOB_SETTINGS:
            raise self._refused(word, f"{key} belongs to the job, and is the same in all stages")
        if key not in GROUPS and (part not in PARTS or part == key):
            near = [name for name in _names(self.config) if name.endswith(f".{key}")] or checks.near(key, GROUPS)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise self._refused(word, f"a stage can only change {', '.join(PARTS)}", hint)
        if key.replace(".", "/") in GROUPS and key not in GROUPS:
            group = key.replace(".", "/")
            raise self._refused(word, f"{group} is a group of options; write it with a slash: {group}={value}")
        if "/" in key and key not in GROUPS:
            raise self._refused(word, f"{key} is not a group of options; write a setting with dots")
        if _is_hydras(key.split(".")) or _is_hydras(value):
            raise self._refused(word, "names that begin with an underscore and references (${...}) are not allowed")
        return key, value

    def _choose(self, group: str, option: Any) -> None:
        """Replaces the job's option of a group by another one with its defaults."""
        chosen = OPTIONS[group][checks.choice(f"stages.{self.name}: {group}", option, OPTIONS[group])]
        node = chosen.config()
        if group == "optim/InnerOpt":
            if "InnerOpt" not in list(self.config.optim):
                raise self._refused(f"{group}={option}", "the optim of this stage has no inner optimizer")
            self.config.optim.InnerOpt = node
            return
        before = self.config[group]
        self.config[group] = node
        if group == "optim":
            if chosen.inner:
                self.config.optim.InnerOpt = OPTIONS["optim/InnerOpt"][chosen.inner].config()
            for name, value in _ball(before).items():
                if name in list(node):
                    self.config.optim[name] = value
            balls = [ball["ball"] for part in (self.config.optim, before) if "ball" in (ball := _ball(part))]
            if len(set(balls)) > 1:
                ours, theirs = balls
                rule = f"its ball is {ours}, and the job's is {theirs or 'unbounded'}"
                hint = " Take an optim that has optim.ball, or another one for the job."
                raise self._refused(f"optim={option}", rule, hint)

    def _set(self, key: str, value: Any) -> None:
        try:
            OmegaConf.update(self.config, key, value, merge=True)
        except (ConfigAttributeError, ConfigKeyError):
            known, (parent, _, last) = _names(self.config), key.rpartition(".")
            others = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
            near = [f"{parent}.{name}" for name in checks.near(last, others)]
            near = near or [name for name in known if name.endswith(f".{last}")]
            hint = f" Did you mean {near[0]}?" if near else f" {parent} has {', '.join(others)}." if others else ""
            raise self._refused(f"{key}={value}", f"{key} is not an option", hint) from None
        except OmegaConfBaseException as error:
            text = str(error).partition("\n")[0].rstrip(".")
            raise self._refused(f"{key}={value}", f"it {rule}" if (rule := type_rule(text)) else text) from None

    def _refused(self, word: str, rule: str, hint: str = "") -> ValueError:
        return ValueError(f"stages.{self.name}: {word}: {rule}.{hint}")


def quoted(word: str) -> str:
    """Returns a command-line word in which the words of stages are quoted as required by Hydra.

    >>> quoted("stages.ce=[solver.steps=10,solver.target=[next,3]],['optim=square']")
    'stages.ce=["solver.steps=10","solver.target=[next,3]"],[\\'optim=square\\']'
    >>> quoted("stages={ce:[solver.steps=10],rest:[]}")
    'stages={ce:["solver.steps=10"],rest:[]}'
    """
    if not re.match(r"\+{0,2}stages[.=]", word):
        return word
    key, _, value = word.partition("=")
    return f"{key}={INNER_WORD.sub(_in_quotes, value)}"


def type_rule(text: str) -> str | None:
    """Returns the rule that a value violates, from OmegaConf's message about its type; None for any other message.

    >>> type_rule("Value 'x' of type 'str' could not be converted to Integer")
    'must be an integer'
    """
    return next((rule for part, rule in TYPE_RULES.items() if part in text), None)


def refused_value(text: str) -> str | None:
    """Returns the value quoted in OmegaConf's message about its type; None if there is none.

    >>> refused_value("Value 'x' of type 'str' could not be converted to Integer")
    'x'
    """
    found = re.search(r"Value '(.*)' (?:of|is)", text, re.DOTALL)
    return found and found[1]


def _in_quotes(found: re.Match[str]) -> str:
    return f'"{found[1].strip()}"'


def _ball(optim: DictConfig) -> dict[str, Any]:
    """Returns the settings that describe an optimizer's ball; the ball of a user-defined option is unknown."""
    option = option_of("optim", optim)
    known = {} if option is None else {"ball": option.ball}
    return {**known, **{name: optim[name] for name in BALL_SETTINGS if name in list(optim)}}


def _is_hydras(value: Any) -> bool:
    """Returns whether a value contains something Hydra would act on: a name such as _target_, or a reference."""
    if isinstance(value, dict):
        return any(str(key).startswith("_") or _is_hydras(entry) for key, entry in value.items())
    if isinstance(value, list):
        return any(map(_is_hydras, value))
    return isinstance(value, str) and ("${" in value or value.startswith("_"))


def _names(config: DictConfig) -> list[str]:
    """Returns the dotted names of all settings that a stage can change."""
    parts: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, list(PARTS)), resolve=False)
    return [name for name, _ in dotted(parts) if name not in (*PARTS, *JOB_SETTINGS)]


def dotted(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every entry of nested dictionaries under its dotted name, except those that only Hydra reads.

    >>> list(dotted({"optim": {"_target_": "x", "lr": 0.1}}))
    [('optim', {'_target_': 'x', 'lr': 0.1}), ('optim.lr', 0.1)]
    """
    for key, value in node.items() if isinstance(node, dict) else ():
        if not str(key).startswith("_"):
            yield f"{prefix}{key}", value
            yield from dotted(value, f"{prefix}{key}.")
