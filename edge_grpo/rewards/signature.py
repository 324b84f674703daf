"""How a reward function wants to be called, which the names of its arguments say."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from edge_grpo.errors import UserError, nearest
from edge_grpo.rewards._call import Arguments
from edge_grpo.types.problems import Problem, Turn
from edge_grpo.types.responses import Response

Style = Literal["response", "batch", "trl", "verl", "verl_batch"]

SINGULAR = ("question", "answer", "response", "finish_reason", "solution", "columns")
PLURAL = ("questions", "answers", "responses", "finish_reasons", "solutions", "columns")
TRL = ("prompts", "completions", "completion_ids", "answer", "solution")
VERL = ("data_source", "solution_str", "ground_truth", "extra_info")
VERL_BATCH = ("data_sources", "solution_strs", "ground_truths", "extra_infos")
OURS: Mapping[Style, tuple[str, ...]] = {
    "response": SINGULAR,
    "batch": PLURAL,
    "trl": TRL,
    "verl": VERL,
    "verl_batch": VERL_BATCH,
}
"""style -> the arguments that it has whatever the data is"""

# TRL's own trainer hands these; they belong to it, and there is nothing like them here.
_OF_TRL = ("trainer_state", "log_extra", "log_metric", "environments")
# What a function raises that takes a text for a list of messages, or the reverse.
_MISREAD = ("Type", "Attribute", "Index")
# TRL hands the other columns only.
_NOT_OF_TRL = ("prompt", "completion", "completion_ids")


class Row(NamedTuple):
    """One response against one gold answer."""

    problem: Problem
    answer: str
    text: str
    response: Response | None
    """None: nobody generated the text"""


class Signature:
    """The style of a function, and the arguments of its calls.

    | style | recognised by an argument called | called with |
    |---|---|---|
    | trl | `prompts`, `completions` or `completion_ids` | lists; every column of the data, as a list, by its name |
    | verl | `solution_str` | one response: `data_source`, `solution_str`, `ground_truth`, `extra_info` |
    | verl_batch | `solution_strs` | the plurals of these, as lists |
    | batch | `questions`, `answers`, `responses`, `finish_reasons` or `solutions` | lists; so are columns |
    | response | anything else | one response: those names in the singular, and columns by name |

    Arguments are handed by name. One that has a default and that nobody has keeps it; `**kwargs` gets all there is.

    Contracts: TRL 1.x `GRPOTrainer` (`reward_funcs`), verl 0.x `NaiveRewardManager` and `BatchRewardManager`.

    Args:
        function: any callable.
        subject: what errors begin with.
        conversational: see `FunctionReward`.

    Raises:
        UserError: an argument that the style does not have.

    >>> Signature(lambda completions, **kwargs: [0.0], "f").style, Signature(lambda response: 0.0, "f").style
    ('trl', 'response')
    """

    def __init__(self, function: Callable[..., Any], subject: str, conversational: bool | None = None) -> None:
        self._subject, self._conversational = subject, conversational
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as error:
            raise UserError(f"{subject} has no signature that can be read: wrap it in a function") from error
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
        if positional:
            raise UserError(f"{subject} takes {positional[0]} by position only; arguments are handed by name")
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._names = {p.name for p in named}
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._required = [p.name for p in named if p.default is p.empty]
        self.style = _style(self._names)
        self.is_batch = self.style in ("batch", "trl", "verl_batch")
        called = function if inspect.isroutine(function) else getattr(function, "func", type(function).__call__)
        self.is_async = inspect.iscoroutinefunction(called)
        if not (self._names or self._takes_all):
            raise UserError(f"{subject} takes no argument; there are {', '.join(SINGULAR)} and the data's columns")
        self._refuse_what_nobody_has()

    def answers(self, problem: Problem) -> tuple[str, ...]:
        """The gold answers against which a response is judged one by one; one where the function reads none of them."""
        gold = {"batch": "answers", "verl": "ground_truth", "verl_batch": "ground_truths"}.get(self.style, "answer")
        columns = problem.columns
        own = self.style == "trl" and "answer" in columns
        own = own or (self.style.startswith("verl") and _ground_truth(columns) is not None)
        reads = not own and (gold in self._names or self._takes_all)
        return (problem.answers if reads else problem.answers[:1]) or ("",)

    def check(self, problems: Sequence[Problem]) -> list[str | None]:
        """Which columns that the function needs each problem lacks; None where it lacks none.

        Raises:
            UserError: an argument that is no column of any problem.
        """
        if self.style.startswith("verl"):
            return [None] * len(problems)
        ours = OURS[self.style]
        needed = [name for name in self._required if name not in ours]
        if not (needed and problems):
            return [None] * len(problems)
        present = {name for problem in problems for name in problem.columns}
        for name in needed:
            if name not in present:
                raise self._unknown(name, f"of the data ({', '.join(sorted(present)) or 'which has none'})", present)
        lacking = ([name for name in needed if name not in problem.columns] for problem in problems)
        return [f"no column {names[0]!r}, which {self._subject} takes" if names else None for names in lacking]

    def calls(self, rows: Sequence[Row]) -> list[tuple[Arguments, int | None]]:
        """The arguments of each call, and for a call that gets lists their length."""
        if self.style in ("response", "verl"):
            of_one = self._of_response if self.style == "response" else _of_verl
            return [(self._taken(of_one(row)), None) for row in rows]
        if self.style == "verl_batch":
            each = [_of_verl(row) for row in rows]
            together = {f"{name}s": [arguments[name] for arguments in each] for name in VERL}
        else:
            together = self._of_trl(rows) if self.style == "trl" else self._of_batch(rows)
        return [(self._taken(together), len(rows))]

    def hint(self, message: str, problem: Problem) -> str:
        """What may help against an error of the function, called for this problem."""
        if self.style != "trl" or not message.startswith(tuple(f"raised {name}Error" for name in _MISREAD)):
            return ""
        got, other = ("chat messages", "texts") if self._is_chat(problem) else ("texts", "chat messages")
        to_set = f"reward.conversational={str(not self._is_chat(problem)).lower()}"
        return f"; it got {got}: if it reads {other}, set {to_set}"

    def _of_response(self, row: Row) -> Arguments:
        columns = self._columns(row)
        values = (row.problem.question, row.answer, row.text, _finish_reason(row), row.problem.solution, columns)
        return {**columns, **dict(zip(SINGULAR, values, strict=True))}

    def _of_batch(self, rows: Sequence[Row]) -> Arguments:
        each = [self._of_response(row) for row in rows]
        lists = {
            plural: [arguments[single] for arguments in each] for single, plural in zip(SINGULAR, PLURAL, strict=True)
        }
        return {**_as_lists([arguments["columns"] for arguments in each]), **lists}

    def _of_trl(self, rows: Sequence[Row]) -> Arguments:
        chats = [self._is_chat(row.problem) for row in rows]
        columns = [self._columns(row) for row in rows]
        for row, values in zip(rows, columns, strict=True):
            for name in _NOT_OF_TRL:
                values.pop(name, None)
            values.setdefault("answer", row.answer)
            values.setdefault("solution", row.problem.solution)
        return {
            **_as_lists(columns),
            "prompts": [_prompt(row.problem, chat) for row, chat in zip(rows, chats, strict=True)],
            "completions": [
                [{"role": "assistant", "content": row.text}] if chat else row.text
                for row, chat in zip(rows, chats, strict=True)
            ],
            "completion_ids": [[] if row.response is None else row.response.token_ids.tolist() for row in rows],
        }

    def _columns(self, row: Row) -> dict[str, Any]:
        """A copy: what a function does to it must not reach the next iteration."""
        if self._takes_all or not self._names <= set(OURS[self.style]) or "columns" in self._names:
            return copy.deepcopy(dict(row.problem.columns))
        names = [name for name in self._names if name in row.problem.columns]
        return {name: copy.deepcopy(row.problem.columns[name]) for name in names}

    def _is_chat(self, problem: Problem) -> bool:
        return problem.is_chat if self._conversational is None else self._conversational

    def _taken(self, arguments: Arguments) -> Arguments:
        return arguments if self._takes_all else {k: v for k, v in arguments.items() if k in self._names}

    def _refuse_what_nobody_has(self) -> None:
        for name in self._required:
            if self.style.startswith("verl") and name not in OURS[self.style]:
                raise self._unknown(name, "that verl hands", ())
            if self.style == "trl" and name in _OF_TRL:
                raise UserError(f"{self._subject} takes {name}, which only TRL's trainer has: give it a default")

    def _unknown(self, name: str, columns: str, present: Any) -> UserError:
        ours = OURS[self.style]
        near = nearest(name, [*ours, *present])
        hint = f"; did you mean {near}?" if near else ""
        return UserError(
            f"{self._subject} takes {name}, which is none of {', '.join(ours)} and no column {columns}{hint}"
        )


def _style(names: set[str]) -> Style:
    if names & {"prompts", "completions", "completion_ids"}:
        return "trl"
    if "solution_str" in names:
        return "verl"
    if "solution_strs" in names:
        return "verl_batch"
    return "batch" if names & set(PLURAL) - {"columns"} else "response"


def _finish_reason(row: Row) -> str | None:
    return None if row.response is None else row.response.finish_reason


def _prompt(problem: Problem, chat: bool) -> Any:
    if not chat:
        return problem.question
    return [turn._asdict() for turn in (*problem.turns, Turn("user", problem.question))]


def _ground_truth(columns: Mapping[str, Any]) -> Any:
    """verl keeps it in `reward_model.ground_truth`."""
    found = columns.get("reward_model")
    return found.get("ground_truth") if isinstance(found, Mapping) else None


def _of_verl(row: Row) -> Arguments:
    columns = row.problem.columns
    truth = _ground_truth(columns)
    return {
        "data_source": columns.get("data_source") or "",
        "solution_str": row.text,
        "ground_truth": row.answer if truth is None else copy.deepcopy(truth),
        "extra_info": copy.deepcopy(columns.get("extra_info") or {}),
    }


def _as_lists(columns: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """
    >>> _as_lists([{"level": 1, "by": "me"}, {"level": 2}])
    {'level': [1, 2], 'by': ['me', None]}
    """
    names = dict.fromkeys(name for values in columns for name in values)
    return {name: [values.get(name) for values in columns] for name in names}
