"""A plain Python function as a reward: the project's own signatures, TRL's and verl's."""

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.rewards._call import Arguments, CallError, Value, call_all, call_by_name
from edge_grpo.rewards._load import load, one_line
from edge_grpo.rewards.pool import KillablePool
from edge_grpo.rewards.signature import Row, Signature
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response

log = logging.getLogger(__name__)

_REPLY_BYTES = 2**20  # a batch replies with a number a response
_MESSAGE = 1000  # characters of an error in the sandbox
_LOST = {
    "timeout": ("did not end within timeout_s={1:g} in {0}", "timeout_rate"),
    "crash": ("ended its process in {0}, or went beyond its memory", "error_rate"),
}
"""kind -> what to tell of calls that a worker lost, and the rate in which they count"""


class FunctionReward:
    """What a function returns for each response; of several gold answers the highest counts.

    The names of the function's arguments say how it is called (`Signature`): one response at a time, all at once, as
    TRL calls its reward functions, or as verl does. It gets copies of the data's columns. It may be `async`; then its
    calls run side by side. In a list None stands for a response that is not judged and counts as 0, as in TRL.

    By default it runs in the training process, without time limit. With `sandbox` it runs in the processes of
    `KillablePool`, as the project's own graders do: each call has a time limit and a process of its own that cannot
    write files, start processes or open sockets. A call that is lost there counts as 0 and is counted. Under the name
    `accuracy`, 1 and above is right.

    Args:
        function: `module:function` or `path/to/file.py:function`, found in the working directory too; or the function.
        conversational: whether a TRL function gets prompts and completions as lists of chat messages. Null: for
            problems whose question stands in the data as a chat.
        sandbox: run it in killable, confined processes; the function must be given as text.
        workers: number of them.
        timeout_s: seconds a call may take there: a response, or all responses of a function that takes lists.
        memory_limit_gb: address space of such a process in GiB (Linux).

    Raises:
        UserError: when built, if the function is not found, takes what nobody has, or cannot run in the sandbox; when
            called, if it raises or returns something else than numbers. Names the function and the problem.

    >>> reward = FunctionReward(lambda question, answer, response: float(answer in response))
    >>> reward([Problem("a", "1 + 1 = ?", ("2", "two"))] * 2, ["it is two", "it is 3"])
    tensor([1., 0.])
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        conversational: bool | None = None,
        sandbox: bool = False,
        workers: int = 2,
        timeout_s: float = 5.0,
        memory_limit_gb: float = 2.0,
    ) -> None:
        self.function = load(function) if isinstance(function, str) else function
        self.name = function if isinstance(function, str) else _name_of(function)
        self.signature = Signature(self.function, f"reward function {self.name}", conversational)
        self._pool: KillablePool | None = None
        if sandbox:
            if not isinstance(function, str):
                raise UserError(f"reward function {self.name}: sandbox=true needs function=module:function, as text")
            if self.signature.is_async:
                raise UserError(f"reward function {self.name} is async, which needs sockets: set sandbox=false")
            preload = (call_by_name.__module__, function.rpartition(":")[0])
            self._pool = KillablePool(workers, timeout_s, memory_limit_gb, preload=preload, reply_bytes=_REPLY_BYTES)
        self._counts = dict.fromkeys(("total", "fast", "cached", "unparsed", "timeout", "error", "crash"), 0)
        self._has_answered = False
        self._warned: set[str] = set()

    @property
    def counts(self) -> dict[str, int]:
        """With `sandbox` the responses so far: `total`, and lost in a worker (`timeout`, `error`, `crash`)."""
        return {} if self._pool is None else dict(self._counts)

    def __call__(
        self, problems: Sequence[Problem], texts: Sequence[str], *, responses: Sequence[Response] | None = None
    ) -> Tensor:
        """See `Reward`."""
        known: Sequence[Response | None] = [None] * len(texts) if responses is None else responses
        given = zip(problems, texts, known, strict=True)
        rows, owners = [], []
        for index, (problem, text, response) in enumerate(given):
            for answer in self.signature.answers(problem):
                rows.append(Row(problem, answer, text, response))
                owners.append(index)
        if not rows:
            return torch.zeros(0)
        self.signature.check([row.problem for row in rows])
        of_row = self._values(rows)
        of_response: list[list[Value]] = [[] for _ in texts]
        for index, value in zip(owners, of_row, strict=True):
            of_response[index].append(value)
        if all(value is None for value in of_row):
            self._warn("judged", f"judged none of {len(texts)} responses: None for each of them, which counts as 0")
        return torch.tensor([_highest(values) for values in of_response], dtype=torch.float32)

    def ungradable(self, problems: Sequence[Problem]) -> list[str | None]:
        """Which columns that the function reads are missing of each problem; None where it has them all.

        Raises:
            UserError: no problem has a column of that name.
        """
        return self.signature.check(problems)

    def close(self) -> None:
        """Kill the workers, if there are any; the next call starts new ones."""
        if self._pool is not None:
            self._pool.close()

    def _values(self, rows: Sequence[Row]) -> list[Value]:
        """One value a row."""
        calls = self.signature.calls(rows)
        if self._pool is not None:
            return self._in_workers(self._pool, calls, rows)
        try:
            return [value for values in call_all(self.function, calls) for value in values]
        except CallError as error:
            raise self._failed(rows, error.index, str(error)) from (error.__cause__ or error)

    def _in_workers(
        self, pool: KillablePool, calls: Sequence[tuple[Arguments, int | None]], rows: Sequence[Row]
    ) -> list[Value]:
        before = dict(pool.counts)
        items = [(self.name, *call) for call in calls]
        size = len(rows) // len(calls)  # rows of a call
        found = pool.map(call_by_name, items, partial(_is_reply, size=size))
        failures = [
            (i, one_line(reply["failed"], _MESSAGE)) for i, reply in enumerate(found) if isinstance(reply, dict)
        ]
        self._counts["total"] += len(rows)
        self._counts["error"] += len(failures) * size
        for kind, count in pool.counts.items():
            self._counts[kind] += (count - before[kind]) * size
            if kind in _LOST and count > before[kind]:
                what, counted = _LOST[kind]
                told = what.format(f"{count - before[kind]} of {len(calls)} calls", pool.timeout_s)
                self._warn(kind, f"{told}; in the sandbox that counts as 0 and in verifier/{counted}")
        if failures and len(failures) == len(calls) and not self._has_answered:
            raise self._failed(rows, *failures[0])  # not one response's fault
        self._has_answered = self._has_answered or any(isinstance(reply, list) for reply in found)
        if failures:
            self._warn("error", f"{failures[0][1]}; in the sandbox that counts as 0 and in verifier/error_rate")
        lost: list[Value] = [0.0] * size
        return [value for reply in found for value in (reply if isinstance(reply, list) else lost)]

    def _failed(self, rows: Sequence[Row], index: int, message: str) -> UserError:
        if self.signature.is_batch:
            problem = rows[0].problem
            where = f"{len(rows)} responses, the first to problem {problem.origin or problem.id}"
        else:
            problem = rows[index].problem
            where = f"problem {problem.origin or problem.id}"
        return UserError(f"reward function {self.name}, {where}: {message}{self.signature.hint(message, problem)}")

    def _warn(self, kind: str, message: str) -> None:
        """Tell of each kind once."""
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("reward function %s %s", self.name, message)


def _name_of(function: Callable[..., Any]) -> str:
    inner = getattr(function, "func", function)  # Hydra hands a functools.partial
    return f"{inner.__module__}.{getattr(inner, '__qualname__', type(inner).__name__)}"


def _highest(values: Sequence[Value]) -> float:
    """
    >>> _highest([0.5, None, math.inf, 0.75]), _highest([None]), _highest([math.nan])
    (0.75, 0.0, nan)
    """
    judged = [value for value in values if value is not None]
    return max((value for value in judged if math.isfinite(value)), default=judged[0] if judged else 0.0)


def _is_reply(value: object, size: int) -> bool:
    """Whether `call_by_name` can have replied so: a process that an answer took over replies what it likes."""
    if isinstance(value, dict):
        return list(value) == ["failed"] and isinstance(value["failed"], str) and len(value["failed"]) <= _MESSAGE
    return isinstance(value, list) and len(value) == size and all(v is None or isinstance(v, float) for v in value)
