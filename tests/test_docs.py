"""Compares the pages with the code that they document; doctest runs their examples."""

import inspect
import json
import re
import runpy
import shlex
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
import torch

import raiopt
from docs import record_fields, settings
from raiopt import as_batch, optim
from raiopt.config.groups import OPTIONS
from raiopt.config.listing import meanings
from raiopt.config.options import JobOptions
from raiopt.config.sources import options
from raiopt.fast import Inference
from raiopt.optim.bounded import TRANSFORMS
from tests.test_readme import composed

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS]
PAGE = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(text: str, columns: int) -> list[list[str]]:
    """The cells of the rows, in tables with this number of columns, that start with code."""
    lines = re.findall(r"^\|( `.*) \|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in line.split(" |")] for line in lines]
    return [row for row in cells if len(row) == columns]


TABLE = {row[0].strip("`"): row for row in rows(PAGE, 6)}


def own_arguments(name: str) -> set[str]:
    """The keywords that are not those of every transforming optimizer."""
    base = inspect.signature(optim.ParamTransformingOptimizer).parameters
    given = inspect.signature(getattr(optim, name)).parameters.values()
    return {p.name for p in given if p.kind is p.KEYWORD_ONLY} - base.keys()


CLASSES = [name for name in optim.__all__ if name not in ("Traits", "traits_of")]  # neither is an optimizer


def test_the_table_has_every_optimizer():
    assert sorted(TABLE) == sorted(CLASSES)
    assert TABLE.keys() <= set(raiopt.__all__)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_used_in_an_example(name):
    executed = re.findall(
        r"^(?:>>>|\.\.\.) (?!from|import|class)(.*)$", "\n".join(blocks(PAGE, "python")), re.MULTILINE
    )
    assert re.search(rf"\b{name}\b", "\n".join(executed))


@pytest.mark.parametrize("name", TABLE)
def test_the_table_lists_the_arguments(name):
    listed = re.findall(r"`(\w+)`", TABLE[name][3])
    assert len(listed) == len(set(listed))
    assert set(listed) == own_arguments(name)


def test_the_table_lists_the_options():
    listed = {row[4].strip("`"): name for name, row in TABLE.items() if row[4] not in ("", "`ball=`")}
    assert listed.keys() == OPTIONS["optim"].keys() | TRANSFORMS.keys()
    for option, name in listed.items():
        if option in TRANSFORMS:
            assert TRANSFORMS[option].__name__ == name
        elif option != "chain":
            assert OPTIONS["optim"][option].target == f"raiopt.optim.{name}"


def test_the_table_of_param_ndim_agrees_with_as_batch():
    delta = torch.zeros(2, 3, 4, 4)
    found = rows(PAGE, 5)
    assert len(found) == 5
    for ndim, same, _, shape, count in found:
        for word in re.findall(r"`(\S+)`", f"{ndim} {same}"):
            seen = as_batch(delta, None if word == "None" else int(word))
            assert (str(tuple(seen.shape)), str(len(seen))) == (shape, count)


def test_the_picture_agrees_with_its_script():
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


LANGUAGES = {"python", "sh", "text", "yaml", "{eval-rst}", "{include} ../CHANGELOG.md", "{toctree}"}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_fence_has_a_known_language(page):
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {""}
    assert len(fences) % 2 == 0


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_command_is_in_a_code_block(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^ {4}raiopt .*", text, re.MULTILINE)


def commands() -> list[str]:
    """Jobs and sweeps on the pages, except for those with your own options (`smoothed` is an example of one)."""
    shown = "".join(
        block for page in DOCS for kind in ("sh", "text") for block in blocks(page.read_text("utf-8"), kind)
    )
    found = dict.fromkeys(re.findall(r"^raiopt( .*)?$", shown.replace("\\\n", " "), re.MULTILINE))
    return [line for line in found if not re.search(r"^ [a-z]+( |$)| --| \.\.\.$|optim=smoothed", line)]


@pytest.mark.parametrize("command", commands())
def test_every_command_composes(command):
    words = shlex.split(command, comments=True)
    if "-m" in words or "optuna" in command:  # the first value of each
        words = [
            re.sub(r",(?![^\[]*\]).*", "", re.sub(r"=(range|int|tag|interval|choice)\(.*", "=0", w)) for w in words
        ]
    assert composed(words).optim.epsilon > 0


def test_there_are_commands():
    assert len(commands()) > 20


def test_the_reference_holds_every_option_and_setting(monkeypatch):
    monkeypatch.setattr(settings, "VERBS", ("rerun",))
    page = settings.reference()
    for group, names in options().items():
        assert all(f"| `{group}={name}` |" in page for name in names)
    for group in OPTIONS:
        for name, text in meanings(group).items():
            assert f"| `{group.replace('/', '.')}.{name}` |" in page
            assert text.replace("|", "\\|") in page
    own = {field.name for field in fields(JobOptions)} - {"defaults", *options()}
    assert own <= set(re.findall(r"^\| `(\w+)` \| `", page, re.MULTILINE))
    assert "usage: raiopt rerun" in page
    assert re.search(r"^\| `optim.p` \|  \| .*at least 1", page, re.MULTILINE | re.IGNORECASE)
    assert "`optim.epsilon=1.0` `optim.lr=0.2` |" in page  # the settings that perturbation=affine changes
    assert not re.search(r"\b(None|True|False)\b", page.partition("## `raiopt ")[0])


def test_the_library_page_documents_every_public_name():
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    parts = re.findall(r"^\.\. currentmodule:: raiopt\n((?:\.\. auto.*\n(?: {3}.*\n)*)*)", page, re.MULTILINE)
    listed = re.findall(r"^\.\. auto\w+:: (\w+)$", "".join(parts), re.MULTILINE)
    assert sorted(listed) == sorted(raiopt.__all__)


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = [name for block in blocks(index, "{toctree}") for name in re.findall(r"^\w+$", block, re.MULTILINE)]
    pages = [
        page.stem for page in (ROOT / "docs").iterdir() if page.suffix in (".md", ".ipynb") and page.stem != "index"
    ]
    assert sorted(listed) == sorted(pages)


def test_the_notebook_holds_no_results():
    text = (ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8")
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 3
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_extracted_commands_keep_their_line_numbers():
    script = runpy.run_path(str(ROOT / "scripts" / "test_docs"))
    page = "# A page\n\n```text\nraiopt no\n```\n\n```sh\nraiopt yes \\\n  # on\n```\n\n    raiopt no\n"
    assert script["commands"](page).splitlines() == ["", "", "", "", "", "", "", "raiopt yes \\", "  # on", "", "", ""]


def test_external_resources_of_a_page_are_found():
    fetched = runpy.run_path(str(ROOT / "scripts" / "test_docs"))["fetched"]
    assert fetched('<a href="https://x.org/">x</a><img alt="" src="_images/x.png"><script src="a.js"></script>') == []
    assert fetched('<script async src="https://x.org/a.js"></script><link rel="x" href=\'//y.org/b.css\'/>') == [
        "https://x.org/a.js",
        "//y.org/b.css",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_a_target(page):
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


def test_the_page_on_attacks_lists_every_column_and_setting():
    page = (ROOT / "docs" / "attacks.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`([\w.]+)", page))
    model, data = raiopt.load_model("digits_standard"), raiopt.load_data("digits")
    records = raiopt.attack(model, (data[0][:2], data[1][:2]), partial(raiopt.LinfProjectedOptim, epsilon=0.1, lr=0.1))
    assert {*records.columns, "name"} == set(re.findall(r"`(\w+)`", columns_listed(page)))
    assert {f"model.{field.name}" for field in fields(Inference)} <= listed
    for name in OPTIONS["solver"]["gradient_ascent"].settings:
        assert re.search(rf"\b{name}\b", page), name


def columns_listed(page: str) -> str:
    """The first cells of the last table of a page."""
    return "\n".join(re.findall(r"^\| (`[^|]*) \|", page.rpartition("| column |")[2], re.MULTILINE))


def test_every_field_of_the_record_is_documented():
    page = record_fields.reference()
    for kind in record_fields.record_types():
        assert f"## {kind.__name__}\n" in page
        for name, (_, meaning) in record_fields.fields_of(kind).items():
            assert meaning, f"{kind.__name__}.{name}"
            assert f"| `{name}` |" in page
