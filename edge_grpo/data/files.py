"""Files -> rows as they stand there."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from edge_grpo.errors import UserError

MAX_DIGITS = 4300
"""Python turns no longer text into a whole number"""


class Unreadable(NamedTuple):
    """A line that is no row."""

    found: str
    expected: str


def kind_of(path: Path) -> str | None:
    """The ending that says how to read a file, or None.

    >>> [kind_of(Path(name)) for name in ("a.JSONL", "a.b.jsonl.gz", "a.parquet.gz", "a.txt")]
    ['.jsonl', '.jsonl', None, None]
    """
    endings = [ending.lower() for ending in path.suffixes]
    if endings[-1:] == [".gz"]:
        kind = endings[-2] if len(endings) > 1 else None
        return kind if kind in READERS and kind not in BINARY else None
    return endings[-1] if endings and endings[-1] in READERS else None


def bare_name(path: Path) -> str:
    """The file's name without its endings.

    >>> bare_name(Path("b/a.v2.jsonl.gz"))
    'a.v2'
    """
    return path.with_suffix("").stem if path.suffix.lower() == ".gz" else path.stem


def read_file(path: Path) -> list[tuple[int, object]]:
    """Rows with their numbers from 1."""
    kind = kind_of(path)
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
        found = type(values).__name__
        if isinstance(values, dict):
            found = f"an object with the keys {', '.join(list(values)[:5])}" if values else "an empty object"
        raise UserError(f"{path}: expected a list of objects, or an object that holds one under a key; found {found}")
    return list(enumerate(values, start=1))


def _list_under_a_key(values: dict[str, Any], path: Path) -> object:
    """The one list of objects among the values, or the values."""
    keys = [key for key, value in values.items() if isinstance(value, list) and any(isinstance(v, dict) for v in value)]
    if len(keys) > 1:
        raise UserError(f"{path}: lists of objects stand under {', '.join(keys)}: keep the one that is meant")
    return values[keys[0]] if keys else values


def _read_jsonl(path: Path) -> list[tuple[int, object]]:
    # Not splitlines(): it also splits at U+2028, which may stand inside a JSON string.
    text = _text(path)
    rows = [(number, _line(line)) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if rows and not isinstance(rows[0][1], dict) and (kind := _whole(text)):
        raise UserError(f"{path}: holds one JSON {kind}, expected an object a line: call it .json")
    return rows


def _whole(text: str) -> str | None:
    """What the text is as one JSON document, if it is a list or an object."""
    try:
        values = _parsed(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    return "list" if isinstance(values, list) else "object" if isinstance(values, dict) else None


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
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    rows = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        names, *fields_of = [fields for fields in rows if fields] or [[]]
    except csv.Error as error:
        raise UserError(
            f"{path}:{rows.line_num}: {error}; a quotation mark inside quoted text is written twice"
        ) from error
    header = [name.strip() for name in names]  # "question, answer"
    if len(header) == 1 and (other := next((mark for mark in ",;|\t" if mark in header[0]), None)):
        separator = "tabs" if delimiter == "\t" else "commas"
        hint = {"\t": ", or call it .tsv", ",": ", or call it .csv"}.get(other, "")
        raise UserError(f"{path}: the header {header[0]!r} is one field: separate fields by {separator}{hint}")
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
