"""index.html: one file that shows everything and fetches nothing."""

import base64
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from edge_grpo.reporting.canvas import Drawn
from edge_grpo.reporting.runs import FINISHED, Run
from edge_grpo.reporting.scores import Member
from edge_grpo.reporting.tables import Table

TEMPLATE = "report.html.jinja"


def write_page(
    out: Path,
    *,
    title: str,
    command: str,
    headline: Sequence[str],
    notes: Sequence[str],
    tables: Sequence[Table],
    figures: Sequence[Drawn],
    used: Sequence[Member],
    left_out: Sequence[tuple[str, Run]],
    missing: Sequence[str],
) -> None:
    """Write `<out>/index.html`, with the figures of `<out>/figures` in it.

    Args:
        out: the report's folder.
        title, command: at the top.
        headline: sentences.
        notes: what a reader must know to read the tables right.
        tables, figures: in their order on the page.
        used: the runs in the tables.
        left_out: arm and run of the others.
        missing: arms that there should be and of which no run is there.
    """
    # Names and errors are of runs, that is of anybody: everything is escaped.
    environment = Environment(
        loader=PackageLoader("edge_grpo.reporting", "."), autoescape=True, undefined=StrictUndefined
    )
    text = environment.get_template(TEMPLATE).render(
        title=title,
        command=command,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        headline=headline,
        notes=notes,
        tables=tables,
        figures=[_figure(drawn, out) for drawn in figures],
        used=[{**_run(m.arm, m.run, out), "evaluation": m.evaluation.name if m.evaluation else "none"} for m in used],
        left_out=[{**_run(arm, run, out), "state": run.state, "why": _why(run)} for arm, run in left_out],
        missing=missing,
        origins=_origins([member.run for member in used]),
    )
    (out / "index.html").write_text(text)


def _figure(drawn: Drawn, out: Path) -> dict[str, str]:
    svg = (out / "figures" / f"{drawn.name}.svg").read_bytes()
    data = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    return {"name": drawn.name, "title": drawn.title, "caption": drawn.caption, "data": data}


def _run(arm: str, run: Run, out: Path) -> dict[str, Any]:
    link = run.place if run.is_remote else os.path.relpath(run.place, out)
    seed = "?" if run.seed is None else run.seed
    return {"arm": arm, "seed": seed, "iterations": run.iterations, "place": run.place, "link": link}


def _why(run: Run) -> str:
    if run.error:
        return run.error
    return "another run of the same arm and seed is newer" if run.state == FINISHED else ""


def _origins(runs: Sequence[Run]) -> list[Mapping[str, str]]:
    """Where the runs were made: each code, machine and set of packages once."""
    counts: dict[str, int] = {}
    for run in runs:
        if run.info:
            counts[_origin(run.info)] = counts.get(_origin(run.info), 0) + 1
    return [{"runs": f"{n} run{'s' if n > 1 else ''}", "text": text} for text, n in counts.items()]


def _origin(info: Mapping[str, Any]) -> str:
    commit = info.get("git_commit") or "no commit (an installed package)"
    dirty = ", with changes that are not committed" if info.get("git_dirty") else ""
    packages = ", ".join(f"{name} {version}" for name, version in dict(info.get("packages") or {}).items())
    return f"{commit}{dirty}; Python {info.get('python', '?')} on {info.get('machine', '?')}; {packages}"
