"""Signatures of classes and functions, read from their source files without importing anything, such as torch."""

import ast
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from inspect import Parameter, Signature, cleandoc
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, Optional, get_origin

REQUIRED = Parameter.empty
SIMPLE = {"bool": bool, "int": int, "float": float, "str": str}
NUMBERS: dict[str, Any] = {"inf": inf, "math.inf": inf, "float('inf')": inf}


class Argument(NamedTuple):
    """An argument of a class or function.

    Attributes:
        type: A type that a config can check: bool, int, float, str, lists and dictionaries of these, or Any.
        default: `REQUIRED` if there is none.
        doc: Its text from the section "Args" of the docstring.
    """

    type: Any
    default: Any = REQUIRED
    doc: str = ""
    is_keyword: bool = True


class Described(NamedTuple):
    """The first line of a docstring, and the arguments by name."""

    doc: str
    arguments: Mapping[str, Argument]


@cache
def described(target: str) -> Described:
    """Returns the description of the class or function at an import path; `**kwargs` become the base class's arguments.

    Raises:
        LookupError: If there is no source file for the path, or no such class or function in it.

    >>> described("raiopt.optim.L2ProjectedOptim").arguments["param_ndim"].default
    -1
    """
    module, _, name = target.rpartition(".")
    return _described(_file(module), name)


@cache
def constant(target: str) -> Any:
    """Returns the literal value of a module's constant.

    >>> constant("raiopt.optim.bounded.BALLS")["l2"]
    2.0
    """
    module, _, name = target.rpartition(".")
    found = re.search(rf"^{name}\b.*? = (.*?)(?=^\S(?<![)}}\]])|\Z)", _text(_file(module)), re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"{target} is not a constant.")
    return _value(ast.parse(found[1].strip(), mode="eval").body)


def stub(target: str, doc: str, arguments: Mapping[str, Argument]) -> Callable[..., Any]:
    """Returns a stand-in for the target, from which hydra-zen makes a config without importing the target."""

    def described_only(**_: Any) -> None: ...

    made: Any = described_only
    made.__module__, _, made.__qualname__ = target.rpartition(".")
    made.__name__, made.__doc__ = made.__qualname__, doc
    made.__annotations__ = {name: argument.type for name, argument in arguments.items()}
    made.__signature__ = Signature(
        [
            Parameter(name, Parameter.KEYWORD_ONLY, default=argument.default, annotation=argument.type)
            for name, argument in arguments.items()
        ]
        + [Parameter("more", Parameter.VAR_KEYWORD)]
    )
    return made


def documented(docstring: str) -> dict[str, str]:
    """Returns the text for each argument in the section "Args", with None, True and False as written in the command.

    >>> documented("Draws.\\n\\nArgs:\\n    width: Pixels; None: as wide\\n        as the window.\\n")
    {'width': 'Pixels; null: as wide as the window.'}
    """
    section = re.search(r"^Args:\n((?: {4}.*\n|\n)+)", f"{cleandoc(docstring)}\n", re.MULTILINE)
    found = re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    words = {"None": "null", "True": "true", "False": "false"}
    texts = {}
    for names, text in found:
        line = re.sub(r"\b(None|True|False)\b", lambda match: words[match[0]], " ".join(text.split()))
        texts |= dict.fromkeys(names.split(", "), line)
    return texts


@cache
def _described(file: Path, name: str) -> Described:
    node = _definition(file, name)
    if node is None:
        return _described(*_imported(file, name))
    docstring = ast.get_docstring(node) or ""
    function, is_open = (node, False) if isinstance(node, ast.FunctionDef) else (None, True)
    if isinstance(node, ast.ClassDef):
        function = next((entry for entry in node.body if isinstance(entry, ast.FunctionDef)), None)
        is_open = function is None or function.args.kwarg is not None
    if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(entry) for entry in node.decorator_list):
        fields = [entry for entry in node.body if isinstance(entry, ast.AnnAssign)]
        own = {ast.unparse(entry.target): _argument(entry.annotation, entry.value) for entry in fields}
    else:
        own = {} if function is None else _arguments(function)
    texts = documented(docstring)
    arguments = {key: argument._replace(doc=texts.get(key, "")) for key, argument in own.items()}
    if isinstance(node, ast.ClassDef) and is_open and node.bases and isinstance(node.bases[0], ast.Name):
        for key, argument in _described(file, node.bases[0].id).arguments.items():
            if key not in arguments and (function is None or argument.is_keyword):
                arguments[key] = argument._replace(doc=texts.get(key, argument.doc))
    arguments.pop("defaults", None)  # Hydra reads its own list under this key; `full_signature` leaves it out, too
    return Described(docstring.partition("\n")[0], arguments)


