"""`rollouts/` of a run: every response with all that is known of it, a Parquet file for each iteration and rank.

A file is written whole under another name and renamed, so a reader or a kill never meets half of one; a run that is
resumed drops the files of the iterations that it writes again. pandas reads the folder as one table:
`pd.read_parquet(run / "rollouts")`. Nothing here imports torch.
"""

import logging
import os
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from edge_grpo.errors import UserError

log = logging.getLogger(__name__)

FOLDER = "rollouts"
_NAME = re.compile(r"iteration-(\d+)-rank(\d+)\.parquet")
_HALVES = pa.list_(pa.float16())
NUMBERS = pa.schema(
    [
        ("step", pa.int32()),
        ("rank", pa.int16()),
        ("group", pa.int32()),  # of the rank in the iteration: 0 to P - 1
        ("row", pa.int16()),  # in the group: 0 to G - 1
        ("problem", pa.string()),  # its id
        ("problem_after", pa.string()),  # where a replay took the group's place; else null
        ("correct", pa.bool_()),
        ("correct_after", pa.bool_()),
        ("unparsed", pa.bool_()),  # no answer that the grader can read
        ("unparsed_after", pa.bool_()),
        ("reward", pa.float64()),
        ("reward_after", pa.float64()),
        ("branch", pa.string()),  # of the correction; "" where it left the row alone
        ("tokens", pa.int32()),
        ("tokens_after", pa.int32()),
        ("sampled_tokens_after", pa.int32()),
        ("finish_reason", pa.string()),  # stop or length
        ("finish_reason_after", pa.string()),
        ("entropy", pa.float64()),  # nats, mean over the tokens as sampled
        ("advantage", pa.float64()),  # mean over the tokens; null where the group filter took the row out
    ]
)
"""columns that every row keeps; beside them `reward/<name>` and `reward_after/<name>`, of each reward before weighting,
and what the advantage reports of a row under its own names, all float64"""
TEXTS = pa.schema(
    [
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),  # gold
        ("question_after", pa.string()),  # these two as problem_after
        ("answers_after", pa.list_(pa.string())),
        ("prompt_after", pa.string()),  # that the row is trained under, where it is not its problem's (a hint)
        ("response", pa.string()),  # as sampled
        # After correction; null where the row stayed as it was.
        ("pieces_after", pa.list_(pa.struct([("by", pa.string()), ("text", pa.string())]))),
    ]
)
"""columns that are null in iterations whose texts were dropped"""
TOKENS = pa.schema(
    [
        ("token_characters", pa.list_(pa.uint32())),  # of each token in the text; 0 for one that has no text
        ("entropies", _HALVES),  # nats
        ("logprobs", _HALVES),  # of the distribution that was sampled from
        ("token_characters_after", pa.list_(pa.uint32())),  # these three: null where the row stayed as it was
        ("entropies_after", _HALVES),
        ("logprobs_after", _HALVES),
    ]
)
"""columns that are null there too, and where `callbacks.rollouts.tokens` is false"""
_LARGE = {*TEXTS.names, *TOKENS.names}
_THINNED = {b"edge_grpo.texts": b"dropped"}


