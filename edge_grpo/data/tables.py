"""Files and folders -> rows as they stand there; nothing is known here of what a row means."""

import csv
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from edge_grpo.errors import UserError
from edge_grpo.nearest import nearest

MAX_DIGITS = 4300
"""Python turns no longer text into a whole number"""

SHARD = re.compile(r"-\d{5}-of-\d{5}(-\w+)?$")
ONLY_SHARD = re.compile(r"\d+|part-.*")
ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
DEPTH = 2
"""folders below the named one: hubs lay data out as <configuration>/<split>/0000.parquet"""


class Unreadable(NamedTuple):
    """A line that is no row."""

    found: str
    expected: str


class Row(NamedTuple):
    """A row of a table.

    Args:
        where: `file:row`.
        number: from 1; of a file of lines, that of the line; of a folder, counted through its files.
        value: {column: value}, or what else stands there.
    """

    where: str
    number: int
    value: object


class Table(NamedTuple):
    """Rows with what they are called: `source` in messages, `stem` in ids."""

    source: str
    stem: str
    rows: list[Row]


def read_table(path: str | Path, split: str | None = None) -> Table:
    """All rows of a file or folder.

    Args:
        path: a file; a folder from `datasets.save_to_disk`; a folder of files as hubs lay them out
            (`data/train-00000-of-00002.parquet`); or `<folder>/<split>`, where the folder holds several splits.
        split: which one of a folder of several; only there.

    Raises:
        UserError: it cannot be read, or a split must be chosen.
    """
    where = Path(path).expanduser()
    if where.is_file():
        if split is not None:
            raise UserError(f"{path}: a single table has no split {split!r}")
        return Table(str(where), _bare(where), [Row(f"{where}:{n}", n, value) for n, value in _read_file(where)])
    if where.is_dir() and _is_saved(where):
        folder = _split_folder(where, split)
        return Table(str(folder), folder.name, _numbered(folder, _read_saved(folder)))
    if where.is_dir():
        files = _chosen(where, split)
    elif not where.exists() and split is None and where.parent.is_dir():
        files = _split_files(where.parent, depth=0).get(where.name, [])
    else:
        files = []
    if not files:
        raise _absent(where)
    shards = [(f"{file}:{n}", value) for file in files for n, value in _read_file(file)]
    rows = [Row(place, number, value) for number, (place, value) in enumerate(shards, start=1)]
    return Table(str(where / split if split else where), split or where.name, rows)


def _absent(path: Path) -> UserError:
    near = nearest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
    hint = f"did you mean {path.parent / near}?" if near else "set data.path (or data.held_out_path)"
    return UserError(f"{path.absolute()}: no such file or folder; {hint}")


def _numbered(source: Path, values: Sequence[object]) -> list[Row]:
    return [Row(f"{source}:{number}", number, value) for number, value in enumerate(values, start=1)]


# Folders


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _split_folder(folder: Path, split: str | None) -> Path:
    """The folder with the table itself, of one written by `datasets.save_to_disk`."""
    index = folder / "dataset_dict.json"
    if not index.is_file():
        if split is not None:
            raise UserError(f"{folder}: a single table has no split {split!r}")
        return folder
    return folder / _choice(folder, json.loads(index.read_text())["splits"], split)


def _read_saved(folder: Path) -> list[object]:
    """Rows of a folder written by `datasets.save_to_disk`."""
    files = [folder / entry["filename"] for entry in json.loads((folder / "state.json").read_text())["_data_files"]]
    for file in files:
        if not file.is_file():
            raise _absent(file)
    return [row for file in files for _, row in _read_file(file)]


def _choice(folder: Path, splits: Sequence[str], split: str | None) -> str:
    if split is None:
        raise UserError(f"{folder}: holds the splits {', '.join(splits)}: choose one, such as {folder / splits[0]}")
    if split not in splits:
        near = nearest(split, splits)
        hint = f"did you mean {near}?" if near else f"it has {', '.join(splits)}"
        raise UserError(f"{folder}: no split {split!r}; {hint}")
    return split


def _chosen(folder: Path, split: str | None) -> list[Path]:
    """The files of one split of a folder."""
    splits = _split_files(folder, DEPTH)
    if not splits:
        raise UserError(f"{folder}: holds no table ({', '.join(READERS)}), nor is it from datasets.save_to_disk")
    if len(splits) == 1 and split is None:
        return next(iter(splits.values()))
    return splits[_choice(folder, list(splits), split)]


