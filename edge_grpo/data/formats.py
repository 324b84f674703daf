r"""The layouts in which rows come: each is found by its columns, and `data.columns` goes before it.

A name with dots leads into a column: `reward_model.ground_truth`; a text on the way is read as JSON. The first of
several names that the table has is taken. Where the table has no answer, the last `\boxed{...}` of the solution is it.

verl (`verl.utils.dataset.RLHFDataset`):

>>> shown({"prompt": [{"role": "user", "content": "1 + 1?"}], "reward_model": {"style": "rule", "ground_truth": "2"},
...        "data_source": "sums", "extra_info": {"index": 0}})
verl rows (question: prompt, answer: reward_model.ground_truth)

PRIME (`PrimeIntellect/verifiable-math-problems`), whose gold stands in JSON text:

>>> shown({"problem_id": "p0", "prompt": "1 + 1?", "verification_info": '{"ground_truth": "2"}'})
PRIME rows (question: prompt, answer: verification_info.ground_truth, id: problem_id)

TRL (`GRPOTrainer`); a solution without a box is the gold answer itself, as for TRL's `accuracy_reward`:

>>> shown({"prompt": [{"role": "user", "content": "1 + 1?"}], "solution": "$2$", "problem": "1 + 1?"})
TRL rows (question: prompt, solution: solution)
>>> shown({"prompt": "1 + 1?", "answer": "2"})
TRL rows (question: prompt, answer: answer)

Question and answer, as most tables have them (GSM8K's `#### 2` is understood):

>>> shown({"problem": "1 + 1?", "answer": 2, "solution": "1 + 1 = 2.", "id": 7})
question and answer rows (question: problem, answer: answer, solution: solution, id: id)

MATH (2103.03874), where the solution alone holds the gold:

>>> shown({"problem": "1 + 1?", "solution": "It is \\boxed{2}.", "level": "Level 1"})
MATH rows (question: problem, solution: solution)

OpenRLHF (its `--input_key input --label_key label`):

>>> shown({"input": "1 + 1?", "label": "2"})
OpenRLHF rows (question: input, answer: label)

A chat, whose last turn of the assistant is the solution:

>>> shown({"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "\\boxed{2}"}]})
messages rows (question: messages)
"""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from edge_grpo.data.values import from_json, messages_of
from edge_grpo.errors import UserError, nearest

FIELDS = ("question", "answer", "solution", "correctness_rate", "id", "system")

Columns = dict[str, list[str] | str | None]
"""field -> accepted column names, the first that the table has wins; null leaves it to the rows' format. A text is
refused by `check_columns`, which can say how it is written."""

Names = tuple[str, ...]
Has = Callable[[str], bool]

OPTIONS = ("choices", "options")
"""columns that hold the options of a multiple choice"""

ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth", "gold")
COMMON: Mapping[str, Names] = {
    "solution": ("solution",),
    "correctness_rate": ("correctness_rate",),
    "id": ("id",),
    "system": ("system_prompt",),
}


@dataclass(frozen=True)
class RowFormat:
    """One layout of rows.

    Args:
        name: for messages.
        columns: field -> names of columns.
        gold_in: fields that hold the gold answer; a table of this format has the question and one of these.
        needs_chat: whether it is this format only if the question is a chat.
        bare_solution: whether a solution without a box is the gold answer itself, and no solution.
    """

    name: str
    columns: Mapping[str, Names]
    gold_in: Names = ("answer",)
    needs_chat: bool = False
    bare_solution: bool = False

    def found(self, field: str, has: Has) -> str | None:
        """The column of a field."""
        return next((name for name in self.columns.get(field, ()) if has(name)), None)

    def fits(self, has: Has, is_chat: Has) -> bool:
        """Whether a table has this format, by what it has and which of its columns hold chats."""
        question = self.found("question", has)
        if question is None or not any(self.found(field, has) for field in self.gold_in):
            return False
        return is_chat(question) or not self.needs_chat


TRL = RowFormat("TRL", {**COMMON, "question": ("prompt",), "answer": ANSWERS}, ("answer", "solution"), False, True)
QUESTION = RowFormat("question and answer", {**COMMON, "question": ("question", "problem"), "answer": ANSWERS})
FORMATS = (
    RowFormat("verl", {**COMMON, "question": ("prompt",), "answer": ("reward_model.ground_truth",)}),
    RowFormat(
        "PRIME",
        {
            **COMMON,
            "question": ("prompt",),
            "answer": ("verification_info.ground_truth",),
            "solution": ("gold_standard_solution",),
            "id": ("problem_id",),
        },
    ),
    replace(TRL, needs_chat=True),  # a prompt that is a chat was made for training, beside what it was made from
    QUESTION,
    replace(QUESTION, name="MATH", gold_in=("solution",)),
    TRL,
    RowFormat("OpenRLHF", {**COMMON, "question": ("input",), "answer": ("label",)}),
    RowFormat("messages", {**COMMON, "question": ("messages",), "answer": ANSWERS}, ("answer", "solution", "question")),
)
"""in the order in which they are tried"""


