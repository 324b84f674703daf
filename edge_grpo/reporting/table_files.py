"""A table as Markdown, LaTeX (booktabs) and CSV."""

import re
from pathlib import Path

import pandas as pd

from edge_grpo.reporting.tables import Cell, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def write_table(table: Table, folder: Path) -> None:
    """`<name>.md`, `<name>.tex` and `<name>.csv` in the folder."""
    (folder / f"{table.name}.md").write_text(as_markdown(table))
    (folder / f"{table.name}.tex").write_text(as_latex(table))
    table.tidy.to_csv(folder / f"{table.name}.csv", index=False)


def as_markdown(table: Table) -> str:
    """Title, table, caption."""
    rows = [[_markdown(cell) for cell in row] for row in table.rows]
    head = [escape_markdown(column) for column in table.columns]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(head) - 1))
    return "\n".join([f"### {escape_markdown(table.title)}", "", *lines, "", escape_markdown(table.caption), ""])


def _markdown(cell: Cell) -> str:
    text = escape_markdown(cell.line)
    return f"**{text}**" if cell.bold else text


def escape_markdown(text: str) -> str:
    r"""An underscore within a word, and brackets that no link follows, mean themselves.

    >>> print(escape_markdown("edge_grpo, tags=[a|b]*"))
    edge_grpo, tags=[a\|b]\*
    """
    return re.sub(r"[\\`*<>|~]|(?<!\w)_|_(?!\w)|(?<=\])\(", r"\\\g<0>", text)


def as_latex(table: Table) -> str:
    """A `table` environment; needs the package booktabs.

    Captions and cells are escaped; the label is `tab:<name>`.
    """
    body = [[_latex(cell) for cell in row] for row in table.rows]
    frame = pd.DataFrame(body, columns=[escape_latex(column) for column in table.columns])
    return frame.style.hide(axis="index").to_latex(
        column_format="l" + "r" * (len(table.columns) - 1),
        caption=escape_latex(table.caption),
        label=f"tab:{table.name}",
        position_float="centering",
        hrules=True,
    )


def _latex(cell: Cell) -> str:
    text = escape_latex(cell.line)
    return rf"\textbf{{{text}}}" if cell.bold else text


def escape_latex(text: str) -> str:
    r"""
    >>> print(escape_latex(r"edge_grpo, 5 % ± 1"))
    edge\_grpo, 5 \% $\pm$ 1
    """
    return "".join(_LATEX.get(character, character) for character in text)
