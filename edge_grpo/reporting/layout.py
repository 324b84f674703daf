"""How tables and figures are laid out for a paper: what a cell shows, widths, names, which columns."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_grpo.errors import UserError, nearest

CELLS = ("mean", "mean_sd", "interval")
WIDTHS = ("column", "page")
POINTS = 72.27  # TeX's points of an inch


@dataclass(frozen=True)
class Layout:
    """Settings of the LaTeX tables and the figures; names hold for the page and the Markdown too.

    Args:
        labels: arm or column -> what it is called; null changes none. A column's number of problems need not be named.
        columns: table -> its columns in LaTeX, in this order; null for all. The arms' column always comes first.
        cells: `mean`; `mean_sd`, mean ± standard deviation over seeds; `interval`, in a second line.
        width: `column` or `page`: of tables and figures.
        column_inches, page_inches: these widths, at most those of the paper's class.

    Raises:
        UserError: a value out of range.
    """

    labels: Mapping[str, str] | None
    columns: Mapping[str, Sequence[str]] | None
    cells: str
    width: str
    column_inches: float
    page_inches: float

    def __post_init__(self) -> None:
        for key, value, known in (("cells", self.cells, CELLS), ("width", self.width, WIDTHS)):
            if value not in known:
                raise UserError(f"layout.{key}={value}: must be one of {', '.join(known)}")
        if not 2 <= self.column_inches <= self.page_inches <= 12:
            raise UserError(
                f"layout.column_inches={self.column_inches} must be at least 2 and at most "
                f"layout.page_inches={self.page_inches}, which must be at most 12"
            )
        shown = list((self.labels or {}).values())
        twice = sorted({str(text) for text in shown if shown.count(text) > 1})
        if twice:
            raise UserError(f"layout.labels: several have the name {', '.join(twice)}, and could not be told apart")

    @property
    def inches(self) -> float:
        return self.column_inches if self.width == "column" else self.page_inches

    @property
    def points(self) -> float:
        """The width in TeX's points."""
        return self.inches * POINTS

    def label(self, name: str) -> str:
        """What an arm or a column is called.

        >>> layout = Layout({"Avg": "mean"}, None, "mean", "column", 3.25, 6.75)
        >>> layout.label("Avg (1000)"), layout.label("Avg"), layout.label("AIME24 (30)")
        ('mean (1000)', 'mean', 'AIME24 (30)')
        """
        labels, bare = self.labels or {}, bare_heading(name)
        if name in labels:
            return str(labels[name])
        return str(labels[bare]) + name[len(bare) :] if bare in labels else name

    def check(self, arms: Sequence[str], tables: Mapping[str, Sequence[str]]) -> None:
        """Refuse names of what is not there.

        Args:
            arms: labels of the runs found, finished or not.
            tables: name -> columns, of the tables that are there.

        Raises:
            UserError: with the names that are there.
        """
        heads = [name for columns in tables.values() for head in columns for name in (bare_heading(head), head)]
        known = list(dict.fromkeys([*arms, *heads]))
        for name in self.labels or {}:
            if name not in known:
                raise _absent(f"layout.labels names {name}, which is no arm and no column", name, known)
        own_names = list(dict.fromkeys(arms))
        shown = [self.label(arm) for arm in own_names]
        if twice := sorted({text for text in shown if shown.count(text) > 1}):
            raise UserError(
                f"layout.labels: two arms would be called {', '.join(twice)}; the arms: {'; '.join(own_names)}"
            )
        for table, wanted in (self.columns or {}).items():
            if not wanted:
                raise UserError(f"layout.columns.{table} names no column")
            if table not in tables:
                raise _absent(f"layout.columns names {table}, which is no table of this report", table, list(tables))
            own = list(dict.fromkeys(name for head in tables[table] for name in (bare_heading(head), head)))
            for name in wanted:
                if name not in own:
                    raise _absent(f"layout.columns.{table} names {name}, which is no column of it", name, own)

    def chosen(self, table: str, columns: Sequence[str]) -> list[int] | None:
        """Places of the columns that were asked for, behind the first; None if none were."""
        wanted = (self.columns or {}).get(table)
        if wanted is None:
            return None
        return [i for name in wanted for i, head in enumerate(columns) if i and name in (head, bare_heading(head))]


def bare_heading(heading: str) -> str:
    """Without the number of problems.

    >>> bare_heading("AIME24 (30)"), bare_heading("entropy, first 5")
    ('AIME24', 'entropy, first 5')
    """
    return re.sub(r" \(\d+\)$", "", heading)


def _absent(text: str, name: str, known: Sequence[str]) -> UserError:
    meant = nearest(name, known)
    hint = f"did you mean {meant}? " if meant else ""
    return UserError(f"{text}; {hint}there are: {'; '.join(known) or 'none'}")
