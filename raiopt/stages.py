"""The stages of a job: for each, a list of what one would type, resolved from the job's config and the store alone."""

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from raiopt import checks
from raiopt.configs import INNER, INNERS, store

GROUPS = ("optim", "optim/InnerOpt", "criterion", "init", "schedule")
PARTS = ("optim", "criterion", "init", "schedule", "solver")
SHARED = (
    *("optim.epsilon", "optim.param_ndim", "optim.ball", "solver.epsilons", "solver.curve", "solver.max_passes"),
    *("solver.attack_misclassified", "solver.quantize", "solver.verify_8bit"),
)
"""What a job asks once, for all of its stages."""
KEPT = ("epsilon", "param_ndim", "ball", "pixels")
"""What another optimizer takes over from that of the job: in which ball it looks."""
BALLS = {"linf": "linf", "l2": "l2", "l1": "l1", "l0": "l0", "ddn": "l2", "alma": "l2", "cw": "l2"}
"""By how its name begins, the ball of an optimizer that has no option for it."""
INNER_WORD = re.compile(r"""(?<=[\[,])\s*([\w./]+=(?:\[[^\[\]]*\]|[^\[\]{},'"])*)(?=[\],])""")
"""In a list, a word without quotes; its value may be a list."""


def words_of(config: DictConfig) -> dict[str, list[str]]:
    """Returns the words of each stage of a job's config, in the order of the stages.

    Raises:
        ValueError: If they are no lists of texts, or hold a reference.

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
        if not isinstance(words, list) or any(not isinstance(word, str) for word in words):
            raise ValueError(f"stages.{name} must be a list of words as one types them, as in [solver.steps=10].")
    return {str(name): words for name, words in found.items()}


def staged(config: DictConfig) -> dict[str, DictConfig]:
    """Returns what each stage makes of a job's config, in the order of the stages; empty if there are none.

    A stage that chooses an option of a group has its own settings; another `optim` looks in the ball of the job's.

    Raises:
        ValueError: If a word is none that a stage can take; the message says which, of what stage.
    """
    return {name: _Stage(name, config).changed(words) for name, words in words_of(config).items()}


class _Stage:
    """A stage in the making; `config` is the job's with what was changed so far."""

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
        """Returns key and value of a word, which is nothing but a setting or the option of a group."""
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            raise self._refused(word, "it cannot be read; it must be key=value") from None
        changes = override.is_add() or override.is_force_add() or override.is_delete()
        if changes or override.package is not None or override.is_sweep_override():
            raise self._refused(word, "it must be key=value alone, without +, ~, @ and several values")
        key, value = override.key_or_group, override.value()
        part = re.split("[./]", key)[0]
        if key in SHARED:
            raise self._refused(word, f"{key} is that of the job, the same in all of its stages")
        if key not in GROUPS and (part not in PARTS or part == key):
            near = [name for name in _names(self.config, PARTS) if name.endswith(f".{key}")] or checks.near(key, GROUPS)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise self._refused(word, f"a stage can change {', '.join(PARTS)} alone", hint)
        if key.replace(".", "/") in GROUPS and key not in GROUPS:
            group = key.replace(".", "/")
            raise self._refused(word, f"{group} is a group of options; write it with a slash: {group}={value}")
        if "/" in key and key not in GROUPS:
            raise self._refused(word, f"{key} is no group of options; a setting has dots")
        if _is_hydras(key.split(".")) or _is_hydras(value):
            raise self._refused(word, "there is no name with an underscore in front in it, and no reference (${...})")
        return key, value

    def _choose(self, group: str, option: Any) -> None:
        """Puts an option of the store in the place of the group."""
        node = settings(group, checks.choice(f"stages.{self.name}: {group}", option, options(group)))
        if group == "optim/InnerOpt":
            if "InnerOpt" not in list(self.config.optim):
                raise self._refused(f"{group}={option}", "the optim of this stage has no inner optimizer")
            self.config.optim.InnerOpt = node
            return
        before = self.config[group]
        self.config[group] = node
        if group == "optim":
            if "InnerOpt" in list(node):
                self.config.optim.InnerOpt = settings("optim/InnerOpt", INNERS.get(option, INNER))
            for name, value in _ball(before).items():
                if name in list(node):
                    self.config.optim[name] = value
            ours, theirs = (_ball(part)["ball"] for part in (self.config.optim, before))
            if ours != theirs:
                rule = f"it looks in the {ours} ball, and the job in {f'the {theirs} ball' if theirs else 'none'}"
                hint = " Take one that has optim.ball, or another optim of the job."
                raise self._refused(f"optim={option}", rule, hint)

    def _set(self, key: str, value: Any) -> None:
        try:
            OmegaConf.update(self.config, key, value, merge=True)
        except (ConfigAttributeError, ConfigKeyError):
            known, (parent, _, last) = _names(self.config, PARTS), key.rpartition(".")
            others = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
            near = [f"{parent}.{name}" for name in checks.near(last, others)]
            near = near or [name for name in known if name.endswith(f".{last}")]
            hint = f" Did you mean {near[0]}?" if near else f" {parent} has {', '.join(others)}." if others else ""
            raise self._refused(f"{key}={value}", f"{key} is not an option", hint) from None
        except OmegaConfBaseException as error:
            raise self._refused(f"{key}={value}", str(error).partition("\n")[0].rstrip(".")) from None

    def _refused(self, word: str, rule: str, hint: str = "") -> ValueError:
        return ValueError(f"stages.{self.name}: {word}: {rule}.{hint}")


