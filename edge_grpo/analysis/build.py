"""Ask a run or an evaluation every question, and write what was found."""

import dataclasses
import json
import logging
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from edge_grpo.analysis.branches import branches
from edge_grpo.analysis.collapse import collapse
from edge_grpo.analysis.entropy import entropy
from edge_grpo.analysis.figures import draw_figures, plain_dollars
from edge_grpo.analysis.finding import Finding, Table, show
from edge_grpo.analysis.multipliers import multipliers
from edge_grpo.analysis.page import write_page
from edge_grpo.analysis.reflection import reflection
from edge_grpo.analysis.source import Source, load_source
from edge_grpo.statistics.bootstrap import Bootstrap, Estimate

log = logging.getLogger(__name__)

QUESTIONS = (reflection, entropy, collapse, branches, multipliers)


def analyze(source: str, folder: Path, *, iterations: Sequence[int] | None, bootstrap: Bootstrap) -> list[Finding]:
    """Write index.html, analysis.md, analysis.json and the figures (PNG and SVG) into `folder`, and log what was found.

    Args:
        source, iterations: see `load_source`.
        folder: made if it does not exist.
        bootstrap: of the intervals.

    Returns:
        The findings, in the order of the paper's section.

    Raises:
        UserError: see `load_source`.
    """
    loaded = load_source(source, iterations)
    findings = [question(loaded, bootstrap) for question in QUESTIONS]
    folder.mkdir(parents=True, exist_ok=True)
    figures = draw_figures(loaded, findings)
    for name, figure in figures.items():
        _save(figure, folder / name)
    (folder / "analysis.json").write_text(json.dumps(_as_json(loaded, findings, bootstrap), indent=2) + "\n")
    (folder / "analysis.md").write_text(_as_markdown(loaded, findings, figures, bootstrap), encoding="utf-8")
    write_page(folder, f"Analysis of {loaded.name}", _preface(loaded, bootstrap), findings, list(figures))
    for finding in findings:
        for line in finding.statements or finding.notes:
            log.info("%-12s%s", finding.name, line)
    log.info("written to %s and %s", folder / "analysis.md", folder / "index.html")
    return findings


def _save(figure: Figure, path: Path) -> None:
    with plain_dollars():
        figure.savefig(path.with_suffix(".png"), dpi=130)
    figure.set_layout_engine("none")  # it is laid out now
    # Without a date and with fixed ids, so that the same numbers give the same file; text stays text.
    with rc_context({"svg.hashsalt": "edge-grpo", "svg.fonttype": "none"}), plain_dollars():
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _about(source: Source) -> dict[str, Any]:
    """What was read, in numbers."""
    frame = source.frame
    about: dict[str, Any] = {"source": str(source.path), "kind": source.kind, "responses": len(frame)}
    about |= {"questions": int(frame["question"].nunique()), "groups": int(frame["group"].nunique())}
    if source.kind == "run":
        return about | {"iterations": [int(frame["step"].min()), int(frame["step"].max())]}
    return about | {"benchmarks": sorted(frame["benchmark"].unique())}


def _as_json(source: Source, findings: Sequence[Finding], bootstrap: Bootstrap) -> dict[str, Any]:
    found = {
        finding.name: {
            "statements": list(finding.statements),
            "notes": list(finding.notes),
            "tables": {
                name: [{column: _plain(cell) for column, cell in row.items()} for row in table.rows]
                for name, table in finding.tables.items()
            },
        }
        for finding in findings
    }
    return {**_about(source), "bootstrap": dataclasses.asdict(bootstrap), "findings": found}


def _plain(cell: object) -> object:
    """A cell as JSON has it: no NaN."""
    if isinstance(cell, Estimate):
        return cell.as_dict()
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _as_markdown(
    source: Source, findings: Sequence[Finding], figures: Mapping[str, Figure], bootstrap: Bootstrap
) -> str:
    lines = [f"# Analysis of {source.name}", "", *_preface(source, bootstrap)]
    for finding in findings:
        lines += ["", f"## {finding.title}", "", _paragraph(finding.measured), ""]
        lines += [f"- **{statement}**" for statement in finding.statements] + [f"- {note}" for note in finding.notes]
        for table in finding.tables.values():
            lines += ["", _paragraph(table.caption), "", *_table(table)]
        if finding.name in figures:
            lines += ["", f"![{finding.title}]({finding.name}.png)"]
    return "\n".join(lines) + "\n"


def _preface(source: Source, bootstrap: Bootstrap) -> list[str]:
    """What was read, and how the intervals come about."""
    about = _about(source)
    scope = (
        "iterations {} to {}".format(*about["iterations"]) if source.kind == "run" else ", ".join(about["benchmarks"])
    )
    return [
        f"`{source.path}`: {about['responses']:,} responses to {about['questions']:,} questions in "
        f"{about['groups']:,} groups ({scope}).",
        f"In brackets, {100 * bootstrap.confidence:g} % intervals: percentiles over {bootstrap.resamples:,} bootstrap "
        f"draws of whole questions (seed {bootstrap.seed}).",
        "A number that is the same in every draw is shown without one. analysis.json holds every number in full.",
    ]


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(table: Table) -> list[str]:
    columns = table.columns
    rule = "|".join("---" if unit == "text" else "---:" for unit in columns.values())
    cells = [[show(row.get(name), unit) for name, unit in columns.items()] for row in table.rows]
    return [f"| {' | '.join(columns)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in cells)]
