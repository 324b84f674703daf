"""Rows of any table -> problems; a row that does not fit is collected, a table that does not is refused."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeGuard

import torch

from edge_grpo.data.bad_rows import BadRow, BadRowError, passing
from edge_grpo.errors import UserError
from edge_grpo.nearest import nearest
from edge_grpo.seeding import stage_generator
from edge_grpo.types import Problem

FIELDS = ("question", "answer", "solution", "correctness_rate", "id")
REQUIRED = ("question", "answer")

Columns = dict[str, list[str]]
"""field -> accepted column names, the first that the table has wins"""

GSM8K_ANSWER = re.compile(r"^#### (.*)$", re.MULTILINE)
GSM8K_CALCULATION = re.compile(r"<<.*?>>")
SURROGATE = re.compile("[\ud800-\udfff]")


def check_columns(columns: Mapping[str, Sequence[str]]) -> None:
    """Refuse a mapping with unknown fields, or without the required ones.

    Raises:
        UserError: names the field under data.columns.
    """
    for field, names in columns.items():
        if field not in FIELDS:
            near = nearest(field, FIELDS)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(FIELDS)}"
            raise UserError(f"data.columns.{field}: no such field; {hint}")
        if isinstance(names, str):
            raise UserError(f"data.columns.{field}={names}: expected a list, [{names}]")
    missing = [field for field in REQUIRED if not columns.get(field)]
    if missing:
        raise UserError(f"data.columns.{missing[0]} needs at least one column name")


def parse_rows(
    rows: Sequence[tuple[int, object]],
    source: str,
    stem: str,
    columns: Mapping[str, Sequence[str]],
    bad_rows: list[BadRow],
) -> list[Problem]:
    """Problems of a table, without tokens.

    Args:
        rows: (row number from 1, {column: value}, or the error of a line that is not JSON).
        source: file or data set, for error messages.
        stem: a row without an id is called `<stem>-<row>`.
        columns: field -> accepted column names.
        bad_rows: gets the rows that do not fit; they leave no problem.

    Raises:
        UserError: no rows, or a missing column.
    """
    if not rows:
        raise UserError(f"{source}: no rows")
    objects = passing(rows, lambda row: _numbered_object(*row, source), bad_rows)
    if not objects:
        return []
    names = match_columns(list(dict.fromkeys(column for _, row in objects for column in row)), columns, source)
    return passing(objects, lambda row: _problem(row[1], f"{source}:{row[0]}", f"{stem}-{row[0]}", names), bad_rows)


def _numbered_object(number: int, row: object, source: str) -> tuple[int, Mapping[str, Any]]:
    where, expected = f"{source}:{number}", "an object {column: value}"
    if isinstance(row, Exception):
        raise BadRowError(BadRow(where, "line", f"not JSON ({row})", expected))
    if not isinstance(row, Mapping):
        _refuse(where, "row", row, expected)
    return number, row


def match_columns(found: Sequence[str], columns: Mapping[str, Sequence[str]], source: str) -> dict[str, str]:
    """Field -> the column that holds it; an optional field without a column is absent.

    >>> match_columns(["problem", "gold"], {"question": ["question", "problem"], "answer": ["gold"], "id": ["id"]}, "f")
    {'question': 'problem', 'answer': 'gold'}

    Raises:
        UserError: no column for the question or the answer.
    """
    check_columns(columns)
    names = {}
    for field, accepted in columns.items():
        present = [name for name in accepted if name in found]
        if present:
            names[field] = present[0]
        elif field in REQUIRED:
            near = [match for match in (nearest(name, found) for name in accepted) if match]
            hint = f"; did you mean data.columns.{field}=[{near[0]}]?" if near else f": set data.columns.{field}=[...]"
            raise UserError(
                f"{source}: no {field} column; looked for {', '.join(accepted)}, found {', '.join(found)}{hint}"
            )
    return names


def hold_out(problems: Sequence[Problem], count: int, source: str) -> tuple[list[Problem], list[Problem]]:
    """Split into (rest, `count` held-out problems), both in their old order.

    The same problems are held out whatever data.seed is, so that runs with different seeds are compared on the same
    questions. Of a question that occurs twice no row is held out: the other row would leak it into training.

    Raises:
        UserError: too few problems, or none left to train on.
    """
    copies = Counter(problem.question for problem in problems)
    candidates = [i for i, problem in enumerate(problems) if copies[problem.question] == 1]
    if not 1 <= count <= len(candidates) or count == len(problems):
        raise UserError(
            f"data.held_out_count={count}: {source} has {len(problems)} good rows, {len(candidates)} of them with a "
            "question that occurs once; hold out at least 1 of those and leave 1 row to train on"
        )
    order = torch.randperm(len(candidates), generator=stage_generator(0, "held_out")).tolist()
    chosen = {candidates[i] for i in order[-count:]}
    rest = [problem for i, problem in enumerate(problems) if i not in chosen]
    return rest, [problem for i, problem in enumerate(problems) if i in chosen]


def divided(
    train: list[Problem], held_out: list[Problem], count: int | None, source: str, held_out_source: str | None
) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) problems: `count` held out of `held_out` if it has a source of its own, else of `train`.

    Raises:
        UserError: too few problems.
    """
    if held_out_source is None:
        assert count is not None, "the constructors check this"
        return hold_out(train, count, source)
    # All rows of a source that is only evaluated may be taken, so hold_out's remainder is not needed.
    if count is not None and count != len(held_out):
        _, held_out = hold_out(held_out, count, held_out_source)
    return train, held_out