@dataclass(frozen=True)
class Layout:
    """Where the fields of one table stand.

    Args:
        name: of the format.
        columns: field -> its column; an optional field that the table lacks is absent.
        bare_solution: see `RowFormat`.
    """

    name: str
    columns: Mapping[str, str]
    bare_solution: bool

    def __str__(self) -> str:
        taken = [f"{field}: {self.columns[field]}" for field in FIELDS if field in self.columns]
        return f"{self.name} rows ({', '.join(taken)})"


ABSENT = object()


def lookup(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of what lies in it; `ABSENT` if there is none.

    >>> row = {"a.b": 1, "c": {"d": 2}, "e": '{"f": 3}'}
    >>> [lookup(row, name) for name in ("a.b", "c.d", "e.f")], lookup(row, "c.x") is ABSENT
    ([1, 2, 3], True)
    """
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    inner = row.get(head) if rest else None
    if isinstance(inner, str) and inner.lstrip().startswith("{"):
        inner = from_json(inner)
    return lookup(inner, rest) if isinstance(inner, Mapping) else ABSENT


def check_columns(columns: Mapping[str, Sequence[str] | None]) -> None:
    """Refuse a mapping with unknown fields, or with a text for a list.

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


def layout_of(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Sequence[str] | None],
    source: str,
    may_lack: Collection[str] = (),
) -> Layout:
    """The layout of a table: the first format that fits, with `columns` before its own names.

    Args:
        rows: of the table, at least one.
        columns: field -> accepted names; where they are given, no others are.
        source: for the message.
        may_lack: fields whose `columns` this table need not have.

    Raises:
        UserError: no column for the question or the answer, or none of those that `columns` names for a field.
    """
    check_columns(columns)
    chosen: dict[str, Names] = {field: tuple(names) for field, names in columns.items() if names}

    @cache
    def has(name: str) -> bool:
        return any(lookup(row, name) is not ABSENT for row in rows)

    @cache
    def is_chat(name: str) -> bool:
        return any(messages_of(lookup(row, name)) is not None for row in rows[:10])

    own = next((of for of in FORMATS if of.fits(has, is_chat)), None)
    tried = [own] if own else FORMATS
    candidates = [replace(of, columns={**of.columns, **chosen}) for of in tried]
    of = next((of for of in candidates if of.fits(has, is_chat)), None)
    missing = [f for f in FIELDS if f in chosen and f not in may_lack and not any(map(has, chosen[f]))]
    if of is None or missing:
        raise _no_column(rows, missing, candidates, has, source)
    taken = {field: name for field in FIELDS if (name := of.found(field, has))}
    return Layout(of.name if own else "data.columns", taken, of.bare_solution)


def _no_column(
    rows: Sequence[Mapping[str, Any]], missing: Sequence[str], candidates: Sequence[RowFormat], has: Has, source: str
) -> UserError:
    """What was looked for, what is there, and what may have been meant."""
    asked = any(of.found("question", has) for of in candidates)
    field = missing[0] if missing else "answer" if asked else "question"
    names = dict.fromkeys(name for of in candidates for name in of.columns.get(field, ()))
    wanted = sorted(names, key=lambda name: "." in name)
    there = _names(rows)
    near = _meant(wanted, field, there)
    if near:
        hint = f"; did you mean data.columns.{field}=[{near}]?"
    elif field in missing:
        hint = f": name one that is there in data.columns.{field}, or leave that out"
    else:
        hint = f": set data.columns.{field}=[...]"
    return UserError(f"{source}: no {field} column; looked for {', '.join(wanted)}, found {', '.join(there)}{hint}")


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All columns; of one with columns of its own, these."""
    names: dict[str, None] = {}
    for row in rows[:100]:
        for column, value in row.items():
            inner = from_json(value) if isinstance(value, str) and value.lstrip().startswith("{") else value
            names |= dict.fromkeys([f"{column}.{key}" for key in inner] if isinstance(inner, Mapping) else [column])
    return list(names)


def _meant(wanted: Sequence[str], field: str, there: Sequence[str]) -> str:
    """The column that one of the wanted names may have meant, or "".

    >>> _meant(["question"], "question", ["solution", "Quesiton"]), _meant(["question"], "question", ["solution"])
    ('Quesiton', '')
    >>> _meant(["answer"], "answer", ["my_answer"]), _meant(["answer"], "answer", ["meta.answer"])
    ('my_answer', 'meta.answer')
    >>> _meant(["answer", "label"], "answer", ["choices.label", "answerKey"])  # not the labels of the options
    'answerKey'
    >>> _meant(["prompt"], "question", ["system_prompt"])  # another field's
    ''
    """
    others = {name for of in FORMATS for other, names in of.columns.items() if other != field for name in names}

    leaves = [want.rpartition(".")[2].lower() for want in wanted]

    def likeness(name: str) -> float:
        leaf = name.rpartition(".")[2].lower()
        if any(leaf == want or leaf.endswith(f"_{want}") for want in leaves):
            return 1.0
        return max(difflib.SequenceMatcher(None, leaf, want).ratio() for want in leaves)

    taken = [name for name in there if name not in others and name.partition(".")[0] not in OPTIONS]
    near = [name for name in taken if likeness(name) >= 0.75]
    return max(near, key=likeness, default="")


def shown(row: Mapping[str, Any]) -> None:
    """Print the layout of a table of one row, for the examples above."""
    print(layout_of([row], {}, "example"))
