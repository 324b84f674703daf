"""What a setting means: the docstring and annotation of the constructor's argument, or the comment in the YAML file."""

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

SIMPLE = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
LISTS = ("Sequence", "list", "tuple", "Iterable", "Collection")
MAPPINGS = ("Mapping", "dict", "MutableMapping")


@cache
def argument_docs(target: Callable[..., Any]) -> dict[str, str]:
    """Argument -> its meaning in one line, from Google-style `Args:` of a callable, its constructor and its bases.

    >>> argument_docs(argument_docs)
    {'target': 'a class or function.'}

    Args:
        target: a class or function.
    """
    docs: dict[str, str] = {}
    for part in reversed(inspect.getmro(target)) if inspect.isclass(target) else (target,):
        constructor = vars(part).get("__init__") if inspect.isclass(part) and part is not object else None
        for documented in (part, constructor):
            entries = dict(_entries(inspect.cleandoc(getattr(documented, "__doc__", None) or "")))
            docs |= {name: _followed(name, meaning, part) for name, meaning in entries.items()}
    return docs


def _followed(name: str, meaning: str, part: Callable[..., Any]) -> str:
    """The meaning, or, where it begins with "see `Other`", that of Other's argument of the same name."""
    found = re.match(r"see `(\w+)`", meaning)
    if found is None:
        return meaning
    package = part.__module__.partition(".")[0]
    others = (vars(m).get(found.group(1)) for key, m in list(sys.modules.items()) if key.startswith(f"{package}."))
    return next((argument_docs(other)[name] for other in others if other and name in argument_docs(other)), meaning)


def _entries(doc: str) -> Iterator[tuple[str, str]]:
    """Names and meanings of a docstring's `Args:`; names before one colon share its meaning."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\s*\n)+)", doc, re.MULTILINE)
    body = textwrap.dedent(section.group(1)) if section else ""
    for entry in re.split(r"\n(?=\w)", body.strip("\n")):
        found = re.match(r"(\w+(?:, \w+)*)(?: \(.*?\))?:\s+(.*)", entry, re.DOTALL)
        if found:
            meaning = " ".join(found.group(2).split())
            yield from ((name, meaning) for name in found.group(1).split(", "))


def body_of(target: Callable[..., Any]) -> str:
    """A docstring without its sections and examples; of other libraries the first paragraph alone.

    >>> body_of(body_of)
    'A docstring without its sections and examples; of other libraries the first paragraph alone.'
    """
    doc = inspect.getdoc(target) or ""
    ours = target.__module__.partition(".")[0] == __name__.partition(".")[0]
    return re.split(r"\n\n(?=\w+:\n|>>> )" if ours else r"\n\n", doc)[0]


def words(annotation: Any) -> str:
    """A type as a reader of YAML knows it.

    >>> words(int | None), words(Literal["group", "row"]), words(dict[str, float]), words(list[int])
    ('whole number or null', 'group or row', 'mapping of number', 'list of whole number')
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation in SIMPLE:
        return SIMPLE[annotation]
    if origin is Literal:
        return " or ".join(map(str, args))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(words, args)))
    name = getattr(origin or annotation, "__name__", str(annotation))
    if name in LISTS:
        of = " or ".join(dict.fromkeys(words(arg) for arg in args if arg is not Ellipsis))
        return f"list of {of}" if of else "list"
    if name in MAPPINGS:
        return f"mapping of {words(args[1])}" if args else "mapping"
    return str(name)


@cache
def comments(file: Path) -> dict[str, str]:
    """Dotted key -> the comment behind it in a YAML file, and in the files of the same folder that it starts from."""
    text = file.read_text()
    lines, root = text.splitlines(), yaml.compose(text, Loader=yaml.SafeLoader)
    found: dict[str, str] = {}
    for parent in (yaml.safe_load(text) or {}).get("defaults") or ():
        if isinstance(parent, str) and (file.parent / f"{parent}.yaml").is_file():
            found |= comments(file.parent / f"{parent}.yaml")
    return found | (dict(_of_node(root, lines, "")) if isinstance(root, yaml.MappingNode) else {})


def _of_node(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        mark = key.end_mark if block or getattr(value, "style", None) == "|" else value.end_mark
        behind = re.search(r"\s# ?(.*)$", lines[mark.line][mark.column :]) if mark.line < len(lines) else None
        if behind:
            yield name, behind.group(1)
        if block and isinstance(value, yaml.MappingNode):
            yield from _of_node(value, lines, f"{name}.")


def head(file: Path) -> str:
    """The comment at the head of a YAML file, without its package line."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line[1:].strip())
    return " ".join(lines)
