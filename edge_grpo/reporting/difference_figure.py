"""The figure of differences to the baseline: arms in colours, or of many arms a line each."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edge_grpo.reporting.canvas import FEW, Drawn, Palette, common_legend, save, style
from edge_grpo.reporting.numbers import Numbers
from edge_grpo.reporting.tables import heading


def draw_differences(numbers: Numbers, baseline: str, palette: Palette, folder: Path) -> Drawn | None:
    """Points with intervals for every column of the main table; None without a second arm."""
    differences = numbers.differences
    if differences.empty:
        return None
    columns = zip(differences["benchmark"], differences["metric"], strict=True)
    differences = differences.assign(column=[heading(column, numbers.problems) for column in columns])
    heads, arms = list(dict.fromkeys(differences["column"])), list(dict.fromkeys(differences["arm"]))
    with style():
        if len(arms) <= FEW:
            figure = _in_colours(differences, heads, arms, palette, baseline)
        else:
            figure = _line_by_line(differences, heads, baseline)
        save(figure, folder / "differences")
    caption = f"The table of differences to {baseline} as a figure; a point without whiskers has no interval."
    return Drawn("differences", f"Differences to {baseline}", caption)


def _in_colours(
    differences: pd.DataFrame, heads: Sequence[str], arms: Sequence[str], palette: Palette, baseline: str
) -> Figure:
    """A row a column of the table, an arm a colour."""
    figure = Figure(figsize=(8.2, 1.2 + 0.2 * len(heads) * (len(arms) + 1)), layout="constrained")
    axis = figure.subplots()
    for i, arm in enumerate(arms):
        own = differences[differences["arm"] == arm].set_index("column")
        places = [heads.index(head) + 0.7 * ((i + 1) / (len(arms) + 1) - 0.5) for head in own.index]
        _points(axis, own, places, palette[arm], arm)
    _finish(axis, heads, baseline)
    common_legend(figure, axis)
    return figure


def _line_by_line(differences: pd.DataFrame, heads: Sequence[str], baseline: str) -> Figure:
    """A panel a column of the table, a line an arm, the best in the first panel above."""
    first = differences[differences["column"] == heads[0]].sort_values("mean", ascending=False)
    arms = list(dict.fromkeys([*first["arm"], *differences["arm"]]))
    figure = Figure(figsize=(2.5 + 4.2 * len(heads), 1.2 + 0.22 * len(arms)), layout="constrained")
    for axis, head in zip(figure.subplots(1, len(heads), sharey=True, squeeze=False)[0], heads, strict=True):
        own = differences[differences["column"] == head]
        _points(axis, own, [arms.index(arm) for arm in own["arm"]], "black", head)
        _finish(axis, arms, baseline)
        axis.set_title(head)
    return figure


def _points(axis: Axes, own: pd.DataFrame, places: Sequence[float], colour: object, label: str) -> None:
    ends = [(own["mean"] - own["low"]).fillna(0) * 100, (own["high"] - own["mean"]).fillna(0) * 100]
    axis.errorbar(own["mean"] * 100, places, xerr=ends, fmt="o", capsize=3, color=colour, label=label)


def _finish(axis: Axes, rows: Sequence[str], baseline: str) -> None:
    axis.axvline(0, color="black", linewidth=1)
    axis.set(xlabel=f"difference to {baseline}, percentage points", ylim=(len(rows) - 0.5, -0.5))
    axis.set_yticks(range(len(rows)), rows)