class RolloutFiles:
    """The files that one rank of a run writes.

    Once the files with texts hold more than `keep_bytes`, the oldest of them lose texts and tokens and keep their
    numbers. What is left depends on what was written alone, never on when a run was stopped and resumed.

    Args:
        run: folder of the run.
        rank, world: of the process, and how many there are; the first one answers for files of ranks that are no more.
        keep_bytes: bound; None for none.
    """

    def __init__(self, run: Path, rank: int, keep_bytes: float | None, world: int = 1) -> None:
        self.folder, self.rank, self.world, self.keep_bytes = run / FOLDER, rank, world, keep_bytes
        self._whole: deque[tuple[Path, int]] = deque()

    def cut_back(self, step: int) -> None:
        """Drop the files of `step` and later, which a resumed run writes again, and what a kill left half written."""
        for path in self.folder.glob(".*.tmp"):
            if (name := _NAME.fullmatch(f"{path.stem[1:]}.parquet")) and self._is_own(int(name[2])):
                path.unlink()
        own = [(at, path) for at, rank, path in rollout_files(self.folder.parent) if self._is_own(rank)]
        for _, path in (file for file in own if file[0] >= step):
            path.unlink()
        whole = [path for at, path in own if at < step and not _is_thinned(path)]
        self._whole = deque((path, path.stat().st_size) for path in whole)

    def _is_own(self, rank: int) -> bool:
        return rank == self.rank or (self.rank == 0 and rank >= self.world)

    def append(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of an iteration, without `step` and `rank`; where that fails they are told of and lost.

        Columns that are in none of the schemas above are numbers.
        """
        path = self.folder / f"iteration-{step:06d}-rank{self.rank}.parquet"
        known = {*NUMBERS.names, *_LARGE}
        more = [pa.field(name, pa.float64()) for name in rows[0] if name not in known]
        schema = pa.schema([*NUMBERS, *more, *TEXTS, *TOKENS])
        rows = [{"step": step, "rank": self.rank, **row} for row in rows]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
            _write(pa.Table.from_arrays(arrays, schema=schema), path)
            self._whole.append((path, path.stat().st_size))
        except (OSError, pa.ArrowException) as error:
            log.warning("%s lacks the rows of step %d: %s", self.folder, step, _told(error))
        while self.keep_bytes is not None and sum(size for _, size in self._whole) > self.keep_bytes:
            path, _ = self._whole.popleft()
            try:
                _thin(path)
            except FileNotFoundError:  # somebody has made room
                continue
            except (OSError, pa.ArrowException) as error:
                log.warning("%s keeps its texts: %s", path, _told(error))


def _thin(path: Path) -> None:
    """Leave the numbers of a file."""
    table = pq.read_table(path)
    for i, field in enumerate(table.schema):
        if field.name in _LARGE:
            table = table.set_column(i, field, pa.nulls(len(table), field.type))
    _write(table.replace_schema_metadata(_THINNED), path)


def _told(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def _write(table: pa.Table, path: Path) -> None:
    temporary = path.with_name(f".{path.stem}.tmp")  # a name that readers of the whole folder pass over
    try:
        # Half-floats hardly repeat; nobody searches by the statistics of a column, which are a third of a small file.
        repeating = [field.name for field in table.schema if field.type != _HALVES]
        pq.write_table(table, temporary, compression="zstd", use_dictionary=repeating, write_statistics=False)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a loss of power may leave an empty file under the final name
        temporary.replace(path)
    except (OSError, pa.ArrowException):
        temporary.unlink(missing_ok=True)
        raise


def _is_thinned(path: Path) -> bool:
    """Whether a file has nothing left to lose; one that cannot be read is left as it is."""
    try:
        return _THINNED.items() <= (pq.read_schema(path).metadata or {}).items()
    except (OSError, pa.ArrowException) as error:
        log.warning("%s cannot be read: %s", path, _told(error))
        return True


def rollout_files(run: Path) -> list[tuple[int, int, Path]]:
    """(iteration, rank, file), in order; none where the run has no rollouts."""
    found = [(_NAME.fullmatch(path.name), path) for path in (run / FOLDER).glob("*.parquet")]
    return sorted((int(name[1]), int(name[2]), path) for name, path in found if name)


def read_rollouts(run: Path) -> pd.DataFrame:
    """The numbers of all rows of a run (see `NUMBERS`), by iteration, rank, group and row; raises as `read_table`."""
    return read_table(run).to_pandas()


def read_table(run: Path, columns: Iterable[str] | None = None, steps: Iterable[int] | None = None) -> pa.Table:
    """The rows of a run, by iteration, rank, group and row.

    Args:
        run: its folder.
        columns: to read; None for all that are numbers, a small part of the files.
        steps: iterations to read; None for all.

    Raises:
        UserError: no rollouts, a file that is none of them, or columns that are not there.
    """
    wanted = None if steps is None else set(steps)
    files = [path for step, _, path in rollout_files(run) if wanted is None or step in wanted]
    if not files:
        raise UserError(f"{run / FOLDER} holds no rows: nothing was sampled yet")
    schemas = [_schema(path) for path in files]
    try:
        schema = pa.unify_schemas(schemas)
        names = [name for name in schema.names if name not in _LARGE] if columns is None else list(columns)
        required = NUMBERS.names if columns is None else names
        if missing := [name for name in required if name not in schema.names]:
            raise UserError(
                f"{files[0]} lacks {', '.join(missing)}: it is not what edge-grpo of this version writes there"
            )
        return ds.dataset(files, schema=schema).to_table(columns=names)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{run / FOLDER} cannot be read: {str(error).splitlines()[0]}") from error


def read_iteration(run: Path, step: int) -> pa.Table:
    """All columns of one iteration; raises as `read_table`."""
    table = read_table(run, steps=[step])
    large = read_table(run, [*TEXTS.names, *TOKENS.names], steps=[step])
    for field, column in zip(large.schema, large.columns, strict=True):
        table = table.append_column(field, column)
    return table


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path).remove_metadata()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
