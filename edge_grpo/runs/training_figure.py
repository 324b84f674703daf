"""training.png: four panels that tell a run's story."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
    margins = {"left": 0.06, "right": 0.98, "top": 0.91, "bottom": 0.12, "wspace": 0.16, "hspace": 0.52}
    axes = figure.subplots(2, 2, gridspec_kw=margins)
    figure.suptitle(title, parse_math=False)  # a name may hold dollars
    _accuracy(axes[0, 0], data)
    _collapse(axes[0, 1], data)
    _lines(axes[1, 0], data, {"train/entropy": "sampled tokens"})
    axes[1, 0].set(title="Policy entropy of sampled tokens", ylabel="nats per token", ylim=(0, None))
    _lines(axes[1, 1], data, {"train/advantage_var": "variance over rows"})
    axes[1, 1].set(title="Advantage variance over rows", ylabel="variance", ylim=(0, None))
    for axis in axes.flat:
        axis.set_xlabel("iteration")
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.grid(alpha=0.3)
        if len(axis.get_legend_handles_labels()[0]) > 1:
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}  # where it hides no data
            axis.legend(frameon=False, fontsize="small", ncols=2, **below)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def _lines(axis: Axes, data: pd.DataFrame, names: dict[str, str], **style: Any) -> None:
    """One line for each of the columns that the run has."""
    for name, label in names.items():
        if name in data:
            column = data[name].dropna()
            axis.plot(column.index, column, label=label, **style)


def _accuracy(axis: Axes, data: pd.DataFrame) -> None:
    _lines(axis, data, {"train/accuracy": "training rollouts", "train/accuracy_corrected": "after correction"})
    held_out = [str(name) for name in data if fnmatch(str(name), "eval/held_out/avg@*")]
    _lines(axis, data, dict.fromkeys(held_out, "held-out"), marker="o", color="black")
    axis.set(title="Accuracy", ylabel="share right", ylim=MARGIN)


def _collapse(axis: Axes, data: pd.DataFrame) -> None:
    """Stack of group kinds as sampled, and the share that teaches nothing in the end."""
    names = [f"collapse/before/{kind}" for kind in KINDS]
    if names[0] in data:
        shares = data[names].dropna()
        labels = [f"{kind.replace('_', ' ')} (as sampled)" for kind in KINDS]
        axis.stackplot(shares.index, shares.T, labels=labels, colors=list(KINDS.values()), alpha=0.6)
        _lines(axis, data, {"collapse/no_advantage": "no advantage"}, color="black", ls="--")
    axis.set(title="Groups", ylabel="share of groups", ylim=MARGIN)
