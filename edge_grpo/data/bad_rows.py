"""Rows that cannot be used, and how they are told."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edge_grpo.errors import UserError, first_lines

log = logging.getLogger(__name__)

Row = TypeVar("Row")
Read = TypeVar("Read")


@dataclass(frozen=True)
class BadRow:
    """The first thing that is wrong with a row.

    >>> print(BadRow("f.jsonl:2", "answer", "None (NoneType)", "a text that is not empty"))
    f.jsonl:2: answer is None (NoneType), expected a text that is not empty
    """

    where: str
    """`file:row`"""
    what: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} is {self.found}, expected {self.expected}"


class BadRowError(UserError):
    """A row that cannot be used, raised where it is read."""

    def __init__(self, row: BadRow) -> None:
        super().__init__(str(row))
        self.row = row


def passing(rows: Iterable[Row], read: Callable[[Row], Read], bad_rows: list[BadRow]) -> list[Read]:
    """What `read` makes of every row, without those for which it raises `BadRowError`; these join `bad_rows`."""
    good = []
    for row in rows:
        try:
            good.append(read(row))
        except BadRowError as error:
            bad_rows.append(error.row)
    return good


def in_order(bad_rows: Iterable[BadRow]) -> list[BadRow]:
    """The rows as they stand in their sources, whichever check found them.

    >>> [row.where for row in in_order(BadRow(where, "", "", "") for where in ("f:10", "f:9", "e:11", "made-1"))]
    ['made-1', 'e:11', 'f:9', 'f:10']
    """

    def place(row: BadRow) -> tuple[str, int]:
        source, _, number = row.where.rpartition(":")
        return source, int(number) if number.isdecimal() else 0

    return sorted(bad_rows, key=place)


def refusal(bad_rows: Sequence[BadRow]) -> str:
    """The message for `data.on_bad_row=error`: what is wrong, and the way out.

    >>> row = BadRow("f.jsonl:2", "id", "''", "a text")
    >>> print(refusal([row]))
    f.jsonl:2: id is '', expected a text; mend it, or data.on_bad_row=skip leaves it out
    >>> print(refusal([row] * 11).replace("  f.jsonl:2: id is '', expected a text\\n", "."))
    11 bad rows; mend them, or data.on_bad_row=skip leaves them out:
    ..........  ... and 1 more
    """
    if len(bad_rows) == 1:
        return f"{bad_rows[0]}; mend it, or data.on_bad_row=skip leaves it out"
    return f"{len(bad_rows)} bad rows; mend them, or data.on_bad_row=skip leaves them out:\n{first_lines(bad_rows)}"


def report_bad_rows(bad_rows: Sequence[BadRow], folder: Path) -> None:
    """Write the rows that were left out to `bad_rows.txt`, one a line, and warn; nothing where there are none."""
    if bad_rows:
        path = folder / "bad_rows.txt"
        path.write_text("".join(f"{row}\n" for row in bad_rows), encoding="utf-8")
        log.warning("%d bad rows are left out: %s", len(bad_rows), path)
