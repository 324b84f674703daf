"""Files of JSON lines, each of a step: appended while a run goes on, cut back where it is resumed."""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def append_rows(path: Path, step: int, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows of a step; where the disk is full they are told of and lost."""
    text = "".join(_line({"step": step, **row}) for row in rows)
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if path.exists():  # half a line would spoil the next one
            os.truncate(path, size)
        log.warning("%s lacks the rows of step %d: %s", path, step, error.strerror)


def cut_back(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the rows of `step` and later, which a resumed run writes again; the others."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        rows = [row for row in map(_parsed, file) if row is not None and row["step"] < step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(map(_line, rows)), encoding="utf-8")
    temporary.replace(path)
    return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _parsed(line: str) -> dict[str, Any] | None:
    """The row of a line, None for one that a kill cut."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
