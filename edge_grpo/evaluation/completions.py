"""completions.parquet: every graded response of an evaluation, from which scores and analyses are computed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from edge_grpo.errors import UserError
from edge_grpo.types.problems import Problem

SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("problem", pa.string()),  # its id
        ("sample", pa.int32()),  # 0 to n - 1
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),  # gold
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("tokens", pa.int32()),
        ("finish_reason", pa.string()),  # stop or length
        ("answer", pa.string()),  # the last boxed one, null without any
        ("correct", pa.bool_()),
        ("unparsed", pa.bool_()),  # no answer that the grader can read
        ("entropy", pa.float32()),  # nats a token: see entropy.py
        ("reflection", pa.string()),  # the first marker that the policy wrote by itself: see reflection.py
        ("correct_before_reflection", pa.bool_()),
        ("forced_response", pa.string()),
        ("forced_tokens", pa.int32()),
        ("forced_correct", pa.bool_()),
    ]
)
"""columns of completions.parquet"""

OPTIONAL = (
    *("answer", "entropy", "reflection", "correct_before_reflection"),
    *("forced_response", "forced_tokens", "forced_correct"),
)
"""columns in which a row may be null"""
FILE = "completions.parquet"
_PARTS = ".parts"


class CompletionStore:
    """Completions of one evaluation on the disk, written batch by batch so that a kill loses one batch at most.

    Batches are whole files under `<folder>/.parts` until `finish` makes one file of them.

    Args:
        folder: of the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._parts = folder / FILE, folder / _PARTS

    def load(self) -> pd.DataFrame:
        """The rows written so far, in that order; an empty table at first."""
        paths = [self.path] if self.path.exists() else sorted(self._parts.glob("*.parquet"))
        tables = [pq.read_table(path, schema=SCHEMA) for path in paths]
        return pa.concat_tables(tables).to_pandas() if tables else SCHEMA.empty_table().to_pandas()

    def append(self, rows: pd.DataFrame) -> None:
        """Add one batch.

        Raises:
            OSError: the disk is full; nothing is left of the batch.
        """
        self._parts.mkdir(parents=True, exist_ok=True)
        _write(rows, self._parts / f"{len(list(self._parts.glob('*.parquet'))):06d}.parquet")

    def check(self, problems: Mapping[str, Sequence[Problem]]) -> None:
        """Refuse completions of other problems than those that the benchmarks hold now.

        Args:
            problems: benchmark -> its problems.

        Raises:
            UserError: a benchmark has changed since the completions were made.
        """
        now = {(name, p.id): (p.transcript, list(p.answers)) for name, of in problems.items() for p in of}
        rows = self.load().drop_duplicates(["benchmark", "problem"])
        columns = zip(*(rows[name] for name in ("benchmark", "problem", "question", "answers")), strict=True)
        then = {(name, problem): (question, list(answers)) for name, problem, question, answers in columns}
        others = [key for key, asked in then.items() if now.get(key) != asked]
        if self.path.exists():
            others += now.keys() - then.keys()
        if others:
            name, problem = others[0]
            raise UserError(
                f"{self.path.parent} holds completions of other problems: {name} has changed since they were made "
                f"({problem}); choose another name=... (or hydra.run.dir=...), or delete the folder"
            )

    def finish(self, problems: Sequence[tuple[str, str]]) -> pd.DataFrame:
        """Make one file of the batches, in the order of `problems` (benchmark, id), and return its rows."""
        place = {key: i for i, key in enumerate(problems)}
        rows = self.load()
        order = [place[key] for key in zip(rows["benchmark"], rows["problem"], strict=True)]
        rows = rows.iloc[np.argsort(order, kind="stable")].reset_index(drop=True)
        _write(rows, self.path)
        self._drop_parts()
        return rows

    def _drop_parts(self) -> None:
        for path in self._parts.glob("*"):
            path.unlink()
        if self._parts.exists():
            self._parts.rmdir()


def _write(rows: pd.DataFrame, path: Path) -> None:
    """Under another name first: a reader or a kill never meets half a file."""
    temporary = path.with_suffix(".tmp")
    try:
        pq.write_table(
            pa.Table.from_pandas(rows.reindex(columns=SCHEMA.names), SCHEMA, preserve_index=False), temporary
        )
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_completions(path: Path, columns: Sequence[str] = SCHEMA.names) -> pd.DataFrame:
    """The rows of a completions.parquet.

    Args:
        path: the file, or the folder of an evaluation.
        columns: those of `SCHEMA` that are returned; texts are most of the file.

    Raises:
        UserError: no such file, another kind of table, or a value that no evaluation writes, by its row.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        names = pq.read_schema(file).names
        missing = [name for name in SCHEMA.names if name not in names]
        if missing:
            raise UserError(f"{file}: no column {', '.join(missing)}: not the {FILE} of edge-grpo-evaluate")
        table = pq.read_table(file, columns=list(columns))
        table = table.cast(pa.schema([SCHEMA.field(name) for name in columns]))
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{file}: not the {FILE} of edge-grpo-evaluate ({str(error).splitlines()[0]})") from error
    if not table.num_rows:
        raise UserError(f"{file}: holds no completions")
    _check_values(file, table)
    return table.to_pandas()


def _check_values(file: Path, table: pa.Table) -> None:
    """Refuse the first value that no evaluation writes: null where there must be one, a count below 0, infinity."""
    for name in table.column_names:
        column, expected = table[name].combine_chunks(), str(table[name].type)
        good = pc.is_valid(column)
        if pa.types.is_integer(column.type):
            good, expected = pc.greater_equal(column, 0), "a whole number from 0"
        elif pa.types.is_floating(column.type):
            good, expected = pc.is_finite(column), "a finite number"
        row = pc.index(pc.fill_null(pc.if_else(pc.is_null(column), name in OPTIONAL, good), False), False).as_py()
        if row >= 0:
            raise UserError(
                f"{file}: row {row} (counted from 0) has {name} = {column[row].as_py()}, expected {expected}"
            )
