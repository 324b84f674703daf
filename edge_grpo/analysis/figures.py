"""A figure for each question, from the same rows as its tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from edge_grpo.analysis.branches import BRANCHES, UNCHANGED, in_order, not_sampled
from edge_grpo.analysis.collapse import KINDS, UNIFORM, group_kinds
from edge_grpo.analysis.finding import Finding, Row
from edge_grpo.analysis.source import Source
from edge_grpo.statistics.bootstrap import Estimate
from edge_grpo.statistics.palette import KINDS as GROUP_COLOURS
from edge_grpo.statistics.palette import RIGHT, WRONG

KIND_COLOURS = {kind: GROUP_COLOURS[kind.replace(" ", "_")] for kind in KINDS}
# Points of a curve: of a longer run, each is the mean over a window of iterations.
POINTS = 40
MARGIN = (-0.03, 1.03)  # of shares: a line at 0 or 1 is as wide as any other


def draw_figures(source: Source, findings: Sequence[Finding]) -> dict[str, Figure]:
    """Name of the finding -> its figure, for the findings that have one."""
    drawn = {}
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook", font_scale=0.85), plain_dollars():
        for finding in findings:
            figure = _DRAWERS[finding.name](source, finding) if finding.tables else None
            if figure is not None:
                drawn[finding.name] = figure
    return drawn


def plain_dollars() -> AbstractContextManager[None]:
    """Inside, a `$` in a name is no mathematics; ticks are made when a figure is saved, so that must be inside too."""
    return rc_context({"text.parse_math": False})


def _panels(*titles: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.6 * len(titles), 3.8), layout="constrained")
    axes = [figure.add_subplot(1, len(titles), place + 1, title=title) for place, title in enumerate(titles)]
    for axis in axes:
        axis.title.set_fontsize("medium")
    return figure, axes


def _windows(steps: pd.Series) -> pd.Series:
    """Of each step, the middle of its window: at most POINTS windows of equal width."""
    width = -(-(steps.max() - steps.min() + 1) // POINTS)
    return steps - (steps - steps.min()) % width + (width - 1) / 2


def _forest(axis: Axes, rows: Sequence[Row], label: Callable[[Row], str], column: str, colours: Sequence[str]) -> None:
    """Estimates with their intervals, one below the other."""
    for place, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        cell = row[column]
        assert isinstance(cell, Estimate)
        if cell.low is not None and cell.high is not None:
            axis.plot([cell.low, cell.high], [place, place], color=colour, lw=2)
        axis.plot(cell.value, place, "o", color=colour)
    axis.set_yticks(range(len(rows)), [label(row) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)


def _reflection(source: Source, finding: Finding) -> Figure | None:
    if source.kind == "run":  # one number, and `branches` has its curve
        return None
    rows = finding.tables["repairs"].rows if "repairs" in finding.tables else []
    if not rows:
        return None
    figure, axes = _panels("Wrong responses repaired", "Right responses broken", "Net change of accuracy")
    figure.set_size_inches(13, 1.4 + 0.28 * len(rows))
    colours = [RIGHT if row["reflection"] == "forced" else "#f28e2b" for row in rows]
    for axis, column in zip(axes, ("repaired", "broken", "net change"), strict=True):
        _forest(axis, rows, lambda row: f"{row['reflection']}, {row['over']}", column, colours)
        axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
        axis.set_xlabel("% of them" if column != "net change" else "points")
        axis.set_yticks(axis.get_yticks(), None if axis is axes[0] else [""] * len(rows))
        if column == "net change":
            axis.axvline(0, color="black", lw=1)
        else:
            axis.set_xlim(left=0)
    return figure


def _entropy(source: Source, finding: Finding) -> Figure:
    figure, axes = _panels("Entropy of responses", "Within a question", "AUROC for wrong against right")
    frame = source.frame[source.frame["entropy"].notna()]
    frame = frame.assign(response=np.where(frame["correct"], "right", "wrong"))
    groups = frame.groupby("group")
    both = groups["correct"].transform("nunique") == 2
    frame["centred"] = frame["entropy"] - groups["entropy"].transform("mean")
    _histogram(axes[0], frame, "entropy")
    axes[0].set_xlabel("mean token entropy, nats")
    if both.any():
        _histogram(axes[1], frame[both], "centred")
    axes[1].set_xlabel("entropy minus the mean of its group, nats")
    rows = [row for row in finding.tables["auroc"].rows if row["pairs"]]
    _forest(axes[2], rows, lambda row: str(row["compared"]), "AUROC, over pairs", [RIGHT] * len(rows))
    axes[2].axvline(0.5, color="black", lw=1, ls="--")
    axes[2].set_xlabel("AUROC over pairs (0.5: tells nothing)")
    return figure


def _histogram(axis: Axes, frame: pd.DataFrame, column: str, *, log_scale: bool = False) -> None:
    """Densities of right and wrong responses, each of area 1."""
    sns.histplot(
        frame,
        x=column,
        hue="response",
        hue_order=["right", "wrong"],
        palette={"right": RIGHT, "wrong": WRONG},
        bins=min(40, math.ceil(2 * len(frame) ** (1 / 3))),  # the Rice rule
        stat="density",
        common_norm=False,
        element="step",
        alpha=0.3,
        log_scale=log_scale,
        ax=axis,
    )
    if axis.get_legend() is not None:  # below the curves, where it hides none
        sns.move_legend(axis, "upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, title=None)


def _collapse(source: Source, finding: Finding) -> Figure:
    groups = group_kinds(source)
    if source.kind == "evaluation":
        return _collapse_of_benchmarks(groups)
    figure, axes = _panels("As sampled", "After correction", "What correction did")
    at = _windows(groups["step"])
    for axis, column in zip(axes, ("before", "after"), strict=False):
        shares = pd.crosstab(at, groups[column], normalize="index").reindex(columns=KINDS, fill_value=0)
        there = [kind for kind in KINDS if shares[kind].any()]  # one that no group is of has no area
        colours = [KIND_COLOURS[kind] for kind in there]
        axis.stackplot(shares.index, shares[there].T, labels=there, colors=colours, alpha=0.7)
        axis.set(ylim=(0, 1), ylabel="share of groups")
        axis.margins(x=0)
        axis.grid(visible=False)
    curves = {
        f"{UNIFORM} after": groups["equal_after"],
        f"{UNIFORM} as sampled": groups["equal_before"],
        "revived": groups["equal_before"] & ~groups["equal_after"],
        "created": ~groups["equal_before"] & groups["equal_after"],
    }
    # Lines often lie on one another, so each is narrower than those below it.
    styles = (("#b0b0b0", "-", 7.0), ("black", "--", 3.5), ("#2ca02c", "-", 1.8), (WRONG, ":", 1.8))
    for (label, part), (colour, style, width) in zip(curves.items(), styles, strict=True):
        curve = part.groupby(at).mean()
        marker = "." if len(curve) == 1 else None
        axes[2].plot(curve.index, curve, label=label, color=colour, ls=style, lw=width, marker=marker)
    axes[2].set(ylim=MARGIN, ylabel="share of groups")
    _finish(axes)
    return figure


def _collapse_of_benchmarks(groups: pd.DataFrame) -> Figure:
    figure, (axis,) = _panels("Groups of the evaluation")
    shares = pd.crosstab(groups["benchmark"], groups["before"], normalize="index").reindex(columns=KINDS, fill_value=0)
    shares.plot.barh(stacked=True, color=list(KIND_COLOURS.values()), alpha=0.8, ax=axis, legend=False)
    axis.invert_yaxis()
    axis.grid(visible=False)
    axis.set(xlim=(0, 1), xlabel="share of groups", ylabel="")
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS), frameon=False)
    return figure


def _branches(source: Source, finding: Finding) -> Figure:
    figure, axes = _panels("Right after correction", "Tokens in updates that the policy did not sample")
    frame = source.frame.assign(at=_windows(source.frame["step"]), unsampled=not_sampled(source.frame))
    wrong, in_update = frame[~frame["correct"]], frame[frame["advantage"].notna()]
    taken = [name for name in in_order(frame) if name not in UNCHANGED]
    known = dict.fromkeys(name for name in (*BRANCHES, *taken) if name not in UNCHANGED)
    colours = dict(zip(known, sns.color_palette("colorblind", len(known)), strict=True))
    shares = {}
    tokens = in_update.groupby("at")["tokens_after"].sum()
    for name in taken:
        success = wrong[wrong["branch"] == name].groupby("at")["correct_after"].mean()
        style = "--" if name == "solution" else "-"  # often hides that of `answer` otherwise
        axes[0].plot(success.index, success, label=BRANCHES.get(name, name), color=colours[name], marker=".", ls=style)
        unsampled = in_update[in_update["branch"] == name].groupby("at")["unsampled"].sum()
        shares[name] = unsampled.reindex(tokens.index, fill_value=0) / tokens
    labels = [BRANCHES.get(name, name) for name in taken]
    if len(tokens) and taken:
        axes[1].stackplot(
            tokens.index, list(shares.values()), labels=labels, colors=[colours[n] for n in taken], alpha=0.7
        )
    axes[0].set(ylim=MARGIN, ylabel="share of the branch's rows")
    axes[1].set(ylim=(0, 1), ylabel="share of response tokens")
    _finish(axes)
    return figure


def _multipliers(source: Source, finding: Finding) -> Figure:
    with_multipliers = "multipliers" in finding.tables
    titles = ["Multiplier $1 / \\hat{P}$", "Effective-gradient fraction"]
    figure, axes = _panels(*titles[0 if with_multipliers else 1 :])
    frame = source.frame
    if with_multipliers:
        rows = frame[frame["multiplier"].notna() & (frame["multiplier"] > 0)]
        _histogram(
            axes[0],
            rows.assign(response=np.where(rows["correct_after"], "right", "wrong")),
            "multiplier",
            log_scale=True,
        )
        axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].xaxis.set_major_formatter("{x:g}")
        axes[0].xaxis.set_minor_locator(NullLocator())
        axes[0].axvline(1, color="black", lw=1, ls="--")
        axes[0].title.set_parse_math(True)
        axes[0].set_xlabel("$1 / \\hat{P}$ (right and wrong after correction)", parse_math=True)
    moves, at = frame["advantage"].fillna(0) != 0, _windows(frame["step"])
    over_rows = moves.groupby(at).mean()
    over_tokens = (moves * frame["tokens_after"]).groupby(at).sum() / frame["tokens_after"].groupby(at).sum()
    for label, curve in {"of rows": over_rows, "of response tokens": over_tokens}.items():
        axes[-1].plot(curve.index, curve, label=label, marker=".")
    axes[-1].set(ylim=MARGIN, ylabel="share with a gradient")
    _finish(axes[-1:])
    return figure


def _finish(axes: Sequence[Axes]) -> None:
    """Curves of shares over iterations: labels, and the legend below the curves, where it hides none."""
    for axis in axes:
        axis.set_xlabel("iteration, from 0")
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)


_DRAWERS: Mapping[str, Callable[[Source, Finding], Figure | None]] = {
    "reflection": _reflection,
    "entropy": _entropy,
    "collapse": _collapse,
    "branches": _branches,
    "multipliers": _multipliers,
}
