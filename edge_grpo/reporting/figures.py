"""The figures of a report: seaborn on matplotlib figures, one PNG and one SVG each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from edge_grpo.reporting.canvas import (
    FEW,
    PANEL,
    Drawn,
    Palette,
    common_legend,
    dashes_of,
    palette_of,
    save,
    small_multiples,
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
    shares_of_groups,
    window,
)
from edge_grpo.reporting.difference_figure import draw_differences
from edge_grpo.reporting.evaluations import AVERAGE
from edge_grpo.reporting.numbers import Arms, Numbers
from edge_grpo.reporting.quantities import OF_TRAINING, Quantity, of_sets
from edge_grpo.reporting.scores import HELD_OUT, Member
from edge_grpo.statistics.palette import KINDS as GROUPS

KINDS = {kind.replace("_", " "): colour for kind, colour in GROUPS.items()}


def draw_all(
    members: Sequence[Member], numbers: Numbers, arms: Arms, families: Mapping[str, Sequence[str]], folder: Path
) -> list[Drawn]:
    """Every figure for which the runs have logged something.

    Args:
        families: stage -> arms that differ from the baseline there, see `stages.families`.
    """
    palette = palette_of(list(arms.seeds))
    sets = evaluated_sets(members)
    shown = [name for name in sets if name in (HELD_OUT, AVERAGE)]
    benchmarks = [name for name in sets if name not in shown]
    figures = [
        draw_differences(numbers, arms.baseline, palette, folder),
        *(draw_over_training(quantity, members, palette, folder) for quantity in of_sets(shown)),
        draw_families(families, members, arms.baseline, folder),
        draw_benchmarks(benchmarks, members, palette, folder),
        *(draw_over_training(quantity, members, palette, folder) for quantity in OF_TRAINING),
        draw_collapse(members, palette, folder),
        draw_entropy_by_correctness(members, palette, folder),
    ]
    return [drawn for drawn in figures if drawn is not None]


def draw_over_training(quantity: Quantity, members: Sequence[Member], palette: Palette, folder: Path) -> Drawn | None:
    """A panel an axis; None if no run logged the quantity."""
    panels = {axis: _lines(quantity, members, axis) for axis in AXES}
    panels = {axis: lines for axis, lines in panels.items() if len(lines)}
    if not panels:
        return None
    with style():
        figure = Figure(figsize=(PANEL[0] * len(panels), PANEL[1] + 0.5), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for i, (axis, (name, lines)) in enumerate(zip(axes, panels.items(), strict=True)):
            # Interpolated points are no measurements, and get no markers.
            marker = "o" if quantity.is_evaluated and name == ITERATIONS else None
            _draw_lines(axis, lines, quantity, palette, legend=i == 0, marker=marker)
            axis.set(xlabel=name, ylabel=quantity.unit)
            if name in COUNTS:
                axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            elif name == ITERATIONS:
                axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        common_legend(figure, axes[0])
        save(figure, folder / quantity.name)
    caption = f"{quantity.estimator} {_reading(members, bands=len(palette) <= FEW, smooth=not quantity.is_evaluated)}"
    if _several_seeds(members) and len(panels) > 1:
        caption += " Against responses, tokens and time, seeds are interpolated linearly at common points."
    return Drawn(quantity.name, quantity.title, caption)


def _lines(quantity: Quantity, members: Sequence[Member], axis: str) -> pd.DataFrame:
    """Columns of `curve`, and `line`."""
    frames = [curve(members, of, axis).assign(line=label) for label, of in quantity.lines.items()]
    found = [frame for frame in frames if len(frame)]
    return pd.concat(found, ignore_index=True) if found else frames[0]


def _draw_lines(
    axis: Axes, lines: pd.DataFrame, quantity: Quantity, palette: Palette, *, legend: bool, marker: str | None
) -> None:
    many = len(palette) > FEW
    sns.lineplot(
        lines,
        x="x",
        y="y",
        hue="arm",
        palette=dict(palette),
        hue_order=[arm for arm in palette if arm in set(lines["arm"])],
        # Of many arms colours come again, with other dashes, and bands would hide one another.
        style="line" if len(quantity.lines) > 1 else "arm" if many else None,
        dashes=dashes_of(list(palette)) if many and len(quantity.lines) == 1 else True,
        marker=marker,
        errorbar=None if many else ("pi", 100),
        ax=axis,
        legend="full" if legend else False,
    )
    if quantity.is_share:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _reading(members: Sequence[Member], *, bands: bool, smooth: bool) -> str:
    """Sentences: what was averaged before it was drawn."""
    width = max(window(member.run.iterations) for member in members)  # iterations
    parts = [f"Smoothed: centred mean over {width} iterations."] if smooth and width > 1 else []
    if _several_seeds(members):
        parts.append("Mean over seeds; bands reach from the lowest to the highest." if bands else "Mean over seeds.")
    return " ".join(parts)


def _several_seeds(members: Sequence[Member]) -> bool:
    return len({member.arm for member in members}) < len(members)


def draw_benchmarks(
    benchmarks: Sequence[str], members: Sequence[Member], palette: Palette, folder: Path
) -> Drawn | None:
    """A panel a benchmark, against iterations; None without one."""
    if not benchmarks:
        return None
    with style():
        figure, axes = small_multiples(benchmarks, sharey=False)
        for i, (axis, quantity) in enumerate(zip(axes, of_sets(benchmarks), strict=True)):
            lines = _lines(quantity, members, ITERATIONS)
            _draw_lines(axis, lines, quantity, palette, legend=i == 0, marker="o")
            axis.set(title=benchmarks[i], xlabel=ITERATIONS, ylabel=quantity.unit)
        common_legend(figure, axes[0])
        save(figure, folder / "benchmarks")
    caption = f"{quantity.estimator} {_reading(members, bands=len(palette) <= FEW, smooth=False)}"
    return Drawn("benchmarks", "Benchmarks", caption)


def draw_families(
    families: Mapping[str, Sequence[str]], members: Sequence[Member], baseline: str, folder: Path
) -> Drawn | None:
    """A panel a family of arms, the baseline in each: accuracy against generated tokens; None without two families."""
    (quantity,) = of_sets([HELD_OUT])
    lines = _lines(quantity, members, TOKENS)
    there = {name: [arm for arm in own if arm in set(lines["arm"])] for name, own in families.items()}
    there = {name: own for name, own in there.items() if own}
    if len(there) < 2:
        return None
    with style():
        figure, axes = small_multiples(list(there))
        for axis, (name, own) in zip(axes, there.items(), strict=True):
            palette = {baseline: "black", **palette_of(own)}
            shown = lines[lines["arm"].isin(list(palette))]
            _draw_lines(axis, shown, quantity, palette, legend=True, marker=None)
            axis.set(title=name.replace("_", " "), xlabel=TOKENS, ylabel=quantity.unit)
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.legend(fontsize=6.5, frameon=False, loc="upper left")
        save(figure, folder / "families")
    caption = (
        f"{quantity.estimator} A panel for each stage in which arms differ from {baseline}, which is black. "
        f"{_reading(members, bands=True, smooth=False)} Seeds are interpolated linearly at common points."
    )
    return Drawn("families", "Accuracy against generated tokens, by stage", caption)


def draw_collapse(members: Sequence[Member], palette: Palette, folder: Path) -> Drawn | None:
    """A panel an arm: the groups as sampled, stacked, and those without advantage after correction."""
    metrics = {f"collapse/before/{label.replace(' ', '_')}": label for label in KINDS}
    dead = "without advantage, after correction"
    shares = shares_of_groups(members, {**metrics, "collapse/after/zero_variance": dead})
    if shares.empty or shares[list(KINDS)].isna().all(axis=None):
        return None
    arms = [arm for arm in palette if arm in set(shares["arm"])]
    with style():
        figure, axes = small_multiples(arms)
        for axis, arm in zip(axes, arms, strict=True):
            own = shares[shares["arm"] == arm].set_index("step")
            # Rolling means of 0 may fall below it by rounding, which a stack refuses.
            own[list(KINDS)].clip(lower=0).plot.area(ax=axis, color=KINDS, alpha=0.75, linewidth=0, legend=False)
            own[dead].plot(ax=axis, color="black", linestyle="--", label=dead)
            axis.set(title=arm, xlabel=ITERATIONS, ylabel="share of groups", ylim=(0, 1))
            axis.yaxis.set_major_formatter(PercentFormatter(1.0))
            axis.margins(x=0)
        common_legend(figure, axes[0])
        save(figure, folder / "collapse")
    caption = (
        "Groups as sampled, before correction, stacked: no response right, some, all. Dashed: groups whose rewards are "
        "all equal after correction, which have no advantage and teach nothing. "
        f"{_reading(members, bands=False, smooth=True)}"
    )
    return Drawn("collapse", "Collapse", caption)


def draw_entropy_by_correctness(members: Sequence[Member], palette: Palette, folder: Path) -> Drawn | None:
    """A panel an arm: the entropy of responses that are right, and of those that are wrong."""
    lines = {"right": Curve("train/entropy_correct"), "wrong": Curve("train/entropy_wrong")}
    quantity = Quantity("entropy_by_correctness", "Entropy of right and wrong responses", "", lines, False, "")
    found = _lines(quantity, members, ITERATIONS)
    if found.empty:
        return None
    arms = [arm for arm in palette if arm in set(found["arm"])]
    colours = {"right": KINDS["all right"], "wrong": KINDS["all wrong"]}
    with style():
        figure, axes = small_multiples(arms)
        for i, (axis, arm) in enumerate(zip(axes, arms, strict=True)):
            own = found[found["arm"] == arm]
            options: dict[str, Any] = {"hue_order": list(lines), "errorbar": ("pi", 100), "legend": i == 0}
            sns.lineplot(own, x="x", y="y", hue="line", palette=colours, ax=axis, **options)
            axis.set(title=arm, xlabel=ITERATIONS, ylabel="nats per token", ylim=(0, None))
            axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        common_legend(figure, axes[0])
        save(figure, folder / quantity.name)
    caption = (
        "Mean policy entropy over the sampled tokens of responses that are right, and of those that are wrong, as "
        f"sampled. {_reading(members, bands=True, smooth=True)}"
    )
    return Drawn(quantity.name, quantity.title, caption)