def _arguments(function: ast.FunctionDef) -> dict[str, Argument]:
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    found = {
        each.arg: _argument(each.annotation, default)._replace(is_keyword=False)
        for each, default in zip(positional, defaults, strict=True)
        if each.arg != "self"
    }
    keywords = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return found | {each.arg: _argument(each.annotation, default) for each, default in keywords}


def _argument(annotation: ast.expr | None, default: ast.expr | None) -> Argument:
    if default is None:
        return Argument(_type(annotation))
    try:
        return Argument(_type(annotation), _value(default))
    except ValueError:
        return Argument(Any, None)  # a class or another constant, which a config cannot hold


def _value(node: ast.expr) -> Any:
    """Returns the value of a literal expression, which may contain the name of infinity."""
    if isinstance(node, ast.Constant):
        return node.value
    if (text := ast.unparse(node)) in NUMBERS:
        return NUMBERS[text]
    if text.startswith("field(default_factory="):
        return {"dict": {}, "list": []}[text.partition("=")[2].rstrip(")")]
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    return ast.literal_eval(node)


def _type(node: ast.expr | None) -> Any:
    """Returns the type that a config checks for an annotation; tensors in a union are ignored."""
    members = [text for text in _members(node) if text not in ("None", "Tensor")]
    optional = "None" in _members(node)
    kind: Any = _plain_type(members[0]) if len(members) == 1 else Any
    if not optional or kind is Any:
        return kind
    if get_origin(kind) is dict:  # OmegaConf fails to merge a mapping into None
        return Any
    return Optional[kind]  # noqa: UP045  # hydra-zen does not know `kind | None`


def _members(node: ast.expr | None) -> list[str]:
    if isinstance(node, ast.BinOp):
        return [*_members(node.left), *_members(node.right)]
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("Union", "Optional"):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice, ast.Constant(None)]
        return [member for each in inner for member in _members(each)]
    if isinstance(node, ast.Name):
        return [node.id]
    return [] if node is None else [ast.unparse(node)]


def _plain_type(text: str) -> Any:
    if text in SIMPLE:
        return SIMPLE[text]
    name, _, inner = text.rstrip("]").partition("[")
    if name == "Literal":
        return type(ast.literal_eval(f"({inner},)")[0])
    if name in ("dict", "Mapping"):
        return dict[str, Any]
    if name in ("list", "Sequence") and inner in SIMPLE:
        return list[SIMPLE[inner]]
    if name == "tuple":
        return tuple[tuple(_type(ast.parse(each, mode="eval").body) for each in re.split(r", (?![^\[]*\])", inner))]
    return Any


@cache
def _file(module: str) -> Path:
    """Returns the source file of a module; only the top-level package is looked up, so nothing is imported."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except ValueError:
        spec = None
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, *rest)
        for found in (path / "__init__.py", path.with_suffix(".py")):
            if found.is_file():
                return found
    if spec is not None and not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    raise LookupError(f"{module} has no source file.")


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _definition(file: Path, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    """Returns the class or function, without the bodies of methods; None if the file does not define it.

    Only this part of the file is parsed: parsing whole files takes a tenth of a second.
    """
    found = re.search(rf"^((?:@.*\n)*)(?:class|def) {name}\b", _text(file), re.MULTILINE)
    if found is None:
        return None
    lines = _text(file)[found.start() :].splitlines()
    start = found[1].count("\n") + 1
    ends = re.compile(r"[^\s)]|    (@|def (?!__init__))")
    end = next((number for number in range(start, len(lines)) if ends.match(lines[number])), None)
    (node,) = ast.parse("\n".join(lines[:end])).body
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    return node


def _imported(file: Path, name: str) -> tuple[Path, str]:
    """Returns the import path from which a file imports a name."""
    for module, names in re.findall(r"^from ([\w.]+) import (\([^)]*\)|[^\n(]+)", _text(file), re.MULTILINE):
        for each in names.strip("()\n ").split(","):
            original, _, alias = each.strip().partition(" as ")
            if name == (alias or original):
                return _file(module), original
    raise LookupError(f"{file} has no class or function {name}.")
