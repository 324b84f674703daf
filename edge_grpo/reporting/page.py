"""index.html: one file that shows everything and fetches nothing."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from edge_grpo.reporting.arms import differing_settings, told
from edge_grpo.reporting.canvas import Drawn
from edge_grpo.reporting.layout import Layout
from edge_grpo.reporting.render import embedded, render
from edge_grpo.reporting.runs import FINISHED, Run
from edge_grpo.reporting.scores import Member
from edge_grpo.reporting.tables import NOTHING, Cell, Table

LABELS = {"md": "Markdown", "tex": "LaTeX", "csv": "CSV"}
MODEL = ("model.path", "model.revision")
DATA = ("data.path", "data.name", "data.subset", "data.dataset", "data.train_count", "data.max_correctness_rate")


def write_page(
    out: Path,
    *,
    title: str,
    command: str,
    headline: Sequence[str],
    notes: Sequence[str],
    tables: Sequence[Table],
    layout: Layout,
    figures: Sequence[Drawn],
    used: Sequence[Member],
    left_out: Sequence[tuple[str, Run]],
    missing: Sequence[str],
) -> None:
    """Write `<out>/index.html`, with the tables and figures of the folder in it.

    Args:
        out: the report's folder.
        title, command: at the top.
        headline: sentences.
        notes: what a reader must know to read the tables right.
        tables, figures: in their order on the page.
        layout: for the names of columns.
        used: the runs in the tables.
        left_out: arm and run of the others.
        missing: arms that there should be and of which no run is there.
    """
    first = {member.arm: member.run for member in reversed(used)}
    arms = list(dict.fromkeys(member.arm for member in used))
    text = render(
        "report.html.jinja",
        "edge_grpo.reporting",
        {drawn.name: drawn.chart for drawn in figures},
        title=title,
        command=command,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        headline=headline,
        trained=_trained([member.run for member in used]),
        notes=notes,
        tables=[_table(table, layout, out) for table in tables],
        figures=[_figure(drawn, out / "figures") for drawn in figures],
        arms=arms,
        settings=differing_settings([first[arm] for arm in arms]),
        used=[{**_run(m.arm, m.run, out), "evaluation": m.evaluation.name if m.evaluation else "none"} for m in used],
        left_out=[{**_run(arm, run, out), "state": run.state, "why": _why(run)} for arm, run in left_out],
        missing=missing,
        origins=_origins([member.run for member in used]),
    )
    (out / "index.html").write_text(text, encoding="utf-8")


def _table(table: Table, layout: Layout, out: Path) -> dict[str, Any]:
    return {
        "title": table.title,
        "caption": table.caption,
        "columns": [layout.label(column) for column in table.columns],
        "rows": [[{**vars(cell), "sort": _sorted_by(cell)} for cell in row] for row in table.rows],
        "files": [_file(out / f"{table.name}.{kind}", label) for kind, label in LABELS.items()],
    }


def _sorted_by(cell: Cell) -> str:
    """The value of a number; "", which comes last, where there is none."""
    return repr(float(cell.value)) if cell.value is not None else "" if cell.text == NOTHING else cell.text


def _figure(drawn: Drawn, folder: Path) -> dict[str, Any]:
    """With its panels as PDF."""
    own = [_file(folder / f"{name}.pdf", name.removeprefix(f"{drawn.name}-")) for name in drawn.files]
    return {"name": drawn.name, "title": drawn.title, "caption": drawn.caption, "files": own}


def _file(path: Path, label: str) -> dict[str, str]:
    """A link that holds the file, so that it survives being sent."""
    return {"name": path.name, "label": label, "data": embedded(path.read_bytes(), path.suffix[1:])}


def _trained(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The model and the problems, each once."""
    found: dict[str, list[str]] = {}
    for name, group, keys in (("Model", "model", MODEL), ("Problems", "data", DATA)):
        texts = [_described(run, group, keys) for run in runs]
        if any(texts):
            found[name] = list(dict.fromkeys(text for text in texts if text))
    return found


def _described(run: Run, group: str, keys: Sequence[str]) -> str:
    """The option of a config group, and settings of it."""
    values = {key.partition(".")[2]: run.settings.get(key) for key in keys}
    parts = [f"{name}={told(value)}" for name, value in values.items() if value is not None]
    return ", ".join([*([run.choices[group]] if group in run.choices else []), *parts])


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
