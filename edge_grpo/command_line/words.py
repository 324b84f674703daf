"""Values as people type them, and types in words."""

import inspect
import re
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
MANY = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}
NULL = "null is written null, not None"
NUMBER = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?")


def as_typed(value: Any) -> str:
    """A value in the command line's own writing.

    >>> print(as_typed({"a": [None, True, 0.5], "b": "x", "c": "3"}))
    {a:[null,true,0.5],b:x,c:"3"}
    """
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{as_typed(child)}' for key, child in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_typed, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f'"{value}"' if isinstance(value, str) and NUMBER.fullmatch(value) else str(value)


def in_words(annotation: Any) -> str:
    """What a constructor takes.

    >>> in_words(float | None), in_words(Literal["mean", "sum"]), in_words(tuple[float, float])
    ('a number or null', 'mean or sum', 'a list of 2 numbers')
    >>> in_words(Mapping[str, float] | Sequence[str]), in_words(list[int | str])
    ('a mapping of names to numbers or a list of texts', 'a list')
    """
    if annotation in WORDS:
        return WORDS[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _one_of([as_typed(value) for value in inner])
    if origin in (Union, UnionType):
        return _one_of([in_words(member) for member in inner])
    kind = origin or annotation
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return f"a mapping of names to {MANY[inner[1]]}" if inner and inner[1] in MANY else "a mapping"
    if inspect.isclass(kind) and issubclass(kind, Sequence):
        counted = origin is tuple and ... not in inner
        same = len(set(inner) - {...}) == 1 and inner[0] in MANY
        return f"a list of {f'{len(inner)} ' if counted else ''}{MANY[inner[0]]}" if same else "a list"
    name = getattr(kind, "__name__", str(kind))
    return f"a mapping whose _target_ is a {name}"


def _one_of(texts: Sequence[str]) -> str:
    """
    >>> _one_of(["a", "b", "c"])
    'a, b or c'
    """
    return " or ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
