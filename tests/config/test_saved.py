"""Untrusted configs: those that the command saved are read, all others are refused and never run."""

import re
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from raiopt.config.groups import OPTIONS
from raiopt.config.jobs import build
from raiopt.config.saved import GROUPS, MAX_FILE_BYTES, UnsafeConfig, choices, saved_config, saved_job
from tests.test_readme import composed

NEEDED = {
    "model=torchvision": ["model.name=resnet18", "model.checkpoint=weights.safetensors"],
    "model=python": ["model.factory=canary:make", "model.kwargs={depth:[1,{a:2.5}],name:deep}"],
    "data=image_folder": ["data.root=images", "data.indices=[3,1]"],
    "data=torchvision": ["data.name=CIFAR10", "data.root=images", "data.download=true"],
    "data=python": ["data.factory=canary:make"],
    "perturbation=python": ["perturbation.factory=canary:make", "perturbation.kwargs={}"],
    "perturbation=masked": ["perturbation.region=[0,0,8,8]"],
    "criterion=targeted_dlr": ["solver.targeted=true", "solver.target=[next,3]"],
}
ALLOWED = ("canary:make", "data.download")
NAMED = [f"{group}={name}" for group in GROUPS for name in OPTIONS[group]]


@cache
def asked(*words: str) -> dict[str, Any]:
    """What the command composes and saves, without its part for Hydra."""
    config = composed(list(words))
    found: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, [k for k in config if k != "hydra"]))
    return found


def folder_with(folder: Path, content: Any) -> Path:
    (folder / ".hydra").mkdir(exist_ok=True)
    if isinstance(content, bytes):
        (folder / ".hydra" / "config.yaml").write_bytes(content)
    else:
        text = content if isinstance(content, str) else OmegaConf.to_yaml(OmegaConf.create(content))
        (folder / ".hydra" / "config.yaml").write_text(text, encoding="utf-8")
    return folder


def read(folder: Path, content: Any, allow: Any = ()) -> Any:
    return OmegaConf.to_container(saved_config(folder_with(folder, content), allow))


def without_tracker(config: Any) -> Any:
    return {key: value for key, value in config.items() if key != "tracker"}


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """An importable module that creates a file when it is imported."""
    (tmp_path / "canary.py").write_text("import pathlib; pathlib.Path('ran').touch(); make = print")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    assert not (tmp_path / "ran").exists()
    assert "canary" not in sys.modules


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.mark.parametrize("option", NAMED)
def test_saved_configs_round_trip(option, folder, canary):
    words = [option, *NEEDED.get(option, ())]
    if option.startswith("optim="):
        words += ["optim.lr=1e-5"] * (option != "optim=square") + ["optim.param_ndim=null", "init=uniform_l2"]
    before = asked(*words)
    config = saved_config(folder_with(folder, before), ALLOWED)
    assert without_tracker(OmegaConf.to_container(config)) == without_tracker(before)
    assert list(config) == list(before)
    group, _, name = option.partition("=")
    assert choices(config)[group] == ("none" if group == "tracker" else name)


@pytest.mark.parametrize("name", ["quick", "mi_fgsm"])
def test_named_runs_are_read_too(name, folder):
    assert without_tracker(read(folder, asked(f"experiment={name}"))) == without_tracker(asked(f"experiment={name}"))


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])).filter(
    lambda text: "${" not in text and text != "???"
)
values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]\w{0,5}", fullmatch=True), inner),
    max_leaves=5,
)


@given(note=texts, kwargs=st.dictionaries(st.from_regex(r"[a-z]\w{0,5}", fullmatch=True), values), lr=st.floats(0, 1e6))
def test_strings_numbers_and_keywords_round_trip(folder, note, kwargs, lr):
    config = deepcopy(asked("model=python", "model.factory=canary:make"))
    config["note"], config["model"]["kwargs"], config["optim"]["lr"] = note, kwargs, lr
    assert without_tracker(read(folder, config, ALLOWED)) == without_tracker(config)


def test_configs_of_older_versions_get_current_defaults(folder):
    config = deepcopy(asked("optim=l2_projected", "init=uniform_l2"))
    del config["tracker"], config["model"]["deterministic"], config["optim"]["InnerOpt"], config["init"]
    assert read(folder, config) == asked("optim=l2_projected")


