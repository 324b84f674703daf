"""Rows of rollouts.jsonl, each column checked against what it must hold."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from edge_grpo.errors import UserError

# What a column holds; "?" where a row may have none.
ROLLOUTS: Mapping[str, str] = {
    "step": "count",
    "problem": "text",
    "row": "count",
    "correct": "truth",
    "correct_after": "truth",
    "reward": "number",
    "reward_after": "number",
    "branch": "text",
    "tokens": "count",
    "tokens_after": "count",
    "sampled_tokens_after": "count",
    "entropy": "number?",
    "advantage": "number?",
    "multiplier": "number?",
    "clamped": "number?",
}
OF_EDA = {"eda/multiplier": "multiplier", "eda/clamped": "clamped"}
"""name in the file -> ours, of columns that only runs with advantage=entropy_driven have"""
EXPECTED = {"count": "a whole number from 0", "text": "a text", "truth": "true or false", "number": "a finite number"}


def read_rollouts(path: Path) -> pd.DataFrame:
    """The rows of a run's rollouts.jsonl; a last line that a kill cut is left out.

    Raises:
        UserError: the file has no rows, or a line is no such row; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    places, rows = [], []
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parsed(line)
        if row is None and place == len(lines):  # without a line's end: the run was killed, or is writing it
            continue
        if row is None:
            raise UserError(f"{path}:{place}: the line is no JSON object: is this a run's rollouts.jsonl?")
        places.append(place)
        rows.append(row)
    frame = pd.DataFrame(rows, index=pd.Index(places), dtype=object).rename(columns=OF_EDA)
    return _checked(path, frame.assign(**{name: None for name in OF_EDA.values() if name not in frame}), ROLLOUTS)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _checked(path: Path, frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The columns as numbers, truths and texts; the index is the row's place in the file."""
    if frame.empty:
        raise UserError(f"{path} holds no rows: nothing was sampled yet")
    missing = [name for name in columns if name not in frame]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is not what edge-grpo of this version writes there")
    return pd.DataFrame({name: _column(path, frame[name], kind) for name, kind in columns.items()})


def _column(path: Path, column: pd.Series, kind: str) -> pd.Series:
    none = column.isna()
    kind, optional = kind.rstrip("?"), kind.endswith("?")
    bad = column[~(none if optional else none & False) & ~column.map(_TESTS[kind]).astype(bool)]
    if len(bad):
        value = bad.iloc[0]
        raise UserError(
            f"{path}:{bad.index[0]}: {column.name} is {value!r} ({type(value).__name__}), "
            f"expected {EXPECTED[kind]}{' or null' if optional else ''}"
        )
    if kind in ("text", "truth"):
        return column.astype(str if kind == "text" else bool)
    return column.where(~none, np.nan).astype(int if kind == "count" else float)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_number and bool(np.isfinite(value))


_TESTS = {
    "text": lambda value: isinstance(value, str),
    "truth": lambda value: isinstance(value, bool | np.bool_),
    "number": _is_number,
    "count": lambda value: _is_number(value) and value >= 0 and value == int(value),
}
