"""Responses of the rows of files."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from edge_grpo.browsing.groups import Response, Version

_ASKED = "\n[asked to look again]\n"  # the phrase itself is not in completions.parquet


def response_of(row: Mapping[str, Any]) -> Response:
    """Of a row of a run's rollouts (`runs/rollout_files.py`)."""
    pieces = row["pieces_after"]
    left_alone = pieces is None and not row["branch"] and row["problem_after"] is None
    before = None if row["response"] is None else ((("sampled", row["response"]),) if row["response"] else ())
    after = None if pieces is None else tuple((piece["by"], piece["text"]) for piece in pieces)
    return Response(
        row=row["row"],
        before=_version(row, "", before),
        after=None if left_alone else _version(row, "_after", after),
        branch=row["branch"],
        base_advantage=row.get("advantage/base"),
        advantage=row["advantage"],
        multiplier=row.get("eda/multiplier"),
        clamped=bool(row.get("eda/clamped")),
    )


def _version(row: Mapping[str, Any], when: str, pieces: tuple[tuple[str, str], ...] | None) -> Version:
    prefix = f"reward{when}/"
    return Version(
        correct=row[f"correct{when}"],
        unparsed=row[f"unparsed{when}"],
        reward=row[f"reward{when}"],
        parts={name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)},
        tokens=row[f"tokens{when}"],
        finish_reason=row[f"finish_reason{when}"],
        pieces=pieces,
        characters=tuple(row[f"token_characters{when}"] or ()),
        entropies=_numbers(row[f"entropies{when}"]),
    )


def _numbers(values: Iterable[Any] | None) -> tuple[float | None, ...]:
    return tuple(float(value) if np.isfinite(value) else None for value in values or ())


def completion_of(row: Mapping[str, Any]) -> Response:
    """Of a row of completions.parquet; what forced reflection made of it stands after it."""
    said = ("sampled", row["response"])
    before = Version(
        correct=row["correct"],
        unparsed=row["unparsed"],
        reward=None,
        parts={},
        tokens=row["tokens"],
        finish_reason=row["finish_reason"],
        pieces=(said,),
    )
    if row["forced_response"] is None:
        return Response(row["sample"], before)
    after = Version(
        correct=row["forced_correct"],
        unparsed=None,
        reward=None,
        parts={},
        tokens=row["tokens"] + int(row["forced_tokens"]),
        finish_reason="",
        pieces=(said, ("injected", _ASKED), ("sampled", row["forced_response"])),
    )
    return Response(row["sample"], before, after, branch="forced reflection")