def options(group: str) -> list[str]:
    """Returns the names of the options of a group in the store."""
    return [entry["name"] for entry in store if entry["group"] == group]


def settings(group: str, name: str) -> DictConfig:
    """Returns the settings of an option of the store, with their types."""
    return without_defaults(next(e["node"] for e in store if (e["group"], e["name"]) == (group, name)))


def without_defaults(node: Any) -> DictConfig:
    """Returns a node of the store without what only Hydra understands."""
    found = OmegaConf.structured(node)
    with open_dict(found):
        found.pop("defaults", None)
    return found


def quoted(word: str) -> str:
    """Returns a word for the command in which the words of stages have the quotes that Hydra needs.

    >>> quoted("stages.ce=[solver.steps=10,solver.target=[next,3]],['optim=square']")
    'stages.ce=["solver.steps=10","solver.target=[next,3]"],[\\'optim=square\\']'
    >>> quoted("stages={ce:[solver.steps=10],rest:[]}")
    'stages={ce:["solver.steps=10"],rest:[]}'
    """
    if not re.match(r"\+{0,2}stages[.=]", word):
        return word
    key, _, value = word.partition("=")
    return f"{key}={INNER_WORD.sub(_in_quotes, value)}"


def _in_quotes(found: re.Match[str]) -> str:
    return f'"{found[1].strip()}"'


def _ball(optim: DictConfig) -> dict[str, Any]:
    """Returns the ball that an option of optim looks in, by its settings and, if it has no other, by its name."""
    found = {name: optim[name] for name in KEPT if name in list(optim)}
    function = str(optim.get("_target_")).rpartition(".")[2]
    own = next((ball for begin, ball in BALLS.items() if function.startswith(begin)), None)
    return {"ball": own, **found}


def _is_hydras(value: Any) -> bool:
    """Says whether something in a value is for Hydra to read: a name like _target_, or a reference."""
    if isinstance(value, dict):
        return any(str(key).startswith("_") or _is_hydras(entry) for key, entry in value.items())
    if isinstance(value, list):
        return any(map(_is_hydras, value))
    return isinstance(value, str) and ("${" in value or value.startswith("_"))


def _names(config: DictConfig, parts: tuple[str, ...]) -> list[str]:
    """Returns the dotted names of all settings in these parts of a config."""
    todo = [(part, config[part]) for part in parts if part in config]
    found = []
    while todo:
        name, node = todo.pop(0)
        if OmegaConf.is_dict(node):
            todo += [(f"{name}.{key}", node._get_node(key)) for key in node if not str(key).startswith("_")]
        found += [name] if "." in name else []
    return [name for name in found if name not in SHARED]
