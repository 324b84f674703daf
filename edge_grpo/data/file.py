"""Problems from a file: json, jsonl, parquet, arrow, or a folder written by `datasets.save_to_disk`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from edge_grpo.data.bad_rows import BadRow
from edge_grpo.data.base import ProblemDataModule
from edge_grpo.data.rows import Columns, check_columns, divided, parse_rows
from edge_grpo.errors import UserError
from edge_grpo.nearest import nearest
from edge_grpo.types import Problem

Rows = list[tuple[int, object]]


class FileDataModule(ProblemDataModule):
    """Problems from `path`, held-out ones from `held_out_path` or from a part of `path`'s good rows.

    Args:
        path: see `read_problems`.
        held_out_path: null holds out a part of `path`.
        held_out_count: how many, drawn the same way whatever `seed` is; null takes all of `held_out_path`.
        columns: field (question, answer, solution, correctness_rate, id) -> accepted column names.
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
        return problems, read_problems(self.held_out_path, self.columns, self.bad_rows)

    def divide(self, train: list[Problem], held_out: list[Problem]) -> tuple[list[Problem], list[Problem]]:
        """See `ProblemDataModule.divide`."""
        return divided(train, held_out, self.held_out_count, self.path, self.held_out_path)


def read_problems(
    path: str | Path, columns: Mapping[str, Sequence[str]], bad_rows: list[BadRow], split: str | None = None
) -> list[Problem]:
    """All problems of a file or folder, without tokens.

    Args:
        path: .json (a list of objects), .jsonl, .parquet, .arrow, or a folder from `datasets.save_to_disk`.
        columns: field -> accepted column names.
        bad_rows: gets the rows that do not fit; they leave no problem.
        split: which one of a folder of several (`DatasetDict`); only there.

    Raises:
        UserError: cannot be read, or has no such column.
    """
    where = _existing(Path(path).expanduser())
    if where.is_dir():
        where = _split_folder(where, split)
        rows = _number(_read_saved(where))
    elif split is not None:
        raise UserError(f"{path}: a single table has no split {split!r}")
    else:
        rows = _read_file(where)
    return parse_rows(rows, str(where), where.stem if where.is_file() else where.name, columns, bad_rows)


def _existing(path: Path) -> Path:
    if path.exists():
        return path
    near = nearest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
    hint = f"did you mean {path.parent / near}?" if near else "set data.path (or data.held_out_path)"
    raise UserError(f"{path.absolute()}: no such file or folder; {hint}")


def _read_file(path: Path) -> Rows:
    readers = {".json": _read_json, ".jsonl": _read_jsonl, ".parquet": _read_parquet, ".arrow": _read_arrow}
    if path.suffix not in readers:
        raise UserError(f"{path}: cannot read {path.suffix or 'a file without suffix'}, only {', '.join(readers)}")
    try:
        return readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]} ({str(error).splitlines()[0]})") from error


def _read_json(path: Path) -> Rows:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = "; one object a line is called .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno}){hint}") from error
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a list of objects, found {type(values).__name__}")
    return _number(values)


def _read_jsonl(path: Path) -> Rows:
    rows: Rows = []
    # Not splitlines(): it also splits at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            rows.append((number, ValueError(f"{error.msg}, column {error.colno}")))
    return rows


def _read_parquet(path: Path) -> Rows:
    return _number(pyarrow.parquet.read_table(path).to_pylist())


def _read_arrow(path: Path) -> Rows:
    return _number(_arrow_table(path).to_pylist())


def _arrow_table(path: Path) -> Any:
    with pa.memory_map(str(path)) as source:
        # Arrow's file format begins with this mark, its stream format (which `datasets` writes) does not.
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        return (pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)).read_all()


def _split_folder(folder: Path, split: str | None) -> Path:
    """The folder with the table itself."""
    index = folder / "dataset_dict.json"
    if not index.is_file():
        if split is not None:
            raise UserError(f"{folder}: a single table has no split {split!r}")
        return folder
    splits = json.loads(index.read_text())["splits"]
    if split is None:
        raise UserError(f"{folder}: holds the splits {', '.join(splits)}: choose one, such as {folder / splits[0]}")
    if split not in splits:
        near = nearest(split, splits)
        hint = f"did you mean {near}?" if near else f"it has {', '.join(splits)}"
        raise UserError(f"{folder}: no split {split!r}; {hint}")
    return folder / split


def _read_saved(folder: Path) -> list[object]:
    """Rows of a folder written by `datasets.save_to_disk`."""
    state = folder / "state.json"
    if not state.is_file():
        raise UserError(f"{folder}: no state.json, so no folder from datasets.save_to_disk: name a file in it instead")
    files = [folder / entry["filename"] for entry in json.loads(state.read_text())["_data_files"]]
    return [row for file in files for _, row in _read_file(_existing(file))]


def _number(rows: Sequence[object]) -> Rows:
    return list(enumerate(rows, start=1))
