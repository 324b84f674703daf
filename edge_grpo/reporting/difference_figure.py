"""The figure of differences to the baseline: arms in their looks, or of many arms a line each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from edge_grpo.reporting import charts
from edge_grpo.reporting.canvas import FEW, Drawn, Looks, file_names, legend_below, panel, save
from edge_grpo.reporting.layout import Layout
from edge_grpo.reporting.numbers import Numbers
from edge_grpo.reporting.tables import heading

NAME = "differences"
LEAST_POINTS = 1.0  # percentage points to either side of 0: of arms that are the same nothing is magnified


def draw_differences(numbers: Numbers, baseline: str, looks: Looks, layout: Layout, folder: Path) -> Drawn | None:
    """Points with intervals for every column of the main table; None without a second arm.

    Of few arms all columns are in one panel, of more each has its own, the arms in the order of the first column.
    """
    differences = numbers.differences
    if differences.empty:
        return None
    columns = zip(differences["benchmark"], differences["metric"], strict=True)
    heads = [layout.label(heading(column, numbers.problems)) for column in columns]
    differences = differences.assign(column=heads)
    heads, arms = list(dict.fromkeys(heads)), list(dict.fromkeys(differences["arm"]))
    if len(arms) <= FEW:
        files = [NAME]
        _in_colours(differences, heads, arms, looks, baseline, layout, folder)
    else:
        first = differences[differences["column"] == heads[0]].sort_values("mean", ascending=False)
        arms = list(dict.fromkeys([*first["arm"], *arms]))
        names = file_names(NAME, heads)
        files = list(names.values())
        for head, name in names.items():
            _line_by_line(differences[differences["column"] == head], head, arms, baseline, layout, folder / name)
    caption = f"The table of differences to {baseline} as a figure; a point without whiskers has no interval."
    chart = charts.differences(differences, heads, arms, looks, baseline)
    return Drawn(NAME, f"Differences to {baseline}", caption, files, chart)


def _in_colours(
    differences: pd.DataFrame,
    heads: Sequence[str],
    arms: Sequence[str],
    looks: Looks,
    baseline: str,
    layout: Layout,
    folder: Path,
) -> None:
    """A row a column of the table, an arm a colour and a marker."""
    figure, axes = panel(layout, rows=max(4, len(heads) * (len(arms) + 1)))
    for i, arm in enumerate(arms):
        own = differences[differences["arm"] == arm].set_index("column")
        places = [heads.index(head) + 0.7 * ((i + 1) / (len(arms) + 1) - 0.5) for head in own.index]
        _points(axes, own, places, looks[arm].colour, arm, marker="osD^vPX*"[i])
    _finish(axes, heads, baseline)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        legend_below(figure, dict(zip(labels, handles, strict=True)))
    save(figure, folder / NAME)


def _line_by_line(own: pd.DataFrame, head: str, arms: Sequence[str], baseline: str, layout: Layout, path: Path) -> None:
    figure, axes = panel(layout, rows=len(arms))
    _points(axes, own, [arms.index(arm) for arm in own["arm"]], "black", head, marker="o")
    _finish(axes, arms, baseline)
    axes.set_title(head)
    save(figure, path)


def _points(axes: Axes, own: pd.DataFrame, places: Sequence[float], colour: str, label: str, *, marker: str) -> None:
    ends = [(own["mean"] - own["low"]).fillna(0) * 100, (own["high"] - own["mean"]).fillna(0) * 100]
    options: dict[str, Any] = {"fmt": marker, "capsize": 2, "linewidth": 1, "color": colour, "label": label}
    axes.errorbar(own["mean"] * 100, places, xerr=ends, **options)


def _finish(axes: Axes, rows: Sequence[str], baseline: str) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -LEAST_POINTS), max(high, LEAST_POINTS))
    axes.set(xlabel=f"minus {baseline}, percentage points", ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), rows)
