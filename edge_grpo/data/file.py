"""Problems from a file or a folder: see `tables.read_table`."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from edge_grpo.data.bad_rows import BadRow
from edge_grpo.data.base import ProblemDataModule
from edge_grpo.data.formats import Columns, check_columns
from edge_grpo.data.rows import NOT_OF_HELD_OUT, divided, parse_rows
from edge_grpo.data.tables import read_table
from edge_grpo.errors import UserError
from edge_grpo.types.problems import Problem


class FileDataModule(ProblemDataModule):
    """Problems from `path`, held-out ones from `held_out_path` or from a part of `path`'s good rows.

    Args:
        path: see `read_table`.
        held_out_path: null holds out a part of `path`.
        held_out_count: how many, drawn the same way whatever `seed` is; null takes all of `held_out_path`.
        columns: field (question, answer, solution, correctness_rate, id, system) -> accepted column names, which go
            before those of the rows' format (`formats`); null leaves the field to the format.
        shared: arguments of `ProblemDataModule`.

    Raises:
        UserError: a value out of range, or an unknown field in `columns`.
    """

    def __init__(
        self,
        path: str,
        held_out_path: str | None,
        held_out_count: int | None,
        columns: Columns,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        check_columns(columns)
        if held_out_path is None and held_out_count is None:
            raise UserError("data.held_out_count=null takes all of data.held_out_path, which is null: set one of them")
        self.path, self.held_out_path = path, held_out_path
        self.held_out_count, self.columns = held_out_count, columns

    def load(self) -> tuple[list[Problem], list[Problem]]:
        """See `ProblemDataModule.load`."""
        problems = read_problems(self.path, self.columns, self.bad_rows)
        if self.held_out_path is None:
            return problems, []
        held_out = read_problems(self.held_out_path, self.columns, self.bad_rows, may_lack=NOT_OF_HELD_OUT)
        return problems, held_out

    def divide(self, train: list[Problem], held_out: list[Problem]) -> tuple[list[Problem], list[Problem]]:
        """See `ProblemDataModule.divide`."""
        return divided(train, held_out, self.held_out_count, self.path, self.held_out_path)


def read_problems(
    path: str | Path,
    columns: Columns,
    bad_rows: list[BadRow],
    split: str | None = None,
    may_lack: Collection[str] = (),
) -> list[Problem]:
    """All problems of a file or folder, without tokens.

    Args:
        path: see `read_table`.
        columns: field -> accepted column names, which go before the format's.
        bad_rows: gets the rows that do not fit; they leave no problem.
        split: which one of a folder of several; only there.
        may_lack: see `layout_of`.

    Raises:
        UserError: cannot be read, or has no such column.
    """
    table = read_table(path, split)
    return parse_rows(table.rows, table.source, table.stem, columns, bad_rows, may_lack)