def _split_files(folder: Path, depth: int) -> dict[str, list[Path]]:
    """Split -> its files, in order. A folder called `data` and the numbers of shards are no part of a split's name."""
    found: dict[str, list[Path]] = {}
    for parent, folders, names in os.walk(folder):
        parts = [part for part in Path(parent).relative_to(folder).parts if part != "data"]
        deep = len(parts) >= depth
        folders[:] = sorted(name for name in folders if not name.startswith(".") and (name == "data" or not deep))
        for name in sorted(names):
            file = Path(parent, name)
            if name.startswith(".") or name in ABOUT_DATA or _kind(file) is None:
                continue
            bare = SHARD.sub("", _bare(file))
            split = "/".join([*parts, *([] if ONLY_SHARD.fullmatch(bare) else [bare])])
            found.setdefault(split, []).append(file)
    for files in found.values():
        if len({_kind(file) for file in files}) > 1:
            raise UserError(f"{files[0]} and {files[-1]} are one split in two formats: name the file that is meant")
    return dict(sorted(found.items()))


# Files


def _kind(path: Path) -> str | None:
    """The ending that says how to read a file, or None.

    >>> [_kind(Path(name)) for name in ("a.JSONL", "a.b.jsonl.gz", "a.parquet.gz", "a.txt")]
    ['.jsonl', '.jsonl', None, None]
    """
    endings = [ending.lower() for ending in path.suffixes]
    if endings[-1:] == [".gz"]:
        kind = endings[-2] if len(endings) > 1 else None
        return kind if kind in READERS and kind not in BINARY else None
    return endings[-1] if endings and endings[-1] in READERS else None


def _bare(path: Path) -> str:
    """The file's name without its endings.

    >>> _bare(Path("b/a.v2.jsonl.gz"))
    'a.v2'
    """
    return path.with_suffix("").stem if path.suffix.lower() == ".gz" else path.stem


def _read_file(path: Path) -> list[tuple[int, object]]:
    """Rows with their numbers from 1."""
    kind = _kind(path)
    if kind is None:
        known = f"{', '.join(READERS)}, and the texts among them with .gz"
        raise UserError(f"{path}: cannot read {path.suffix or 'a file without suffix'}, only {known}")
    try:
        return READERS[kind](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from error
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]} ({said[0]})") from error


def _text(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix.lower() == ".gz" else content).decode("utf-8-sig")


def _parsed(text: str) -> Any:
    """JSON; a whole number that is too long for Python stays a text, which no field but an id or a question takes."""
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= MAX_DIGITS else digits)


def _read_json(path: Path) -> list[tuple[int, object]]:
    try:
        values = _parsed(_text(path))
    except json.JSONDecodeError as error:
        hint = "; one object a line is called .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno}){hint}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deep") from error
    if isinstance(values, dict):
        values = _list_under_a_key(values, path)
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a list of objects, found {type(values).__name__}")
    return list(enumerate(values, start=1))


def _list_under_a_key(values: dict[str, Any], path: Path) -> object:
    """The one list of objects among the values, or the values."""
    keys = [key for key, value in values.items() if isinstance(value, list) and any(isinstance(v, dict) for v in value)]
    if len(keys) > 1:
        raise UserError(f"{path}: lists of objects stand under {', '.join(keys)}: keep the one that is meant")
    return values[keys[0]] if keys else values


def _read_jsonl(path: Path) -> list[tuple[int, object]]:
    # Not splitlines(): it also splits at U+2028, which may stand inside a JSON string.
    lines = enumerate(_text(path).split("\n"), start=1)
    return [(number, _line(line)) for number, line in lines if line.strip()]


def _line(line: str) -> object:
    try:
        return _parsed(line)
    except json.JSONDecodeError as error:
        hint = "; JSON writes a backslash twice" if "escape" in error.msg else ""
        found = f"not JSON ({error.msg}, column {error.colno}{hint})"
    except RecursionError:
        found = "nested too deep"
    return Unreadable(found, "an object {column: value}")


def _read_csv(path: Path) -> list[tuple[int, object]]:
    """An empty field is null."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # solutions are longer than the 128 KiB it starts with
    delimiter = "\t" if _kind(path) == ".tsv" else ","
    rows = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        header, *fields_of = [fields for fields in rows if fields] or [[]]
    except csv.Error as error:
        raise UserError(
            f"{path}:{rows.line_num}: {error}; a quotation mark inside quoted text is written twice"
        ) from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}: two columns are called {twice[0]!r}: rename one")
    expected = f"{len(header)}, as in the header"

    def record(fields: list[str]) -> object:
        if len(fields) != len(header):
            return Unreadable(f"of {len(fields)} fields", expected)
        return {name: value or None for name, value in zip(header, fields, strict=True)}

    return [(number, record(fields)) for number, fields in enumerate(fields_of, start=1)]


def _read_parquet(path: Path) -> list[tuple[int, object]]:
    # Without partitioning, or a folder called split=train would become a column.
    return list(enumerate(pyarrow.parquet.read_table(path, partitioning=None).to_pylist(), start=1))


def _read_arrow(path: Path) -> list[tuple[int, object]]:
    with pa.memory_map(str(path)) as source:
        # Arrow's file format begins with this mark, its stream format (which `datasets` writes) does not.
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        table = (pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)).read_all()
        return list(enumerate(table.to_pylist(), start=1))


READERS: dict[str, Callable[[Path], list[tuple[int, object]]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
BINARY = (".parquet", ".arrow")
