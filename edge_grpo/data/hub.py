"""Problems from a data set on the Hugging Face hub."""

from typing import Any

from edge_grpo.data.base import ProblemDataModule
from edge_grpo.data.rows import Columns, check_columns, divided, parse_rows
from edge_grpo.errors import UserError
from edge_grpo.types import Problem


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
        columns: field (question, answer, solution, correctness_rate, id) -> accepted column names.
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
        return problems, [] if self.held_out_split is None else self._read(self.held_out_split)

    def divide(self, train: list[Problem], held_out: list[Problem]) -> tuple[list[Problem], list[Problem]]:
        """See `ProblemDataModule.divide`."""
        other = None if self.held_out_split is None else self._source(self.held_out_split)
        return divided(train, held_out, self.held_out_count, self._source(self.train_split), other)

    def _source(self, split: str) -> str:
        return f"{self.name}[{split}]"

    def _read(self, split: str) -> list[Problem]:
        rows = list(enumerate(self._table(split), start=1))
        return parse_rows(rows, self._source(split), split, self.columns, self.bad_rows)

    def _table(self, split: str) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise UserError("data=hub needs the package datasets: pip install 'edge-grpo[hub]'") from error
        try:
            return datasets.load_dataset(self.name, self.subset, split=split, revision=self.revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"{self._source(split)}: {' '.join(str(error).split())} "
                "(data.name, data.subset, data.train_split, data.held_out_split or data.revision)"
            ) from error
