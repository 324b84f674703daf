"""What the analysis found on one of its questions: tables of numbers, in words and in figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edge_grpo.statistics.bootstrap import Estimate

Cell = str | float | Estimate
Row = Mapping[str, Cell]
# share: in [0, 1], shown in per cent; change: a difference of shares, in points.
Unit = Literal["text", "count", "share", "change", "number"]


@dataclass(frozen=True)
class Table:
    """Rows of equal columns.

    Args:
        caption: what is counted, over what.
        columns: name -> unit.
        rows: name -> cell.
    """

    caption: str
    columns: Mapping[str, Unit]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Finding:
    """What was found on one question.

    Args:
        name: in analysis.json and of the figure's files.
        title: heading.
        measured: what is measured and how, a paragraph.
        statements: the main numbers as sentences.
        tables: name -> table.
        notes: what is not available, why, and the way to get it; what was left out.
    """

    name: str
    title: str
    measured: str
    statements: Sequence[str] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    notes: Sequence[str] = ()


def show(cell: Cell | None, unit: Unit) -> str:
    """A cell as text; "-" where there is none.

    >>> show(Estimate(0.1234, 0.1, 0.15), "share"), show(1234, "count"), show(float("nan"), "number")
    ('12.3 % [10.0, 15.0]', '1,234', '-')
    >>> show(Estimate(-0.02, -0.02, -0.02), "change"), show(0.51234, "number")  # in every draw the same
    ('-2.0', '0.512')
    """
    if cell is None or isinstance(cell, str):
        return cell or "-"
    value = cell.value if isinstance(cell, Estimate) else cell
    if value != value:
        return "-"
    text = f"{_digits(value, unit)}{' %' if unit == 'share' else ''}"
    if not isinstance(cell, Estimate) or cell.low is None or cell.high is None or cell.low == cell.high:
        return text
    return f"{text} [{_digits(cell.low, unit)}, {_digits(cell.high, unit)}]"


def _digits(value: float, unit: Unit) -> str:
    if unit in ("share", "change"):
        return f"{100 * value:{'+' if unit == 'change' else ''}.1f}"
    if unit == "count":
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
