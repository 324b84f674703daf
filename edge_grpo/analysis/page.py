"""index.html of an analysis: one file that holds the findings, their tables and figures, and fetches nothing."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_grpo.analysis.finding import Cell, Finding, Table, show
from edge_grpo.reporting.render import embedded, render
from edge_grpo.statistics.bootstrap import Estimate

FILES = ("analysis.md", "analysis.json")


def write_page(
    folder: Path, title: str, preface: Sequence[str], findings: Sequence[Finding], figures: Sequence[str]
) -> None:
    """Write `<folder>/index.html`.

    Args:
        folder: holds analysis.md, analysis.json and `<figure>.svg` of each of the figures.
        preface: sentences on what was read, and how.
        figures: names of the findings that have one.
    """
    text = render(
        "analysis.html.jinja",
        "edge_grpo.analysis",
        {},
        title=title,
        preface=preface,
        findings=[_finding(finding, folder, finding.name in figures) for finding in findings],
        files=[(name, embedded((folder / name).read_bytes(), name.partition(".")[2])) for name in FILES],
    )
    (folder / "index.html").write_text(text, encoding="utf-8")


def _finding(finding: Finding, folder: Path, has_figure: bool) -> dict[str, Any]:
    return {
        "name": finding.name,
        "title": finding.title,
        "measured": finding.measured,
        "statements": finding.statements,
        "notes": finding.notes,
        "tables": [_table(table) for table in finding.tables.values()],
        "figure": embedded((folder / f"{finding.name}.svg").read_bytes(), "svg") if has_figure else "",
    }


def _table(table: Table) -> dict[str, Any]:
    cells = [
        [(show(row.get(name), unit), _sorted_by(row.get(name))) for name, unit in table.columns.items()]
        for row in table.rows
    ]
    return {"caption": table.caption, "columns": list(table.columns), "rows": cells}


def _sorted_by(cell: Cell | None) -> str:
    """The value of a number in full; "", which comes last, where there is none."""
    value = cell.value if isinstance(cell, Estimate) else cell
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)
