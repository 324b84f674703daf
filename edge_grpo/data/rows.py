"""Rows of any table -> problems; a row that does not fit is collected, a table that does not is refused."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from edge_grpo.data.bad_rows import BadRow, BadRowError, passing
from edge_grpo.data.checks import asked, tell_hidden_options
from edge_grpo.data.files import Unreadable
from edge_grpo.data.formats import ABSENT, Layout, layout_of, lookup
from edge_grpo.data.tables import Row
from edge_grpo.data.values import (
    TEXT,
    Place,
    chat,
    gold_answers,
    gold_in_box,
    gsm8k,
    identity,
    is_text,
    messages_of,
    rate,
    text_or_none,
)
from edge_grpo.errors import UserError
from edge_grpo.seeding import stage_generator
from edge_grpo.types.problems import Problem, Turn

log = logging.getLogger(__name__)

NOT_OF_HELD_OUT = ("solution", "correctness_rate", "id")
"""fields that `columns` may name although the held-out rows, which have the same `columns`, lack them"""


def parse_rows(
    rows: Sequence[Row],
    source: str,
    stem: str,
    columns: Mapping[str, Sequence[str] | None],
    bad_rows: list[BadRow],
    may_lack: Collection[str] = (),
) -> list[Problem]:
    """Problems of a table, without tokens; one log line says as what its rows are read.

    Args:
        rows: of the table.
        source: file or data set, for messages.
        stem: a row without an id is called `<stem>-<row>`.
        columns: field -> accepted column names, which go before the format's.
        bad_rows: gets the rows that do not fit; they leave no problem.
        may_lack: see `layout_of`.

    Raises:
        UserError: no rows, or a missing column.
    """
    if not rows:
        raise UserError(f"{source}: no rows")
    objects = passing(rows, _object, bad_rows)
    if not objects:
        return []
    layout = layout_of([values for _, values in objects], columns, source, may_lack)
    log.info("%s: read as %s", source, layout)
    problems = passing(objects, lambda pair: _problem(pair[1], pair[0], f"{stem}-{pair[0].number}", layout), bad_rows)
    tell_hidden_options(problems, source)
    return problems


def _object(row: Row) -> tuple[Row, Mapping[str, Any]]:
    if isinstance(row.value, Unreadable):
        raise BadRowError(BadRow(row.where, "line", row.value.found, row.value.expected))
    if not isinstance(row.value, Mapping):
        Place(row.where, "row").refuse(row.value, "an object {column: value}")
    return row, row.value


def _problem(values: Mapping[str, Any], row: Row, default_id: str, layout: Layout) -> Problem:
    def read(field: str) -> tuple[Any, Place]:
        name = layout.columns.get(field)
        value = None if name is None else lookup(values, name)
        return None if value is ABSENT else value, Place(row.where, name or field)

    value, place = read("question")
    messages = messages_of(value)
    turns, question, reference = _question(value, messages, place)
    turns = _with_system(turns, *read("system"))
    solution = text_or_none(*read("solution")) or reference
    answers, solution = _gold(*read("answer"), solution, layout)
    return Problem(
        id=identity(*read("id"), default_id),
        question=question,
        answers=answers,
        solution=solution,
        correctness_rate=rate(*read("correctness_rate")),
        origin=row.where,
        columns=MappingProxyType({k: value for k, value in values.items() if k != layout.columns["question"]}),
        turns=turns,
        is_chat=messages is not None,
    )


def _question(value: object, messages: Sequence[Any] | None, place: Place) -> tuple[tuple[Turn, ...], str, str | None]:
    """(turns before the question, question, reference) of a text or a chat, whose messages are `messages`."""
    if messages is not None:
        # Only messages are said by the assistant too; a prompt that ends so would be one to go on from.
        return chat(messages, place, with_reference=place.column.rpartition(".")[2] == "messages")
    if not is_text(value) or not value.strip():
        expected = f"{TEXT}, or a chat, [{{role: user, content: ...}}]" if isinstance(value, list | Mapping) else TEXT
        place.refuse(value, expected)
    return (), place.whole(value), None


def _with_system(turns: tuple[Turn, ...], value: object, place: Place) -> tuple[Turn, ...]:
    """The turns behind the system prompt of a column of its own."""
    prompt = text_or_none(value, place)
    if prompt is None:
        return turns
    if turns and turns[0].role == "system":
        if turns[0].content.strip() != prompt.strip():
            place.refuse(prompt, "none beside the system turn of the chat, or the same")
        return turns
    return (Turn("system", prompt), *turns)


def _gold(value: object, place: Place, solution: str | None, layout: Layout) -> tuple[tuple[str, ...], str | None]:
    """(gold answers, worked solution)."""
    worked = gsm8k(solution) if solution else None
    if "answer" in layout.columns:
        marked = gsm8k(place.whole(value)) if is_text(value) else None
        if marked and not solution:
            return gold_answers(marked[0], place), marked[1]
        return gold_answers(marked[0] if marked else value, place), worked[1] if worked else solution
    place = Place(place.where, layout.columns.get("solution", layout.columns["question"]))
    if solution is None:
        place.refuse_as("without a solution", "one, as there is no answer column")
    if worked:
        return gold_answers(worked[0], place), worked[1]
    boxed = gold_in_box(solution)
    if boxed is None and layout.bare_solution and "\n" not in solution.strip():
        return gold_answers(solution, place), None
    if boxed is None:
        place.refuse(solution, "a last \\boxed{...} with the gold answer, as there is no answer column")
    return (boxed,), solution


def hold_out(
    problems: Sequence[Problem], count: int, source: str, *, trained_on: bool = True
) -> tuple[list[Problem], list[Problem]]:
    """Split into (rest, `count` held-out problems), both in their old order.

    The same problems are held out whatever data.seed is, so that runs with different seeds are compared on the same
    questions. Of a question that occurs twice no row is held out: the other row would leak it into training.

    Args:
        problems: of one source.
        count: of held-out problems.
        source: for the message.
        trained_on: whether the rest is trained on, so that there must be one.

    Raises:
        UserError: too few problems, or none left to train on.
    """
    copies = Counter(asked(problem) for problem in problems)
    candidates = [i for i, problem in enumerate(problems) if copies[asked(problem)] == 1]
    most = min(len(candidates), len(problems) - trained_on)
    if not 1 <= count <= most:
        rows = f"{source} has {len(problems)} good row{'s' if len(problems) != 1 else ''}"
        if not candidates:
            rows += ", and each question occurs more than once, so none can be held out"
        elif not most:
            rows += ", which is trained on, so none can be held out"
        elif len(candidates) < len(problems):
            rows += f", {len(candidates)} of them with a question that occurs once"
        if trained_on:
            way_out = f"set it to 1 to {most}, as one row must be left to train on, or " if most else ""
            way_out += "name held-out rows in data.held_out_path (data=hub: data.held_out_split)"
        else:
            way_out = f"set it to 1 to {most}, or to null for all of them" if most else "set it to null for all of them"
        raise UserError(f"data.held_out_count={count}: {rows}; {way_out}")
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
        _, held_out = hold_out(held_out, count, held_out_source, trained_on=False)
    return train, held_out
