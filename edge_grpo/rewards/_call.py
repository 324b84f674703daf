"""Calling somebody's reward function and reading what it returns; in a grading worker too, so no torch."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from functools import cache
from numbers import Real
from typing import Any

from edge_grpo.errors import Stopped
from edge_grpo.rewards._load import load, one_line, raised

Arguments = dict[str, Any]
Value = float | None
"""a reward; None: this response is not judged"""


class CallError(Exception):
    """A call failed.

    Args:
        index: of the call.
        message: what went wrong, without a subject.
    """

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def call_all(function: Callable[..., Any], calls: Sequence[tuple[Arguments, int | None]]) -> list[list[Value]]:
    """What the function returns for each of the calls, as numbers; those of an `async` function run side by side.

    Args:
        function: takes the arguments by name.
        calls: each the arguments, and of how many responses a list is expected; None: one number is.

    Raises:
        CallError: it raised, or returned something else.
    """
    returned: list[Any] = []
    file = _file_of(function)
    for index, (arguments, _) in enumerate(calls):
        try:
            returned.append(function(**arguments))
        except Stopped:  # a signal's, and no exit of the function's own
            raise
        except (Exception, SystemExit) as error:
            raise CallError(index, raised(error, file)) from error
    if any(inspect.isawaitable(value) for value in returned):
        returned = asyncio.run(_gathered(returned))
    values: list[list[Value]] = []
    for index, (value, (_, count)) in enumerate(zip(returned, calls, strict=True)):
        if isinstance(value, BaseException):
            raise CallError(index, raised(value, file)) from value
        try:
            values.append([_number(value)] if count is None else _numbers(value, count))
        except ValueError as error:
            raise CallError(index, str(error)) from error
    return values


def call_by_name(item: tuple[str, Arguments, int | None]) -> list[Value] | dict[str, str]:
    """`call_all` of one call, of a function by its name, as JSON; `{"failed": message}` instead of an exception."""
    name, arguments, count = item
    try:
        return call_all(_loaded(name), [(arguments, count)])[0]
    except CallError as error:
        return {"failed": str(error)}


_loaded = cache(load)


def _file_of(function: Callable[..., Any]) -> str | None:
    """Where the function is written; None of one that is not Python."""
    inner = inspect.unwrap(getattr(function, "func", function))
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    return None if code is None else code.co_filename


async def _gathered(values: Sequence[Any]) -> list[Any]:
    async def ready(value: Any) -> Any:
        return await value if isinstance(value, Awaitable) else value

    return await asyncio.gather(*map(ready, values), return_exceptions=True)


def _numbers(returned: Any, count: int) -> list[Value]:
    """
    >>> _numbers((1, None, True), 3)
    [1.0, None, 1.0]
    """
    plain = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(plain, list | tuple):
        raise ValueError(f"returned {_shown(returned)}, expected a list of {count} numbers, one a response")
    if len(plain) != count:
        raise ValueError(f"returned {len(plain)} values for {count} responses")
    return [None if value is None else _number(value, f" at place {i}") for i, value in enumerate(plain)]


def _number(returned: Any, place: str = "") -> float:
    """
    >>> _number({"score": 0.5, "right": False}), _number(Decimal("0.25"))
    (0.5, 0.25)
    """
    value = returned
    if isinstance(value, Mapping):
        if "score" not in value:
            raise ValueError(f"returned {_shown(returned)}{place}, expected a number, or a dict with one under `score`")
        value = value["score"]
    if hasattr(value, "tolist"):  # numpy and torch scalars
        value = value.tolist()
    if not isinstance(value, Real | Decimal):
        raise ValueError(f"returned {_shown(returned)}{place}, expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"returned a number{place} that no float holds") from error


def _shown(value: object) -> str:
    return one_line(repr(value), 80)