def test_the_job_equals_that_of_the_command_and_nothing_is_loaded(folder):
    config = composed(["optim=chain", "perturbation=patch", "data=image_folder", "data.root=nowhere", "threads=2"])
    config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    ours: Any = build(config, {"optim": "chain", "optim/InnerOpt": "sgd", "perturbation": "patch"})
    theirs: Any = saved_job(folder_with(folder, config))
    assert theirs.optimizers == ours.optimizers == ["chain of l1_normed, momentum, signed", "sgd"]
    assert theirs.perturbation == ours.perturbation == "patch"
    assert (theirs.threads, theirs.inference, theirs.attack.steps) == (2, ours.inference, 40)
    assert theirs.data.args[0].keywords == ours.data.args[0].keywords


def changed(line: str, new: str) -> tuple[str, int]:
    """The saved config with other lines in place of one, and of what belongs to it; the number of the first or last."""
    lines = OmegaConf.to_yaml(OmegaConf.create(asked())).splitlines()
    at = lines.index(line)
    while line.endswith(":") and lines[at + 1].startswith(line[: len(line) - len(line.lstrip())] + " "):
        del lines[at + 1]
    lines[at : at + 1] = new.splitlines()
    first = "canary.make" in new.splitlines()[0] or new.startswith(("note: &", "?"))
    return "\n".join(lines), at + (1 if first else len(new.splitlines()))


