"""What all figures of a report have in common: size, type, an arm's look, labels, files."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edge_grpo.reporting.layout import Layout
from edge_grpo.statistics.palette import Look

Looks = Mapping[str, Look]
FEW = 8
"""arms whose bands do not hide one another"""
TYPE = 7.5  # points, in print: figures are made at the size at which they are printed
LONGEST_LABEL = 18  # characters of a label beside its line
GAP, SHIFT = 8.0, 14.0  # points: between labels, and from a line's end to its label at most
HEIGHT = {"column": 0.66, "page": 0.4}  # of a panel, against its width


@dataclass(frozen=True)
class Drawn:
    """A figure: files on the disk, each with one panel, and a chart for the page.

    Attributes:
        name: that its files begin with.
        title, caption: as the page shows them.
        files: names of the panels, without the ending.
        chart: Vega-Lite specification.
    """

    name: str
    title: str
    caption: str
    files: Sequence[str]
    chart: Mapping[str, Any]


def panel(layout: Layout, *, rows: int | None = None) -> tuple[Figure, Axes]:
    """One panel as wide as the layout says; with `rows`, as high as so many lines of type need."""
    height = HEIGHT[layout.width] * layout.inches if rows is None else 0.7 + 0.15 * rows
    figure = Figure(figsize=(layout.inches, height), layout="constrained")
    return figure, figure.subplots()


def style() -> Any:
    """White with a light grid; a file is the same each time, and `$` in a label is no mathematics."""
    own = {
        "font.size": TYPE,
        **dict.fromkeys(("axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), TYPE),
        "legend.fontsize": TYPE,
        "lines.linewidth": 1.2,
        "lines.markersize": 3.0,
        "axes.linewidth": 0.6,
        "grid.linewidth": 0.5,
        "pdf.fonttype": 42,  # publishers refuse type 3
        "text.parse_math": False,
    }
    return matplotlib.rc_context({**sns.axes_style("whitegrid"), **own})


def line_style(look: Look) -> Any:
    """As matplotlib takes it."""
    return (0, look.dash) if look.dash else "-"


def name_lines(figure: Figure, axis: Axes, looks: Looks) -> None:
    """The name of each line at its end where all fit there, else a legend below: neither lies on the data.

    Args:
        looks: line -> look, of the lines in the panel; a line is found by its label.
    """
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) > 1 and not _named_beside(figure, axis, looks):
        legend_below(figure, dict(zip(labels, handles, strict=True)))


def legend_below(figure: Figure, handles: Mapping[str, Any]) -> None:
    """A legend under the panel, for which the figure grows."""
    # An inch holds about 17 characters of this type, and a handle takes 6.
    columns = max(1, min(len(handles), int(17 * figure.get_figwidth() / (max(map(len, handles)) + 6))))
    figure.set_figheight(figure.get_figheight() + 0.145 * -(-len(handles) // columns))
    options: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "frameon": False, "handlelength": 2.6}
    figure.legend(list(handles.values()), list(handles), **options)


def _named_beside(figure: Figure, axis: Axes, looks: Looks) -> bool:
    """Write names at the right ends; False, and nothing written, where there is no room for them."""
    ends = {name: end for name in looks if (end := _end(axis, name)) is not None}
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    at_right = all(x >= right - 0.07 * (right - left) for x, _ in ends.values())
    if not ends or len(ends) > FEW or max(map(len, ends)) > LONGEST_LABEL or not at_right:
        return False
    height = 72 * 0.8 * figure.get_figheight()  # points of the axis, about
    names = sorted(ends, key=lambda name: ends[name][1])
    wanted = [height * (ends[name][1] - low) / (high - low) for name in names]
    places = _apart(wanted)
    if max(abs(place - want) for place, want in zip(places, wanted, strict=True)) > SHIFT:
        return False
    for name, place, want in zip(names, places, wanted, strict=True):
        axis.annotate(
            name,
            ends[name],
            xytext=(4, place - want),
            textcoords="offset points",
            va="center",
            color=looks[name].colour,
            annotation_clip=False,
        )
    return True


def _end(axis: Axes, name: str) -> tuple[float, float] | None:
    """Where the line of that label ends."""
    for line in axis.get_lines():
        places = np.asarray(line.get_xydata(), dtype=float)
        if line.get_label() == name and len(places):
            return float(places[-1, 0]), float(places[-1, 1])
    return None


def _apart(places: Sequence[float]) -> list[float]:
    """Ascending places, moved as little as keeps neighbours `GAP` apart: those that touch are centred on their mean.

    >>> _apart([0.0, 2.0, 30.0])
    [-3.0, 5.0, 30.0]
    """
    blocks: list[list[float]] = []
    for place in places:
        blocks.append([place])
        while len(blocks) > 1 and _span(blocks[-2])[1] + GAP > _span(blocks[-1])[0]:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [_span(block)[0] + GAP * i for block in blocks for i in range(len(block))]


def _span(block: Sequence[float]) -> tuple[float, float]:
    middle, half = sum(block) / len(block), GAP * (len(block) - 1) / 2
    return middle - half, middle + half


def save(figure: Figure, path: Path) -> None:
    """PNG and PDF."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every table of every font
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.parent / f"{path.name}.png", dpi=200)
    figure.set_layout_engine("none")  # it is laid out
    figure.savefig(path.parent / f"{path.name}.pdf", metadata={"CreationDate": None})


def file_names(figure: str, panels: Sequence[str]) -> dict[str, str]:
    """panel -> name of its file, without the ending; what no file name should hold becomes `_`.

    >>> file_names("collapse", ["eda, clamp=4", "eda: clamp=4"])
    {'eda, clamp=4': 'collapse-eda_clamp=4', 'eda: clamp=4': 'collapse-eda_clamp=4-2'}
    """
    names: dict[str, str] = {}
    for text in panels:
        words = "".join(c if c.isalnum() or c in "._=+-" else " " for c in text).split()
        own = "-".join([figure, "_".join(words)[:100]]) if words else figure
        tries = (own if number == 1 else f"{own}-{number}" for number in itertools.count(1))
        taken = {name.lower() for name in names.values()}  # some file systems do not tell cases apart
        names[text] = next(name for name in tries if name.lower() not in taken)
    return names
