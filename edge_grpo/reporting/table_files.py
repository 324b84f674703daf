"""A table as Markdown, LaTeX and CSV."""

import re
from pathlib import Path

from edge_grpo.reporting.latex import as_latex
from edge_grpo.reporting.layout import Layout
from edge_grpo.reporting.tables import Cell, Table


def write_table(table: Table, layout: Layout, folder: Path) -> None:
    """`<name>.md`, `<name>.tex` and `<name>.csv` in the folder."""
    (folder / f"{table.name}.md").write_text(as_markdown(table, layout), encoding="utf-8")
    (folder / f"{table.name}.tex").write_text(as_latex(table, layout), encoding="utf-8")
    table.tidy.to_csv(folder / f"{table.name}.csv", index=False)


def as_markdown(table: Table, layout: Layout) -> str:
    """Title, table with all of every cell, caption."""
    rows = [[_markdown(cell) for cell in row] for row in table.rows]
    head = [escape_markdown(layout.label(column)) for column in table.columns]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(head) - 1))
    return "\n".join([f"### {escape_markdown(table.title)}", "", *lines, "", escape_markdown(table.caption), ""])


def _markdown(cell: Cell) -> str:
    text = escape_markdown(cell.line)
    return f"**{text}**" if cell.rank == 1 else f"<ins>{text}</ins>" if cell.rank == 2 else text


def escape_markdown(text: str) -> str:
    r"""An underscore within a word, and brackets that no link follows, mean themselves.

    >>> print(escape_markdown("edge_grpo, tags=[a|b]*"))
    edge_grpo, tags=[a\|b]\*
    """
    return re.sub(r"[\\`*<>|~]|(?<!\w)_|_(?!\w)|(?<=\])\(", r"\\\g<0>", text)