MODEL = "  _target_: raiopt.zoo.digits_robust"
INNER = "    _target_: torch.optim.SGD"
REFUSED = {
    "a target": (MODEL, "  _target_: canary.make", "model._target_: 'canary.make' is not a target"),
    "that of the system": (MODEL, "  _target_: os.system", "'os.system'"),
    "one that only begins alike": (MODEL, "  _target_: raiopt.zoo.digits_robust.x", "not a target"),
    "one of another group": (MODEL, "  _target_: raiopt.zoo.digits", "not a target"),
    "what raiopt has, but does not offer": (MODEL, "  _target_: raiopt.zoo.checks", "not a target"),
    "a method of a function": (MODEL, "  _target_: raiopt.zoo.digits_robust.__call__", "not a target"),
    "a list of targets": (MODEL, "  _target_: [raiopt.zoo.digits_robust]", "not a target"),
    "a target by reference": (MODEL, "  _target_: ${note}", "'${note}' is not a target"),
    "an inner optimizer": (INNER, "    _target_: canary.make", "optim.InnerOpt._target_: 'canary.make'"),
    "no inner optimizer": ("  InnerOpt:", "  InnerOpt: canary.make", "optim.InnerOpt: 'canary.make' is not an option"),
    "a group that is a text": ("criterion:", "criterion: canary.make", "criterion: 'canary.make' is not an option"),
    "a group that is nothing": ("criterion:", "criterion: null", "criterion: None is not an option"),
    "a target in a value": ("  indices: null", "  indices:\n    _target_: canary.make", "indices._target_: names"),
    "in a list": ("  indices: null", "  indices:\n  - _target_: canary.make", "data.indices[0]._target_: names"),
    "in a number": ("  lr: 0.1", "  lr:\n    _target_: canary.make", "optim.lr._target_: names"),
    "at the top": ("seed: 0", "seed: 0\n_target_: canary.make", "_target_: names"),
    "a whole group under a dotted name": ("seed: 0", "optim.InnerOpt: {a: canary.make}", "is not the name"),
    "arguments": ("  fold: true", "  fold: true\n  _args_: [canary]", "model._args_: names"),
    "a conversion": ("  fold: true", "  fold: true\n  _convert_: all", "model._convert_: names"),
    "no recursion": ("  fold: true", "  fold: true\n  _recursive_: false", "model._recursive_: names"),
    "a wrapper": ("  fold: true", "  fold: true\n  _zen_wrappers: canary.make", "model._zen_wrappers: names"),
    "a target of hydra-zen": ("  fold: true", "  fold: true\n  _zen_target: canary.make", "model._zen_target: names"),
    "a call at once": ("  _partial_: true", "  _partial_: false", "model._partial_: it must be true"),
    "a new setting": ("  fold: true", "  fold: true\n  hooks: canary.make", "model.hooks: no option of raiopt"),
    "a new option": ("seed: 0", "seed: 0\nafter: canary.make", "after: no option of raiopt"),
    "the part of Hydra": ("seed: 0", "hydra: {callbacks: {x: 1}}", "hydra: no option of raiopt"),
    "a list of defaults": ("seed: 0", "defaults: [x]", "defaults"),
    "a number that is none": ("  lr: 0.1", "  lr: canary.make", "optim.lr: 'canary.make' must be a number."),
    "nothing for a number": ("  lr: 0.1", "  lr: null", "optim.lr: "),
    "a truth that is none": ("  fold: true", "  fold: canary", "model.fold: 'canary' must be true or false."),
    "a name with brackets": ("seed: 0", "'data[0]': canary.make", "'data[0]' is not the name of a setting"),
    "a name that is empty": ("seed: 0", "'': canary.make", "'' is not the name of a setting"),
    "an environment variable": ("note: ''", "note: ${oc.env:HOME}", "note: '${oc.env:HOME}' is not a value"),
    "a resolver of ours": ("note: ''", "note: '${raiopt.job_key:}'", "is not a value"),
    "a reference in a text": ("note: ''", "note: a${seed}", "is not a value"),
    "two references": ("note: ''", "note: ${name}${name}", "is not a value"),
    "a relative reference": ("note: ''", "note: ${.seed}", "is not a value"),
    "a nested reference": ("note: ''", "note: ${${name}}", "is not a value"),
    "a broken reference": ("note: ''", "note: '${'", "is not a value"),
    "a reference to itself": ("note: ''", "note: ${note}", "note: ${note} leads to no value"),
    "a reference to nothing": ("note: ''", "note: ${nowhere}", "${nowhere} leads to no value"),
    "a reference to a group": ("note: ''", "note: ${model}", "${model} leads to no value"),
    "a reference of another type": ("seed: 0", "seed: ${save}", "seed: "),
    "an alias": ("note: ''", "note: &a x\nname: *a", "anchors and aliases"),
    "an anchor": ("note: ''", "note: &a x", "anchors and aliases"),
    "a merge": ("  lr: 0.1", "  <<: {lr: 3}", "'<<' is not the name of a setting"),
    "a tag that runs": ("note: ''", "note: !!python/object/apply:canary.make []", "tags are not allowed"),
    "too many entries": ("note: ''", f"note: [{'1,' * 100_000}]", "more than 100,000 entries"),
    "any tag": ("note: ''", "note: !!str x", "tags are not allowed"),
    "a key twice": ("seed: 0", "seed: 0\nseed: 1", "duplicate key"),
    "a second document": ("seed: 0", "---\nseed: 0", "single document"),
    "a list as a key": ("note: ''", "? [a]\n: b", "'' is not the name of a setting"),
    "levels": ("  indices: null", f"  indices: {'[' * 40}{']' * 40}", "more than 20 levels"),
    "no YAML": ("note: ''", "note: 'x", ""),
    "a bell": ("note: ''", "note: \"\\a${oc.env:HOME}\"", r"note: '\x07"),
    "a key that a terminal obeys": ("note: ''", '"\\e[2J": x', r"'\x1b[2J' is not the name"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_configs_not_written_by_raiopt_are_refused_with_their_line(what, folder, canary):
    text, line = changed(*REFUSED[what][:2])
    with pytest.raises(UnsafeConfig) as refused:
        saved_config(folder_with(folder, text), ALLOWED)
    message = str(refused.value)
    assert REFUSED[what][2] in message
    assert message.isprintable()
    if what not in ("no YAML", "a second document"):  # their line is where the reader found the end
        assert f"{folder}/.hydra/config.yaml, line {line}: " in message


def test_references_that_grow_exponentially_are_refused(folder):
    config = deepcopy(asked("model=python", "model.factory=canary:make"))
    config["model"]["kwargs"] = {f"a{i}": [f"${{model.kwargs.a{i + 1}}}"] * 10 for i in range(12)} | {"a12": "x"}
    with pytest.raises(UnsafeConfig, match="leads to no value"):
        read(folder, config, ALLOWED)
    chain = {f"a{i}": f"${{model.kwargs.a{i + 1}}}" for i in range(1000)} | {"a1000": "x"}
    config["model"]["kwargs"] = chain
    with pytest.raises(UnsafeConfig, match="leads to no value"):
        read(folder, config, ALLOWED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"note: \xff", "line 1: it must be text in UTF-8"),
        (b"note: \x00", "line 1: "),
        (b"seed: 1\n# " + b"x" * MAX_FILE_BYTES, "larger than 1,048,576 bytes"),
        (b"seed: " + b"9" * 5000, "line 1: "),
        (b"", "line 1: it must be a mapping"),
        (b"- seed", "line 1: it must be a mapping"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused(folder, content, message):
    with pytest.raises(UnsafeConfig, match=re.escape(message)):
        saved_config(folder_with(folder, content))


@pytest.mark.parametrize("link", [".hydra", ".hydra/config.yaml"])
def test_links_are_refused(tmp_path, link):
    real = tmp_path / "real"
    real.mkdir()
    folder_with(real, asked())
    other = tmp_path / "other"
    (other / link).parent.mkdir(parents=True)
    (other / link).symlink_to(real / link)
    assert saved_config(real).seed == 0
    with pytest.raises(UnsafeConfig, match="is a link"):
        saved_config(other)


def test_missing_mandatory_values_are_reported(folder):
    text = OmegaConf.to_yaml(OmegaConf.create(asked("model=torchvision", "model.name=resnet18")))
    with pytest.raises(UnsafeConfig, match=r"line 21: model\.name: its value is missing"):
        read(folder, text.replace("name: resnet18", "name: ???"))
    assert read(folder, text.replace("split: test", "split: ???"))["data"]["split"] == "test"


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the folder of one job"):
        saved_config(tmp_path)


@pytest.mark.parametrize("group", ["model", "data", "perturbation"])
def test_user_functions_need_permission(group, folder, canary):
    config = deepcopy(asked(f"{group}=python", *NEEDED[f"{group}=python"]))
    line = OmegaConf.to_yaml(OmegaConf.create(config)).splitlines().index("  factory: canary:make") + 1
    for allow in ((), "canary", ("canary:mak", "canary:make2", "canary.make", "data.download")):
        with pytest.raises(UnsafeConfig) as refused:
            read(folder, config, allow)
        message = f"line {line}: {group}.factory: 'canary:make' would be imported and run."
        assert message in str(refused.value)
        assert "--allow canary:make." in str(refused.value)
    assert without_tracker(read(folder, config, "canary:make")) == without_tracker(config)
    config["note"], config[group]["factory"] = "canary:make", "${note}"
    with pytest.raises(UnsafeConfig, match="'canary:make' would be imported"):
        read(folder, config)


def test_downloads_need_permission(folder):
    config = asked("data=torchvision", *NEEDED["data=torchvision"])
    with pytest.raises(UnsafeConfig, match=r"data\.download: it would write into 'images'\. .* --allow data\.download"):
        read(folder, config, ["canary:make"])
    assert read(folder, config, ["data.download"])["data"]["download"]


def test_a_saved_config_cannot_choose_the_tracker(folder, canary):
    config = deepcopy(asked())
    config["tracker"] = {"_target_": "canary.make", "uri": "${oc.env:HOME}"}
    assert read(folder, config) == asked()


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all entries of a nested config."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, value in entries for found in [(*path, key), *places(value, (*path, key))]]


WORDS = ("model=python", *NEEDED["model=python"], "optim=chain", "data.indices=[3,1]", "perturbation=patch")
PLACES = [path for path in places(asked(*WORDS)) if path[0] != "tracker"]
NAMES = ["_target_", "_args_", "_partial_", "_recursive_", "_convert_", "_zen_target", "_zen_wrappers", "_x"]
OWN_BUT_NO_OPTION = ["raiopt.config.jobs.build", "raiopt.zoo.python_data"]
FOREIGN = st.sampled_from(["canary.make", "os.system", *OWN_BUT_NO_OPTION, ["a"]])


@given(path=st.sampled_from(PLACES), name=st.sampled_from(NAMES), target=FOREIGN, beside=st.booleans())
def test_a_foreign_target_is_refused_at_every_position(folder, path, name, target, beside):
    config = deepcopy(asked(*WORDS))
    *parents, last = path
    node: Any = config
    for key in parents:
        node = node[key]
    if beside and isinstance(node[last], dict):
        node[last][name] = target
    elif isinstance(last, str) and last.startswith("_"):
        node[last] = target
    else:
        node[last] = {"a": 1, name: target}
    with pytest.raises(UnsafeConfig, match=r"config\.yaml, line \d+: "):
        read(folder, config, ALLOWED)


@given(data=st.data())
def test_a_damaged_file_is_refused_or_names_only_targets_of_raiopt(folder, data):
    text = OmegaConf.to_yaml(OmegaConf.create(asked(*WORDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 30))
        text = text[:at] + data.draw(st.text("_target_: {}[]&*!${}.\n-'\"x<", max_size=8)) + text[at + length :]
    try:
        found = read(folder, text, ALLOWED)
    except UnsafeConfig:
        return
    known = {option.target for options in OPTIONS.values() for option in options.values()}
    for path in places(found):
        if path[-1] == "_target_":
            value: Any = found
            for key in path:
                value = value[key]
            assert value in known
            assert path[:-1] in [(group,) for group in found] + [("optim", "InnerOpt")]


def test_the_reader_agrees_with_other_yaml_readers(folder):
    """Otherwise it could check one value and Hydra build another."""
    text = OmegaConf.to_yaml(OmegaConf.create(asked(*WORDS)))
    assert without_tracker(read(folder, text, ALLOWED)) == without_tracker(yaml.safe_load(text))