def _problem(row: Any, where: str, default_id: str, names: Mapping[str, str]) -> Problem:
    values = {field: row.get(column) for field, column in names.items()}
    question, answer = values["question"], values["answer"]
    if not _is_text(question) or not question.strip():
        _refuse(where, names["question"], question, "a text that is not empty")
    solution = _text_or_none(values.get("solution"), where, names.get("solution", "solution"))
    if isinstance(answer, str) and (marked := GSM8K_ANSWER.search(answer)):
        answers = _answers(marked[1].replace(",", ""), where, names["answer"])
        if "solution" not in names:
            solution = _gsm8k_solution(answer[: marked.start()], answers[0])
    else:
        answers = _answers(answer, where, names["answer"])
    return Problem(
        id=_id(values.get("id"), default_id, where, names.get("id", "id")),
        question=question,
        answers=answers,
        solution=solution,
        correctness_rate=_rate(
            values.get("correctness_rate"), where, names.get("correctness_rate", "correctness_rate")
        ),
        origin=where,
    )


def _gsm8k_solution(steps: str, answer: str) -> str:
    r"""
    >>> _gsm8k_solution("He has 48/2 = <<48/2=24>>24 clips.\n", "24")
    'He has 48/2 = 24 clips.\n\\boxed{24}'
    """
    return f"{GSM8K_CALCULATION.sub('', steps).rstrip()}\n\\boxed{{{answer}}}"


def _answers(value: object, where: str, column: str) -> tuple[str, ...]:
    """Gold answers of one value or of a list of them."""
    values = value if isinstance(value, list | tuple) else [value]
    texts = tuple(_answer_text(item) for item in values)
    if not texts or not all(texts):
        _refuse(where, column, value, "a text that is not empty, a finite number, or a list of these")
    return texts


def _answer_text(value: object) -> str:
    """One gold answer, or "" where it is none.

    >>> [_answer_text(v) for v in (" 9.6\\n", 8.0, 0.5, 12, True, None, float("nan"))]
    ['9.6', '8', '0.5', '12', '', '', '']
    """
    if _is_text(value):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    # Tables hold whole numbers as floats where another row has a fraction.
    return str(int(value)) if value == int(value) else repr(value)


def _text_or_none(value: object, where: str, column: str) -> str | None:
    if value is not None and not _is_text(value):
        _refuse(where, column, value, "a text or null")
    return value if value and value.strip() else None


def _rate(value: object, where: str, column: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        _refuse(where, column, value, "a number in [0, 1] or null")
    return float(value)


def _id(value: object, default: str, where: str, column: str) -> str:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        _refuse(where, column, value, "a text that is not empty, a whole number, or null")
    return str(value)


def _is_text(value: object) -> TypeGuard[str]:
    """Whether this is a text that can be written as UTF-8: JSON also holds halves of surrogate pairs."""
    return isinstance(value, str) and not SURROGATE.search(value)


def _refuse(where: str, column: str, value: object, expected: str) -> NoReturn:
    shown = repr(value)
    found = f"{shown[:60]}..." if len(shown) > 60 else shown
    raise BadRowError(BadRow(where, column, f"{found} ({type(value).__name__})", expected))
