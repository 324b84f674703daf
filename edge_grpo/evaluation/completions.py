"""Completions with their grading, as rows of a table: what every score and analysis is computed from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from edge_grpo.errors import UserError
from edge_grpo.rewards.base import WeightedRewards
from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.types import ScoredRollout

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

FILE = "completions.parquet"
_PARTS = ".parts"


def graded(scored: ScoredRollout, rewards: WeightedRewards) -> pd.DataFrame:
    """The columns of `SCHEMA` that grading alone gives, one row a response."""
    rollout = scored.rollout
    problems = [rollout.problem_of(row) for row in range(rollout.num_rows)]
    return pd.DataFrame(
        {
            "problem": [p.id for p in problems],
            "sample": [row % rollout.num_generations for row in range(rollout.num_rows)],
            "question": [p.question for p in problems],
            "answers": [list(p.answers) for p in problems],
            "response": scored.texts,
            "tokens": [len(r) for r in rollout.responses],
            "finish_reason": [r.finish_reason for r in rollout.responses],
            "answer": pd.Series([last_boxed(text) for text in scored.texts], dtype=object),
            "correct": scored.scores.correct.numpy(),
            "unparsed": rewards.unparsed(problems, scored.texts),
        }
    )


class CompletionStore:
    """Completions of one evaluation on the disk, written batch by batch so that a kill loses one batch at most.

    Batches are whole files under `<folder>/.parts` until `finish` makes one file of them.

    Args:
        folder: of the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._parts = folder / FILE, folder / _PARTS

    def load(self) -> pd.DataFrame:
        """What there is so far, in the order of its writing; an empty table at first."""
        paths = sorted(self._parts.glob("*.parquet")) or ([self.path] if self.path.exists() else [])
        tables = [pq.read_table(path, schema=SCHEMA) for path in paths]
        return pa.concat_tables(tables).to_pandas() if tables else SCHEMA.empty_table().to_pandas()

    def append(self, rows: pd.DataFrame) -> None:
        """Add one batch.

        Raises:
            OSError: the disk is full; nothing is left of the batch.
        """
        self._parts.mkdir(parents=True, exist_ok=True)
        _write(rows, self._parts / f"{len(list(self._parts.glob('*.parquet'))):06d}.parquet")

    def finish(self, problems: Sequence[tuple[str, str]]) -> pd.DataFrame:
        """Make one file of the batches, in the order of `problems` (benchmark, id), and return its rows.

        Raises:
            UserError: completions of another problem, because a benchmark has changed since they were made.
        """
        place = {key: i for i, key in enumerate(problems)}
        rows = self.load()
        for key in zip(rows["benchmark"], rows["problem"], strict=True):
            if key not in place:
                raise UserError(f"{self._parts} holds completions of {key}, which its benchmark has no more: delete it")
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


def read_completions(path: Path) -> pd.DataFrame:
    """The rows of a completions.parquet.

    Args:
        path: the file, or the folder of an evaluation.

    Raises:
        UserError: no such file, or another kind of table.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{file}: cannot be read as completions ({str(error).splitlines()[0]})") from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise UserError(f"{file}: no column {', '.join(missing)}: not the {FILE} of edge-grpo-evaluate")
    if not table.num_rows:
        raise UserError(f"{file}: holds no completions")
    try:
        return table.select(SCHEMA.names).cast(SCHEMA).to_pandas()
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: not the {FILE} of edge-grpo-evaluate ({str(error).splitlines()[0]})") from error
