"""A table as LaTeX (booktabs) that is no wider than the column or page of the paper.

Widths are those of Computer Modern, from the fonts that matplotlib brings; Times is narrower. Type is never shrunk:
columns that do not fit beside the arms go into a further tabular below, which repeats the arms.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font

from edge_grpo.reporting.layout import Layout
from edge_grpo.reporting.tables import NOTHING, Cell, Table

# \normalsize, \small and \scriptsize of a paper in 10 pt, each with its own design, against the font at 10 points.
CAPTION, SIZE, SMALL = 1.0, 0.925, 0.797
SEPARATION = 4.0  # points to either side of a column, \tabcolsep
FILLED = 0.97  # of the width: the fonts of a paper are not exactly ours
ARMS = 0.42  # of the width at most for the first column; longer names are broken
NARROW = 0.2  # of the width at least, where names are broken so that all columns fit beside them
SPACE, PLUS = 3.33, 7.78  # points, at 10
# Points: of a page for one table, of a line of it and of its caption, and of its rules, head and gaps.
PAGE, LINE, CAPTION_LINE, FRAME = 590.0, 11.0, 12.0, 60.0
GREEK = {
    **{"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta"},
    **{"κ": "kappa", "λ": "lambda", "μ": "mu", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi"},
    **{"χ": "chi", "ψ": "psi", "ω": "omega", "Δ": "Delta"},
}
"""letters that pdflatex's text has not"""
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    **{letter: f"$\\{name}$" for letter, name in GREEK.items()},
    **{"−": "$-$", "×": r"$\times$", "→": r"$\to$", "≤": r"$\leq$", "≥": r"$\geq$", "∞": r"$\infty$"},
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


@dataclass(frozen=True)
class _Part:
    """A tabular: some columns of some rows.

    Attributes:
        columns: places in the table; the first is 0.
        arms: width of the first column, points.
        rows: the table's, of these columns.
    """

    columns: Sequence[int]
    arms: float
    rows: Sequence[Sequence[Cell]]


def as_latex(table: Table, layout: Layout) -> str:
    """One `table` environment, or several where one would be longer than a page; needs the package booktabs.

    Columns that are the same in every row are left out, and the caption says what they are. Cells are written as
    `layout.cells` says; labels are `tab:<name>`, with `-2` and so on for further environments.
    """
    rows = [[_in_style(cell, layout) for cell in row] for row in table.rows]
    places, constant = _chosen(table, rows, layout)
    widths = {i: 2 * SEPARATION + _column_width(table.columns[i], [row[i] for row in rows], layout) for i in places}
    arms = _arms_column(table, sum(widths.values()), layout)
    groups = _beside_each_other(widths, FILLED * layout.points - arms)
    parts = [_Part(columns, arms, [[row[i] for i in (0, *columns)] for row in rows]) for columns in groups]
    caption = _caption(table, places, constant, layout)
    room = PAGE - CAPTION_LINE * math.ceil(_width(caption, CAPTION) / layout.points)
    heights = [LINE * _lines(row, arms) for row in rows]
    if len(parts) * (FRAME + sum(heights)) <= room:
        floats = [parts]
    else:
        floats = [[piece] for part in parts for piece in _cut(part, heights, room - FRAME)]
    text = [_environment(own, number, len(floats), caption, table, layout) for number, own in enumerate(floats, 1)]
    return "\n".join(["% needs \\usepackage{booktabs}", *text])


def _in_style(cell: Cell, layout: Layout) -> Cell:
    return replace(
        cell,
        spread=cell.spread if layout.cells == "mean_sd" else "",
        interval=cell.interval if layout.cells == "interval" else "",
    )


