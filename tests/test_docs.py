"""The pages against the code that they tell of. That their examples run is the business of doctest."""

import inspect
import re
import runpy
import shlex
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.optim import SGD

import raiopt
from raiopt import as_batch, optim
from raiopt.attacks import Inference
from raiopt.builders import attacks, optimizers
from raiopt.configs import store
from tests.test_readme import composed

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS]
PAGE = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(text: str, columns: int) -> list[list[str]]:
    """The cells of the rows of tables that have so many columns and start with code."""
    lines = re.findall(r"^\|( `.*) \|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in line.split(" |")] for line in lines]
    return [row for row in cells if len(row) == columns]


TABLE = {row[0].strip("`"): row for row in rows(PAGE, 6)}


def own_arguments(name: str) -> set[str]:
    """The keywords that are not those of every transforming optimizer."""
    base = inspect.signature(optim.ParamTransformingOptimizer).parameters
    given = inspect.signature(getattr(optim, name)).parameters.values()
    return {p.name for p in given if p.kind is p.KEYWORD_ONLY} - base.keys()


def test_the_table_holds_every_public_class():
    assert sorted(TABLE) == sorted(optim.__all__)
    assert TABLE.keys() <= set(raiopt.__all__)


@pytest.mark.parametrize("name", optim.__all__)
def test_every_class_is_used_in_an_example(name):
    executed = re.findall(
        r"^(?:>>>|\.\.\.) (?!from|import|class)(.*)$", "\n".join(blocks(PAGE, "python")), re.MULTILINE
    )
    assert re.search(rf"\b{name}\b", "\n".join(executed))


@pytest.mark.parametrize("name", TABLE)
def test_the_table_tells_the_arguments(name):
    told = re.findall(r"`(\w+)`", TABLE[name][3])
    assert len(told) == len(set(told))
    assert set(told) == own_arguments(name)


def test_the_table_tells_the_command():
    told = {row[4].strip("`"): name for name, row in TABLE.items() if row[4] not in ("", "`ball=`")}
    options = {entry["name"] for entry in store if entry["group"] == "optim"}
    assert told.keys() == options | optimizers.TRANSFORMS.keys()
    for option, name in told.items():
        if option in optimizers.TRANSFORMS:
            assert optimizers.TRANSFORMS[option] == name
            continue
        make = getattr(optimizers, option)
        x = torch.zeros(1, 2, requires_grad=True)
        inner = {"InnerOpt": SGD} if "InnerOpt" in inspect.signature(make).parameters else {}
        members = {"members": ["signed"]} if option == "chain" else {}
        assert type(make([x], epsilon=1.0, lr=0.1, **inner, **members)).__name__ == name


def test_the_table_tells_what_param_ndim_does():
    delta = torch.zeros(2, 3, 4, 4)
    found = rows(PAGE, 5)
    assert len(found) == 5
    for ndim, same, _, shape, count in found:
        for word in re.findall(r"`(\S+)`", f"{ndim} {same}"):
            seen = as_batch(delta, None if word == "None" else int(word))
            assert (str(tuple(seen.shape)), str(len(seen))) == (shape, count)


def test_the_picture_is_what_its_script_draws():
    picture = runpy.run_path(str(ROOT / "scripts" / "draw_param_ndim"))["picture"]
    assert (ROOT / "docs" / "param_ndim.svg").read_text(encoding="utf-8") == picture()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_is_a_copy_of_a_file_that_the_page_names(page):
    text = page.read_text(encoding="utf-8")
    named = [ROOT / path for path in re.findall(r"`(conf/[\w/]+\.yaml)`", text)]
    copies = blocks(text, "yaml")
    assert set(copies) <= {file.read_text(encoding="utf-8") for file in named}
    assert copies or page.stem != "optimizers"


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_all_python_runs(page):
    code = blocks(page.read_text(encoding="utf-8"), "python")
    assert code or page.stem != "optimizers"
    assert all(block.startswith(">>> ") and block.endswith("\n\n") for block in code)


@pytest.mark.parametrize("command", re.findall(r"^    raiopt (.*)$", PAGE, re.MULTILINE))
def test_every_command_composes(command):
    assert composed(shlex.split(command, comments=True)).optim.epsilon > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target
    for path in re.findall(r"`((?:raiopt|conf|docs|scripts|tests)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def test_every_source_has_a_link():
    links = set(re.findall(r"^\[(\S+)\]: https?://", PAGE, re.MULTILINE))
    used = set(re.findall(r"\[([\w-]+)\](?![:(\[])", " ".join(row[5] for row in TABLE.values())))
    used |= set(re.findall(r"\]\[([\w-]+)\]", PAGE))
    assert links == used


def test_the_page_on_attacks_tells_every_column_and_setting():
    page = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([\w.]+)", page))
    model, data = raiopt.load_model("digits_standard"), raiopt.load_data("digits")
    records = raiopt.attack(model, (data[0][:2], data[1][:2]), partial(raiopt.LinfProjectedOptim, epsilon=0.1, lr=0.1))
    assert {*records.columns, "name"} == set(re.findall(r"`(\w+)`", columns_told(page)))
    assert {f"model.{field.name}" for field in fields(Inference)} <= told
    for name in inspect.signature(attacks.gradient_ascent).parameters:
        assert re.search(rf"\b{name}\b", page), name


def columns_told(page: str) -> str:
    """The first cells of the last table of a page."""
    return "\n".join(re.findall(r"^\| (`[^|]*) \|", page.rpartition("| column |")[2], re.MULTILINE))
