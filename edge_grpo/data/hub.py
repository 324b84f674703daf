"""Problems from a data set on the Hugging Face hub."""

from collections.abc import Collection
from typing import Any

from edge_grpo.data.bad_rows import BadRow
from edge_grpo.data.base import ProblemDataModule
from edge_grpo.data.formats import Columns, check_columns
from edge_grpo.data.rows import NOT_OF_HELD_OUT, divided, parse_rows
from edge_grpo.data.tables import Row
from edge_grpo.errors import UserError
from edge_grpo.types.problems import Problem


class HubDataModule(ProblemDataModule):
    """Problems from `train_split`, held-out ones from `held_out_split` or from a part of `train_split`'s good rows.

    Needs the extra `hub`; reads offline what the cache of `datasets` holds.

    Args:
        name: data set on the hub, or a folder that `datasets.load_dataset` takes.
        subset: the data set's configuration; null for its default.
        train_split: as `datasets` writes it, slices included.
        held_out_split: null holds out a part of `train_split`.
        revision: commit, tag or branch; a commit makes the run repeatable.
        held_out_count: how many, drawn the same way whatever `seed` is; null takes all of `held_out_split`.
        columns: see `FileDataModule`.
        shared: arguments of `ProblemDataModule`.

    Raises:
        UserError: a value out of range, or an unknown field in `columns`.
    """

    def __init__(
        self,
        name: str,
        subset: str | None,
        train_split: str,
        held_out_split: str | None,
        revision: str | None,
        held_out_count: int | None,
        columns: Columns,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        check_columns(columns)
        if held_out_split is None and held_out_count is None:
            raise UserError("data.held_out_count=null takes all of data.held_out_split, which is null: set one of them")
        self.name, self.subset, self.revision = name, subset, revision
        self.train_split, self.held_out_split = train_split, held_out_split
        self.held_out_count, self.columns = held_out_count, columns

    def load(self) -> tuple[list[Problem], list[Problem]]:
        """See `ProblemDataModule.load`.

        Raises:
            UserError: `datasets` is not installed, or the data set cannot be had.
        """
        problems = self._read(self.train_split)
        if self.held_out_split is None:
            return problems, []
        return problems, self._read(self.held_out_split, NOT_OF_HELD_OUT)

    def divide(self, train: list[Problem], held_out: list[Problem]) -> tuple[list[Problem], list[Problem]]:
        """See `ProblemDataModule.divide`."""
        other = None if self.held_out_split is None else self._source(self.held_out_split)
        return divided(train, held_out, self.held_out_count, self._source(self.train_split), other)

    def _source(self, split: str) -> str:
        return f"{self.name}[{split}]"

    def _read(self, split: str, may_lack: Collection[str] = ()) -> list[Problem]:
        keys = "data.name, data.subset, data.train_split, data.held_out_split or data.revision"
        return read_hub(self.name, self.subset, split, self.revision, self.columns, self.bad_rows, keys, may_lack)


def read_hub(
    name: str,
    subset: str | None,
    split: str,
    revision: str | None,
    columns: Columns,
    bad_rows: list[BadRow],
    keys: str,
    may_lack: Collection[str] = (),
) -> list[Problem]:
    """The problems of one split, without tokens; rows that do not fit join `bad_rows`.

    Args: see `HubDataModule`; `keys` are the settings that an error names; `may_lack`: see `layout_of`.

    Raises:
        UserError: `datasets` is not installed, the data set cannot be had, or it lacks a column.
    """
    table = _table(name, subset, split, revision, keys)
    source = f"{name}[{split}]"
    rows = [Row(f"{source}:{number}", number, row) for number, row in enumerate(table, start=1)]
    return parse_rows(rows, source, split, columns, bad_rows, may_lack)


def _table(name: str, subset: str | None, split: str, revision: str | None, keys: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("a data set from the hub needs the package datasets: pip install 'edge-grpo[hub]'") from error
    try:
        return datasets.load_dataset(name, subset, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{name}[{split}]: {' '.join(str(error).split())} ({keys})") from error