def _chosen(table: Table, rows: Sequence[Sequence[Cell]], layout: Layout) -> tuple[list[int], list[str]]:
    """Places of the columns behind the first, and what is said of those that are the same in every row."""
    asked = layout.chosen(table.name, table.columns)
    if asked is not None:
        return asked, []
    places, constant = [], []
    for i in range(1, len(table.columns)):
        shown = {cell.line for cell in (row[i] for row in rows)}
        if len(rows) > 1 and len(shown) == 1:
            told = shown.pop()
            constant += [] if told == NOTHING else [f"{layout.label(table.columns[i])} {told}"]
        else:
            places.append(i)
    # Of arms that are all the same, the table is that they are.
    return (places, constant) if places else (list(range(1, len(table.columns))), [])


def _arms_column(table: Table, columns: float, layout: Layout) -> float:
    """Points for the first column: as wide as its names, unless breaking them lets all columns fit beside it."""
    widest = min(_arms_width(table, layout), ARMS * layout.points)
    left = FILLED * layout.points - columns
    pieces = [piece for row in table.rows for piece in _pieces(row[0].text)]
    least = max(NARROW * layout.points, *map(_width, pieces)) if pieces else widest
    return left if least <= left < widest else widest


def _pieces(name: str) -> list[str]:
    """What no line can end inside of, see `_breakable`.

    >>> _pieces("advantage=entropy_driven, seed 0")
    ['advantage=', 'entropy_', 'driven,', 'seed', '0']
    """
    return re.sub(r"(?<=[\w)\]])([=.,/_])(?=\w)", r"\1 ", name).split()


def _beside_each_other(widths: Mapping[int, float], room: float) -> list[list[int]]:
    """The places in groups, each as many columns as fit into the room."""
    groups: list[list[int]] = []
    left = 0.0
    for i, width in widths.items():
        if not groups or width > left:
            groups.append([])
            left = room
        groups[-1].append(i)
        left -= width
    return groups


def _arms_width(table: Table, layout: Layout) -> float:
    return max(_width(text) for text in (layout.label(table.columns[0]), *(row[0].text for row in table.rows)))


def _column_width(heading: str, cells: Sequence[Cell], layout: Layout) -> float:
    body = max(map(_cell_width, cells), default=0.0)
    return max(body, *map(_width, _broken(layout.label(heading), body)))


def _cell_width(cell: Cell) -> float:
    own = _width(cell.text, bold=cell.rank == 1) + _width(cell.spread, SMALL)
    return max(own, _width(cell.interval, SMALL))


def _broken(heading: str, body: float) -> list[str]:
    """A heading in lines that are no wider than the cells below it, as far as its words allow."""
    words = heading.split(" ")
    widest = max(body, *map(_width, words))
    lines = words[:1]
    for word in words[1:]:
        if _width(f"{lines[-1]} {word}") <= widest:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _width(text: str, size: float = SIZE, *, bold: bool = False) -> float:
    """In points. A character that the font lacks counts as an m, and a hyphen before a digit is a minus."""
    font = _font("cmb10.ttf" if bold else "cmr10.ttf")
    return size * sum(_advance(font, character) for character in re.sub(r"-(?=\d)", "+", text))


@functools.cache
def _font(name: str) -> FT2Font:
    font = FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name))
    font.set_size(10, 72.27)
    return font


def _advance(font: FT2Font, character: str) -> float:
    if character in " +±":
        return SPACE if character == " " else PLUS
    known = (character.isascii() and character.isalnum()) or character in ".,;:()[]-=/%'"
    return float(font.load_char(ord(character if known else "m")).linearHoriAdvance) / 65536


def _lines(row: Sequence[Cell], arms: float) -> int:
    """Of a row: its arm's name may be broken, and intervals have a line of their own."""
    width = _width(row[0].text)
    broken = 1 if width <= arms else math.ceil(width / (0.85 * arms))  # ragged lines are not full
    return max(1, broken) + any(cell.interval for cell in row)


def _cut(part: _Part, heights: Sequence[float], room: float) -> Iterator[_Part]:
    """Pieces of nearly the same height, which have room on a page."""
    share = sum(heights) / math.ceil(sum(heights) / (0.9 * room))
    rows: list[Sequence[Cell]] = []
    used = 0.0
    for row, height in zip(part.rows, heights, strict=True):
        if rows and used + height > 1.05 * share:
            yield replace(part, rows=rows)
            rows, used = [], 0.0
        rows.append(row)
        used += height
    yield replace(part, rows=rows)


