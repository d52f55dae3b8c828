"""Error messages of the command: one line, naming the options and suggesting similar ones."""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from raiopt import checks
from raiopt.config.groups import INFERENCE, OPTIONS
from raiopt.config.signatures import described
from raiopt.config.sources import CONFIG_DIR, composed, options
from raiopt.config.words import VALUES, dotted, refused_value, type_rule

NO_NAME = rf"(?i)[.{{,]\s*({'|'.join(VALUES)})\s*[:=]"
"""A name of a stage that Hydra reads as a value."""
VERBS = ("doctor", "export", "list", "report", "rerun", "show", "track")
"""The verbs (subcommands) of the command; each is a module of raiopt/verbs/."""


def typed(value: Any) -> str:
    """Returns a value in the syntax of the command line: null, true, [1,2], {depth:3}."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{typed(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def check_words(words: list[str]) -> None:
    """Raises a ValueError for a word that is neither an override nor a flag, or that writes a group with dots."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    flags = "-p --package -cp --config-path -cn --config-name --cfg -c --info -i"
    values = {*flags.split(), *CONFIG_DIR}
    groups = {group.replace("/", "."): group for group in OPTIONS if "/" in group}
    for before, word in zip(["", *words], words, strict=False):
        key, equals, value = word.partition("=")
        if word.startswith("-") or before in values:
            continue
        if not equals and not word.startswith("~"):
            near = checks.near(word, VERBS)
            hint = f"Did you mean 'raiopt {near[0]}'?" if near else "Options are given as key=value: see raiopt --help."
            if word in VERBS:
                raise ValueError(f"The verb comes first, before flags and options: raiopt {word} ...")
            raise ValueError(f"{word!r} is neither a verb ({', '.join(VERBS)}) nor an option. {hint}")
        if key in groups:
            raise ValueError(
                f"{word}: {groups[key]} is a group of options; write it with a slash: {groups[key]}={value}"
            )
        try:
            parser.parse_override(word)
        except HydraException:
            remedy = f"Put a text with special characters in quotes: '{key}=\"...\"'"
            if re.match(r"stages[.=]", word):
                remedy = "Stages are lists of words with names of letters, digits, '-' and '_': stages={first:[...]}."
            raise ValueError(f"{word} cannot be read. {remedy}") from None


def explain(error: BaseException, words: Sequence[str] = ()) -> str:
    """Returns an error's message; if Hydra rejected an option, it suggests the most similar existing ones."""
    if isinstance(error, OSError) and error.filename is not None:
        hint = " Results lie below outputs=DIR, which must be a folder that can be written." if words else ""
        return f"{error.filename}: {error.strerror}.{hint}"
    text = _innermost(error)
    if match := re.search(r"Could not find '([^']+)/([^/']+)'", text):
        return _unknown_option(match[1], match[2], words)
    if match := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        return _unknown_key(match[1], words)
    wrong = next((word for word in words if re.match(r"stages[.=]", word)), None)
    if isinstance(error, HydraException | OmegaConfBaseException):
        if wrong and re.search(r"ListConfig|Dict\[str, List", text):
            form = "stages={first:[solver.steps=10]}"
            named = " inf, nan, null, true and false are not names." if re.search(NO_NAME, wrong) else ""
            return f"{wrong}: stages are a mapping of names to lists of words, as in {form}.{named}"
        return _shortened(text)
    if isinstance(error, ValueError | TypeError | OSError):
        return with_groups(text)
    return " ".join([f"{type(error).__name__}: {text}", *getattr(error, "__notes__", [])])


def with_groups(text: str) -> str:
    """Returns a message of the library with Python arguments and classes replaced by options of the command.

    >>> with_groups("targeted=True needs target=...: a class.")
    'solver.targeted=true needs solver.target=...: a class.'
    >>> with_groups("stages.a: precision='half' must be one of 'float32'.")
    "stages.a: model.precision='half' must be one of 'float32'."
    >>> with_groups("optim: members='x' must be a list, as in members=[signed].")
    "optim: members='x' must be a list, as in optim.members=[signed]."
    >>> with_groups('criterion: targeted_dlr needs a target: target="likely" or "next".')
    'criterion: targeted_dlr needs a target: solver.target=likely or next.'
    >>> with_groups("schedule: AdaptiveStepOptim sets its own step size.")
    'schedule: apgd sets its own step size.'
    """
    if part := re.match(r"(?:stages\.[\w-]+: )?(optim|perturbation|init|criterion|schedule): ", text):
        text = re.sub(r"(?<=as in )(?=\w+=)", f"{part[1]}.", text)
        for target, name in _names_of_targets().items():
            text = re.sub(rf"\b{target}\b", name, text)
    groups = dict.fromkeys(OPTIONS["solver"]["gradient_ascent"].settings, "solver")
    groups |= dict.fromkeys(described(INFERENCE).arguments, "model")
    if re.search(rf"(?<![\w.])({'|'.join(groups)})=\"\w", text):
        text = re.sub(r'"(\w+)"', r"\1", text)  # strings need no quotes in the command
    text = re.sub(rf"(?<![\w.])({'|'.join(groups)})=(?=\S)", lambda found: f"{groups[found[1]]}.{found[0]}", text)
    text = re.sub(rf"^(stages\.\S+: )?({'|'.join(groups)})(?= )", lambda f: f"{f[1] or ''}{groups[f[2]]}.{f[2]}", text)
    words = {"True": "true", "False": "false", "None": "null"}
    return re.sub(r"(=| or | be |one of )(True|False|None)\b", lambda found: found[1] + words[found[2]], text)


