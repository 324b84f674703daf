"""training.png: four panels that tell a run's story."""

import math
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from edge_grpo.statistics.palette import KINDS

MARGIN = (-0.03, 1.03)  # of shares: a line at 0 or 1 is as wide as any other


def draw_training_figure(metrics_csv: Path, out: Path, *, title: str) -> None:
    """Accuracy, collapse, entropy and advantage variance against iterations.

    Args:
        metrics_csv: a run's metrics.csv.
        out: the PNG to write.
        title: above the panels.
    """
    data = pd.read_csv(metrics_csv).set_index("step")
    # Fixed margins: a layout engine would draw the figure twice.
    figure = Figure(figsize=(11, 8))
    margins = {"left": 0.075, "right": 0.98, "top": 0.91, "bottom": 0.12, "wspace": 0.19, "hspace": 0.52}
    axes = figure.subplots(2, 2, gridspec_kw=margins, sharex=True)
    figure.suptitle(title, parse_math=False)  # a name may hold dollars
    _accuracy(axes[0, 0], data)
    _collapse(axes[0, 1], data)
    _lines(axes[1, 0], data, {"train/entropy": "sampled tokens"})
    axes[1, 0].set(title="Policy entropy of sampled tokens", ylabel="nats per token")
    _lines(axes[1, 1], data, {"train/advantage_var": "variance over rows"})
    axes[1, 1].set(title="Advantage variance over rows", ylabel="variance")
    for axis in axes[1]:
        _from_zero(axis)
    for axis in axes.flat:
        axis.set_xlabel("iteration, from 0")
        axis.tick_params(labelbottom=True)
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.grid(alpha=0.3)
        if len(axis.get_legend_handles_labels()[0]) > 1:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}  # where it hides no data
            axis.legend(frameon=False, fontsize="small", ncols=2, **below)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def _from_zero(axis: Axes) -> None:
    """An axis from 0 to above the highest value, so that no line lies on the frame."""
    highest = axis.dataLim.y1 if axis.lines else 0.0
    axis.set_ylim(0, 1.06 * highest if 0 < highest < math.inf else 1)


def _lines(axis: Axes, data: pd.DataFrame, names: dict[str, str], **style: Any) -> None:
    """One line for each of the columns that the run has."""
    for name, label in names.items():
        if name in data:
            column = data[name].dropna()
            axis.plot(column.index, column, label=label, **style)


def _accuracy(axis: Axes, data: pd.DataFrame) -> None:
    lines = {"train/accuracy": "training rollouts", "train/accuracy_corrected": "after correction"}
    if set(lines) <= set(data) and data["train/accuracy"].equals(data["train/accuracy_corrected"]):
        del lines["train/accuracy_corrected"]  # it would hide the other
    _lines(axis, data, lines)
    held_out = [str(name) for name in data if fnmatch(str(name), "eval/held_out/avg@*")]
    label = "held-out, after so many iterations"  # the rollouts of iteration i are of the policy after i updates too
    _lines(axis, data, dict.fromkeys(held_out, label), marker="o", color="black")
    axis.set(title="Accuracy", ylabel="share right", ylim=MARGIN)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _collapse(axis: Axes, data: pd.DataFrame) -> None:
    """Stack of group kinds as sampled, and the share that teaches nothing in the end."""
    names = [f"collapse/before/{kind}" for kind in KINDS]
    if names[0] in data:
        shares = data[names].dropna()
        # A kind that no group is of has no area, and no entry in the legend.
        there = {name: kind for name, kind in zip(names, KINDS, strict=True) if (shares[name] > 0).any()}
        labels = [f"{kind.replace('_', ' ')} (as sampled)" for kind in there.values()]
        colours = [KINDS[kind] for kind in there.values()]
        if there:
            axis.stackplot(shares.index, shares[list(there)].T, labels=labels, colors=colours, alpha=0.6)
        _lines(axis, data, {"collapse/no_advantage": "no advantage"}, color="black", ls="--")
    axis.set(title="Groups", ylabel="share of groups", ylim=MARGIN)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