def _caption(table: Table, places: Sequence[int], constant: Sequence[str], layout: Layout) -> str:
    told = table.caption_of(places, spread=layout.cells == "mean_sd", interval=layout.cells == "interval")
    return f"{told} The same in every row: {'; '.join(constant)}." if constant else told


def _environment(parts: Sequence[_Part], number: int, of: int, caption: str, table: Table, layout: Layout) -> str:
    name = "table" if layout.width == "column" else "table*"
    part = f" (Part {number} of {of}.)" if of > 1 else ""
    told = f"{caption if number == 1 else f'{table.title}, continued.'}{part}"
    label = f"tab:{table.name}" + (f"-{number}" if number > 1 else "")
    tabulars = "\n\n\\medskip\n".join(_tabular(part, table, layout) for part in parts)
    return (
        f"\\begin{{{name}}}[t]\n\\centering\n\\caption{{{_breakable(told)}}}\n\\label{{{label}}}\n"
        f"\\small\\setlength{{\\tabcolsep}}{{{SEPARATION:g}pt}}\n\n\\smallskip\n{tabulars}\n\\end{{{name}}}\n"
    )


def _tabular(part: _Part, table: Table, layout: Layout) -> str:
    columns = [[row[place] for row in part.rows] for place in range(1, 1 + len(part.columns))]
    widths = [max(map(_cell_width, cells)) for cells in columns]
    heads = [
        _stacked(_broken(layout.label(table.columns[i]), width)) for i, width in zip(part.columns, widths, strict=True)
    ]
    is_broken = _arms_width(table, layout) > part.arms
    first = f"p{{{math.floor(part.arms)}pt}}" if is_broken else "l"
    begin = "\\raggedright " if is_broken else ""
    body = []
    for row in part.rows:
        arm = begin + _no_option((_breakable if is_broken else escape_latex)(row[0].text))
        body.append(" & ".join([arm, *map(_latex, row[1:])]) + r" \\")
        if any(cell.interval for cell in row):
            body.append(" & ".join(["", *(_small(cell.interval) for cell in row[1:])]) + r" \\[2pt]")
    return "\n".join(
        [
            f"\\begin{{tabular}}{{@{{}}{first}{'r' * len(heads)}@{{}}}}",
            r"\toprule",
            " & ".join([_no_option(escape_latex(layout.label(table.columns[0]))), *heads]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _stacked(lines: Sequence[str]) -> str:
    told = [_no_option(escape_latex(line)) for line in lines]
    return told[0] if len(told) == 1 else "\\shortstack[r]{" + r"\\".join(told) + "}"


def _no_option(text: str) -> str:
    """A bracket behind the end of a line, or a rule, would be its option."""
    return f"{{}}{text}" if text.startswith("[") else text


def _latex(cell: Cell) -> str:
    text = "--" if cell.text == NOTHING else re.sub(r"^-(?=\d)", "$-$", escape_latex(cell.text))
    text = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}[cell.rank].format(text)
    return f"{text} {_small(cell.spread.replace('± ', '±'))}" if cell.spread else text


def _small(text: str) -> str:
    return "{\\scriptsize " + re.sub(r"-(?=\d)", "$-$", escape_latex(text)) + "}" if text else ""


def escape_latex(text: str) -> str:
    r"""
    >>> print(escape_latex(r"edge_grpo, 5 % ± 1"))
    edge\_grpo, 5 \% $\pm$ 1
    """
    return "".join(_LATEX.get(character, character) for character in text)


def _breakable(text: str) -> str:
    """With places where a line may end inside what was typed, such as `advantage.clamp=4`."""
    return re.sub(r"(?<=[\w)\]])([=.,/]|\\_)(?=\w)", r"\1\\allowbreak{}", escape_latex(text))