@functools.cache
def _names_of_targets() -> dict[str, str]:
    """Returns the option for each class and function that is used by exactly one option of the attack's parts."""
    names: dict[str, list[str]] = {}
    for group in ("optim", "criterion", "init"):
        for option in OPTIONS[group].values():
            names.setdefault(option.target.rpartition(".")[2], []).append(option.name)
    return {target: known[0] for target, known in names.items() if len(known) == 1}


def _innermost(error: BaseException) -> str:
    """Returns the message, completed by the message of the cause if it is not clear by itself."""
    cause = error.__cause__
    if type(error).__name__ == "InstantiationException" and cause is not None:
        return _innermost(cause)
    text = str(error).strip() or type(error).__name__
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        return f"{text}\n{cause}"
    return text


def _unknown_option(group: str, name: str, words: Sequence[str]) -> str:
    there = options(words)
    if group not in there:
        return f"{group} is not a group of options; there are {', '.join(sorted(there))}."
    return _with_near(f"{group}={name} is not an option of {group}", name, there[group])


def _unknown_key(key: str, words: Sequence[str]) -> str:
    """Returns the message for an unknown key, with similar keys of the config that the words select."""
    groups = options(words)
    chosen = [word for word in words if word.partition("=")[0] in groups and "," not in word]
    if key == "optim/InnerOpt":
        optim = next((word for word in chosen if word.startswith("optim=")), "an optim of this sweep")
        return f"{key} cannot be chosen: {optim} has no inner optimizer. Leave it out, or take another optim."
    config = composed(chosen, words)
    names = [name for name, _ in dotted(OmegaConf.to_container(config, resolve=False))]
    known = [name for name in names if name.startswith("hydra.") == key.startswith("hydra.")]
    if (parent := key.rpartition(".")[0]) in known and parent.count(".") > 1:  # hydra.launcher.runtime_env.x
        return f"{key} is not there yet; what is new in {parent} is added with a plus: +{key}=..."
    parent, _, setting = key.rpartition(".")
    group = parent.replace(".", "/")
    anywhere = {name for option in OPTIONS.get(group, {}).values() for name in option.settings}
    if setting in anywhere and (option := config.hydra.runtime.choices.get(group)):
        own = [name for name in known if name.rpartition(".")[0] == parent]
        return f"{key} is not a setting of {group}={option}, which has {', '.join(own) or 'none'}."
    if same := [name for name in known if name.rpartition(".")[2] == setting]:
        return f"{key} is not an option. Did you mean {' or '.join(same)}?"
    others = [] if key.partition(".")[0] in groups else list(groups)
    return _with_near(f"{key} is not an option", key, known + others, show_all=False)


def _with_near(what: str, word: str, known: list[str], show_all: bool = True) -> str:
    near = checks.near(word, dict.fromkeys(known)) or [name for name in known if name == word.partition(".")[0]]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"{what}.{hint}" + (f" There are {', '.join(known)}." if show_all else "")


def _shortened(text: str) -> str:
    """Returns a config error as a single line, without the names of raiopt's internal classes."""
    text = text.partition(" raised while resolving interpolation: ")[2] or text
    lines = [line.strip() for line in text.splitlines()]
    key = next((line.partition(":")[2].strip() for line in lines if line.startswith("full_key:")), "")
    if (rule := type_rule(text)) and key:
        hint = " Did you mean null?" if "Value 'None'" in text else ""
        return f"{_given(text, key)} {rule}.{hint}"
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    kept = [line for line in kept if not line.startswith("Error merging override")]
    return f"{key}: {' '.join(kept)}" if key and not key.startswith("hydra.") else " ".join(kept)


def _given(text: str, key: str) -> str:
    """Returns the word that a config error refers to, as typed; only the key if the error does not quote the word."""
    word = re.search(r"^Error merging override (.*)", text, re.MULTILINE)
    if word and word[1].startswith(f"{key}="):
        return word[1]
    value = refused_value(text)
    return key if value is None else f"{key}={value}"
