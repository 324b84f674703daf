"""The figures of a report: a file a panel, PNG and PDF, and a chart a figure for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from edge_grpo.reporting import charts
from edge_grpo.reporting.canvas import (
    FEW,
    Drawn,
    Looks,
    file_names,
    legend_below,
    line_style,
    name_lines,
    panel,
    save,
    style,
)
from edge_grpo.reporting.curves import (
    AXES,
    COUNTS,
    ITERATIONS,
    TOKENS,
    Curve,
    curve,
    evaluated_sets,
    over_seeds,
    shares_of_groups,
    window,
)
from edge_grpo.reporting.difference_figure import draw_differences
from edge_grpo.reporting.evaluations import AVERAGE
from edge_grpo.reporting.layout import Layout
from edge_grpo.reporting.numbers import Arms, Numbers
from edge_grpo.reporting.quantities import OF_TRAINING, Quantity, of_sets
from edge_grpo.reporting.scores import HELD_OUT, Member
from edge_grpo.statistics.palette import KINDS as GROUPS
from edge_grpo.statistics.palette import Look

KINDS = {kind.replace("_", " "): colour for kind, colour in GROUPS.items()}
DEAD = "without advantage"
BY_CORRECTNESS = {"right": Look(KINDS["all right"], ()), "wrong": Look(KINDS["all wrong"], (4, 1.6))}


@dataclass(frozen=True)
class Canvas:
    """What every figure is drawn with.

    Attributes:
        looks: arm -> look, in the order of the tables.
        folder: of the files.
    """

    members: Sequence[Member]
    looks: Looks
    layout: Layout
    folder: Path

    @property
    def has_bands(self) -> bool:
        """Of many arms, bands would hide one another."""
        return len(self.looks) <= FEW

    @property
    def several_seeds(self) -> bool:
        return len({member.arm for member in self.members}) < len(self.members)


def draw_all(canvas: Canvas, numbers: Numbers, arms: Arms, families: Mapping[str, Sequence[str]]) -> list[Drawn]:
    """Every figure for which the runs have logged something.

    Args:
        families: stage -> arms that differ from the baseline there, see `stages.families`.
    """
    sets = evaluated_sets(canvas.members)
    with style():
        figures = [
            draw_differences(numbers, arms.baseline, canvas.looks, canvas.layout, canvas.folder),
            *(draw_over_training(quantity, canvas) for quantity in of_sets(sets)),
            draw_families(families, arms.baseline, canvas),
            *(draw_over_training(quantity, canvas) for quantity in OF_TRAINING),
            draw_collapse(canvas),
            draw_entropy_by_correctness(canvas),
        ]
    return [drawn for drawn in figures if drawn is not None]


def draw_over_training(quantity: Quantity, canvas: Canvas) -> Drawn | None:
    """A panel an axis; None if no run logged the quantity. Of single benchmarks against iterations only."""
    is_benchmark = quantity.is_evaluated and not {HELD_OUT, AVERAGE} & {of.metric for of in quantity.lines.values()}
    panels = {}
    for label, of in quantity.lines.items():
        for axis in [ITERATIONS] if is_benchmark else AXES:
            lines = over_seeds(curve(canvas.members, of, axis))
            if len(lines):
                panels[label, axis] = lines
    if not panels:
        return None
    names = file_names(quantity.name, [f"{label} {AXES[axis]}" for label, axis in panels])
    for name, ((label, axis), lines) in zip(names.values(), panels.items(), strict=True):
        # Interpolated points are no measurements, and get no markers; of many arms these would hide the dashes.
        marker = "o" if quantity.is_evaluated and axis == ITERATIONS and canvas.has_bands else None
        unit = f"{quantity.unit}, {label}" if label else quantity.unit
        _draw_panel(lines, canvas.looks, name, canvas, axis=axis, unit=unit, marker=marker, is_share=quantity.is_share)
    caption = f"{quantity.estimator} {_reading(canvas, smooth=not quantity.is_evaluated)}"
    if canvas.several_seeds and len({axis for _, axis in panels}) > 1:
        caption += (
            " Against responses, tokens and time, seeds are interpolated linearly at common points, and one that ends "
            "before the others keeps its last value."
        )
    chart = charts.over_training(panels, canvas.looks, quantity.unit, is_share=quantity.is_share)
    return Drawn(quantity.name, quantity.title, caption.strip(), list(names.values()), chart)


def _draw_panel(
    lines: pd.DataFrame,
    looks: Looks,
    name: str,
    canvas: Canvas,
    *,
    axis: str,
    unit: str,
    marker: str | None,
    is_share: bool,
) -> None:
    figure, axes = panel(canvas.layout)
    _draw_lines(axes, lines, looks, bands=canvas.has_bands, marker=marker)
    axes.set(xlabel=axis, ylabel=unit)
    _ticks(axes, axis, is_share=is_share)
    name_lines(figure, axes, looks)
    save(figure, canvas.folder / name)


def _draw_lines(axes: Axes, lines: pd.DataFrame, looks: Looks, *, bands: bool, marker: str | None) -> None:
    """Columns of `over_seeds`; an arm without a look is not drawn."""
    for arm, look in looks.items():
        own = lines[lines["arm"] == arm]
        if own["mean"].notna().any():
            single = own["mean"].notna().sum() == 1  # no line is drawn through one point
            shape = "o" if single else marker
            axes.plot(own["x"], own["mean"], label=arm, color=look.colour, linestyle=line_style(look), marker=shape)
            if bands and (own["low"] < own["high"]).any():
                axes.fill_between(own["x"], own["low"], own["high"], color=look.colour, alpha=0.15, linewidth=0)


def _ticks(axes: Axes, axis: str, *, is_share: bool) -> None:
    if axis in COUNTS:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    elif axis == ITERATIONS:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if is_share:
        low, high = axes.get_ylim()
        # No share is below 0 or above 1: beyond, the axis has no more room than a line needs.
        low, high = -0.04 * high if low < 0 else low, 1 + 0.04 * (1 - low) if high > 1 else high
        axes.set_ylim(low, high)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.05 else None))


def _reading(canvas: Canvas, *, smooth: bool, bands: bool = True) -> str:
    """Sentences: what was averaged before it was drawn."""
    width = max(window(member.run.iterations) for member in canvas.members)  # iterations
    parts = [f"Smoothed: centred mean over {width} iterations."] if smooth and width > 1 else []
    if canvas.several_seeds:
        has_bands = bands and canvas.has_bands
        parts.append(
            "Mean over seeds; bands reach from the lowest to the highest." if has_bands else "Mean over seeds."
        )
    return " ".join(parts)


def draw_families(families: Mapping[str, Sequence[str]], baseline: str, canvas: Canvas) -> Drawn | None:
    """A panel a family of arms, the baseline in each: accuracy against generated tokens; None without two families."""
    (quantity,) = of_sets([HELD_OUT])
    lines = over_seeds(curve(canvas.members, quantity.lines[""], TOKENS))
    there = {name: [arm for arm in own if arm in set(lines["arm"])] for name, own in families.items()}
    there = {name.replace("_", " "): own for name, own in there.items() if own}
    if len(there) < 2:
        return None
    names = file_names("families", list(there))
    for family, own in there.items():
        looks = {arm: look for arm, look in canvas.looks.items() if arm in (baseline, *own)}
        figure, axes = panel(canvas.layout)
        _draw_lines(axes, lines, looks, bands=len(looks) <= FEW, marker=None)
        axes.set(xlabel=TOKENS, ylabel=quantity.unit, title=family)
        _ticks(axes, TOKENS, is_share=True)
        name_lines(figure, axes, looks)
        save(figure, canvas.folder / names[family])
    caption = (
        f"{quantity.estimator} A panel for each stage in which arms differ from {baseline}, which is in all of them. "
        f"{_reading(canvas, smooth=False)} Seeds are interpolated linearly at common points."
    )
    members = {name: [baseline, *own] for name, own in there.items()}
    chart = charts.families(lines, members, canvas.looks, quantity.unit)
    title = "Accuracy against generated tokens, by stage"
    return Drawn("families", title, caption, list(names.values()), chart)


def draw_collapse(canvas: Canvas) -> Drawn | None:
    """A panel an arm: the groups as sampled, stacked, and those without advantage in the end."""
    metrics = {f"collapse/before/{label.replace(' ', '_')}": label for label in KINDS}
    shares = shares_of_groups(canvas.members, {**metrics, "collapse/no_advantage": DEAD})
    if shares.empty or shares[list(KINDS)].isna().all(axis=None):
        return None
    shares = shares[shares[list(KINDS)].notna().any(axis=1)]
    arms = [arm for arm in canvas.looks if arm in set(shares["arm"])]
    names = file_names("collapse", arms)
    for arm in arms:
        own = shares[shares["arm"] == arm].set_index("step")
        figure, axes = panel(canvas.layout)
        # Rolling means of 0 may fall below it by rounding, which a stack refuses.
        parts = own[list(KINDS)].clip(lower=0).fillna(0)
        there = [kind for kind in KINDS if parts[kind].any()]  # one that no group is of has no area
        colours = [KINDS[kind] for kind in there]
        axes.stackplot(own.index, parts[there].T, labels=there, colors=colours, alpha=0.75, linewidth=0)
        if own[DEAD].notna().any():
            axes.plot(own.index, own[DEAD], color="black", linestyle="--", label=DEAD)
        axes.set(title=arm, xlabel=ITERATIONS, ylabel="share of groups", ylim=(-0.03, 1.03))  # a line at 1 is seen
        axes.margins(x=0)
        _ticks(axes, ITERATIONS, is_share=True)
        handles, labels = axes.get_legend_handles_labels()
        legend_below(figure, dict(zip(labels, handles, strict=True)))
        save(figure, canvas.folder / names[arm])
    caption = (
        "Groups as sampled, before correction, stacked: no response right, some, all. Dashed: groups that have no "
        "advantage after correction, filter and advantage, and teach nothing. "
        f"{_reading(canvas, bands=False, smooth=True)}"
    )
    chart = charts.collapse(shares, arms, KINDS, DEAD)
    return Drawn("collapse", "Collapse", caption.strip(), list(names.values()), chart)


def draw_entropy_by_correctness(canvas: Canvas) -> Drawn | None:
    """A panel an arm: the entropy of responses that are right, and of those that are wrong."""
    metrics = {"right": "train/entropy_correct", "wrong": "train/entropy_wrong"}
    frames = {label: over_seeds(curve(canvas.members, Curve(name), ITERATIONS)) for label, name in metrics.items()}
    there = {arm for frame in frames.values() for arm in frame["arm"]}
    arms = [arm for arm in canvas.looks if arm in there]
    if not arms:
        return None
    names = file_names("entropy_by_correctness", arms)
    for arm in arms:
        # The lines of the panel are what is right and wrong, of one arm; a frame without rows has no numbers' type.
        own = {label: frame[frame["arm"] == arm] for label, frame in frames.items()}
        lines = pd.concat([frame.assign(arm=label) for label, frame in own.items() if len(frame)])
        figure, axes = panel(canvas.layout)
        _draw_lines(axes, lines, BY_CORRECTNESS, bands=True, marker=None)
        axes.set(title=arm, xlabel=ITERATIONS, ylabel="entropy, nats per token")
        axes.set_ylim(bottom=0)
        _ticks(axes, ITERATIONS, is_share=False)
        name_lines(figure, axes, BY_CORRECTNESS)
        save(figure, canvas.folder / names[arm])
    caption = (
        "Mean policy entropy over the sampled tokens of responses that are right, and of those that are wrong, as "
        f"sampled. {_reading(canvas, smooth=True)}"
    )
    panels = {(label, ITERATIONS): frame for label, frame in frames.items() if len(frame)}
    chart = charts.over_training(panels, canvas.looks, "entropy, nats per token", is_share=False)
    title = "Entropy of right and wrong responses"
    return Drawn("entropy_by_correctness", title, caption.strip(), list(names.values()), chart)
