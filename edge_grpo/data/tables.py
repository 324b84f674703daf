"""Files and folders -> rows as they stand there; nothing is known here of what a row means."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edge_grpo.data.files import READERS, bare_name, kind_of, read_file
from edge_grpo.errors import UserError, nearest

SHARD = re.compile(r"-\d{5}-of-\d{5}(-\w+)?$")
ONLY_SHARD = re.compile(r"\d+|part-.*")
ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
DEPTH = 2
"""folders below the named one: hubs lay data out as <configuration>/<split>/0000.parquet"""


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
        return Table(str(where), bare_name(where), [Row(f"{where}:{n}", n, value) for n, value in read_file(where)])
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
    _check_one_format(files)
    shards = [(f"{file}:{n}", value) for file in files for n, value in read_file(file)]
    rows = [Row(place, number, value) for number, (place, value) in enumerate(shards, start=1)]
    return Table(str(where / split if split else where), split or where.name, rows)


def _absent(path: Path) -> UserError:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, names + [name for name in map(_split_of, map(Path, names)) if name])
    hint = f"did you mean {path.parent / near}?" if near else "set data.path (or data.held_out_path)"
    return UserError(f"{path.absolute()}: no such file or folder; {hint}")


def _numbered(source: Path, values: Sequence[object]) -> list[Row]:
    return [Row(f"{source}:{number}", number, value) for number, value in enumerate(values, start=1)]


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _split_folder(folder: Path, split: str | None) -> Path:
    """The folder with the table itself, of one written by `datasets.save_to_disk`."""
    index = folder / "dataset_dict.json"
    if not index.is_file():
        if split is not None:
            raise UserError(f"{folder}: a single table has no split {split!r}")
        return folder
    return folder / _choice(folder, _listed(index, "splits"), split)


def _read_saved(folder: Path) -> list[object]:
    """Rows of a folder written by `datasets.save_to_disk`."""
    files = [folder / name for name in _listed(folder / "state.json", "_data_files", "filename")]
    for file in files:
        if not file.is_file():
            raise _absent(file)
    return [row for file in files for _, row in read_file(file)]


def _listed(file: Path, key: str, of_entry: str | None = None) -> list[str]:
    """The texts of a list, or of one field of its entries, in a file of `datasets.save_to_disk`."""
    try:
        found = [entry if of_entry is None else entry[of_entry] for entry in json.loads(file.read_bytes())[key]]
        if found and all(isinstance(text, str) for text in found):
            return found
    except FileNotFoundError as error:
        raise _absent(file) from error
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{file}: lists no {key} as datasets.save_to_disk writes them: save the data set again")


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
            if (own := _split_of(file)) is not None:
                found.setdefault("/".join([*parts, *([own] if own else [])]), []).append(file)
    return dict(sorted(found.items()))


def _split_of(file: Path) -> str | None:
    """The split that a file's name says, "" if it is a number alone; None for what is no table."""
    if file.name.startswith(".") or file.name in ABOUT_DATA or kind_of(file) is None:
        return None
    bare = SHARD.sub("", bare_name(file))
    return "" if ONLY_SHARD.fullmatch(bare) else bare


def _check_one_format(files: Sequence[Path]) -> None:
    for file in files[1:]:
        if kind_of(file) != kind_of(files[0]):
            raise UserError(f"{files[0]} and {file} are one split in two formats: name the file that is meant")
