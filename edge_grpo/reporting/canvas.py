"""What all figures of a report have in common: size, style, colours, legend, files."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Palette = Mapping[str, Any]
PANEL = (3.9, 3.2)  # inches
FEW = 10
"""arms that colours alone tell apart"""
DASHES = ((), (4, 1.5), (1, 1), (6, 1.5, 1, 1.5), (3, 1, 1, 1, 1, 1))


@dataclass(frozen=True)
class Drawn:
    """A figure on the disk.

    Attributes:
        name: of its files, without the ending.
        title, caption: as the page shows them.
    """

    name: str
    title: str
    caption: str


def palette_of(arms: Sequence[str]) -> Palette:
    """A colour an arm, the same in all figures: the colour-blind safe ten, again and again for more arms."""
    return dict(zip(arms, sns.color_palette("colorblind", len(arms)), strict=True))


def dashes_of(arms: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Dashes of an arm's line, other ones each time that the colours come again.

    >>> [dashes_of([str(i) for i in range(12)])[arm] for arm in ("0", "9", "10")]
    [(), (), (4, 1.5)]
    """
    return {arm: DASHES[i // FEW % len(DASHES)] for i, arm in enumerate(arms)}


def small_multiples(panels: Sequence[str], *, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """At most three panels a row, with shared axes."""
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    size = (max(PANEL[0] * columns, 6.5), PANEL[1] * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False).flatten()
    for spare in axes[len(panels) :]:
        spare.remove()
    for axis in axes[max(len(panels) - columns, 0) : len(panels)]:  # nothing stands below these
        axis.tick_params(labelbottom=True)
    return figure, list(axes[: len(panels)])


def common_legend(figure: Figure, axis: Axes) -> None:
    """The legend of one panel, under all of them."""
    handles, labels = axis.get_legend_handles_labels()
    # seaborn heads the entries of a column with its name.
    entries = [entry for entry in zip(handles, labels, strict=True) if entry[1] not in ("arm", "line")]
    handles, labels = [handle for handle, _ in entries], [label for _, label in entries]
    if (own := axis.get_legend()) is not None:
        own.remove()
    # A label is as wide as its arm's settings; an inch holds about 11 characters.
    columns = max(1, min(len(labels), int(11 * figure.get_figwidth() / (max(map(len, labels), default=0) + 8))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def style() -> Any:
    """White with a light grid; a file is the same each time, and `$` in a label is no mathematics."""
    own = {"svg.hashsalt": "edge-grpo", "font.size": 10, "text.parse_math": False}
    return matplotlib.rc_context({**sns.axes_style("whitegrid"), **own})


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    figure.set_layout_engine("none")  # it is laid out
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
