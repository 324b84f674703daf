"""Draw the pictures of docs/concepts.md from two runs, one without and one with a cure.

python docs/draw_concepts.py multirun/first/experiment=vanilla,seed=0 multirun/first/experiment=edge_grpo,seed=0
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from edge_grpo.analysis.source import load_source
from edge_grpo.statistics.palette import KINDS, RIGHT, WRONG

OUT = Path(__file__).parent / "images" / "concepts"
VERDICTS = {True: RIGHT, False: WRONG}
BRANCHES = ("reflect", "answer", "solution")


def main(vanilla: str, cured: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    sns.set_theme(style="whitegrid", font_scale=0.9)
    before, after = (load_source(run, None).frame for run in (vanilla, cured))
    save("collapsed_group", two_groups(before))
    save("entropy_driven", entropy_driven(after))
    save("branches", branches(after))
    save("collapse", collapse({"vanilla": vanilla, "edge_grpo": cured}))


def save(name: str, figure: Figure) -> None:
    figure.savefig(OUT / f"{name}.png", dpi=110, bbox_inches="tight")


def group_of(frame: pd.DataFrame, wanted: Callable[[pd.DataFrame], bool]) -> pd.DataFrame:
    """The first group of the run that is what is wanted."""
    return next(group for _, group in frame.groupby("group") if wanted(group))


def bars(axis: Axes, group: pd.DataFrame, values: pd.Series, correct: pd.Series) -> None:
    """A bar a response, its colour by whether it is right; a value of 0 is a mark on the line."""
    at = np.arange(1, len(group) + 1)
    axis.bar(at, values, color=[VERDICTS[bool(right)] for right in correct], width=0.7)
    axis.plot(at[values == 0], [0] * int((values == 0).sum()), "x", color="0.3")
    axis.axhline(0, color="0.3", lw=0.8)
    axis.set_xticks(at)
    axis.grid(axis="x", visible=False)


def two_groups(frame: pd.DataFrame) -> Figure:
    """Rewards and advantages of a group that teaches and of one that has collapsed."""
    alive = group_of(frame, lambda g: bool(g["correct"].sum() == 2 and g["reward"].nunique() == 2))
    dead = group_of(
        frame[frame["step"] >= alive["step"].iloc[0]],
        lambda g: bool(not g["correct"].any() and g["reward"].nunique() == 1),
    )
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, (title, group) in enumerate({"a group that teaches": alive, "a collapsed group": dead}.items()):
        bars(axes[0, column], group, group["reward"], group["correct"])
        bars(axes[1, column], group, group["advantage"].fillna(0.0), group["correct"])
        axes[0, column].set_title(f"{title} (iteration {group['step'].iloc[0]})")
        axes[1, column].set_xlabel("response")
    axes[0, 0].set_ylabel("reward")
    axes[1, 0].set_ylabel("advantage")
    legend(figure, {"right": RIGHT, "wrong": WRONG})
    return figure


def entropy_driven(frame: pd.DataFrame) -> Figure:
    """One group's entropies, and its advantages before and after the division by them."""
    group = group_of(
        frame[frame["step"] >= 3],
        lambda g: bool(
            3 <= g["correct_after"].sum() <= 5 and g["multiplier"].notna().all() and g["clamped"].sum() == 0
        ),
    )
    base = group["advantage"] / group["multiplier"]
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = {
        "mean entropy relative to the group's": 1 / group["multiplier"],
        "advantage before": base,
        "advantage after": group["advantage"],
    }
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        bars(axis, group, values, group["correct_after"])
        axis.set(title=title, xlabel="response")
    axes[1].sharey(axes[2])
    legend(figure, {"right after correction": RIGHT, "wrong after correction": WRONG})
    return figure


def branches(frame: pd.DataFrame) -> Figure:
    """What became of the wrong responses, by the branch that they took."""
    wrong = frame[~frame["correct"] & frame["branch"].isin(BRANCHES)]
    counts = wrong.groupby(["branch", "correct_after"]).size().unstack(fill_value=0).loc[list(BRANCHES)]
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axis = figure.subplots()
    axis.barh(counts.index, counts[True], color=RIGHT, label="right afterwards")
    axis.barh(counts.index, counts[False], left=counts[True], color=WRONG, label="still wrong")
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="wrong responses of the run", title="Guided error correction by branch")
    axis.legend(frameon=False, loc="lower right")
    return figure


def collapse(runs: dict[str, str]) -> Figure:
    """Kinds of groups as sampled, and the share without an advantage after correction, a panel a run."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (title, run) in zip(axes, runs.items(), strict=True):
        data = pd.read_csv(Path(run) / "metrics.csv").set_index("step")
        shares = data[[f"collapse/before/{kind}" for kind in KINDS]].dropna()
        axis.stackplot(shares.index, shares.T, colors=list(KINDS.values()), alpha=0.6)
        dead = data["collapse/after/zero_variance"].dropna()
        axis.plot(dead.index, dead, color="black", ls="--")
        axis.set(title=title, xlabel="iteration", ylim=(0, 1), xlim=(0, shares.index[-1]))
    axes[0].set_ylabel("share of groups")
    labels = {kind.replace("_", " "): colour for kind, colour in KINDS.items()}
    legend(figure, labels, dashed="without an advantage, after correction")
    return figure


def legend(figure: Figure, colours: dict[str, str], dashed: str | None = None) -> None:

    handles: list[Patch | Line2D] = [Patch(color=colour, label=label) for label, colour in colours.items()]
    if dashed:
        handles.append(Line2D([], [], color="black", ls="--", label=dashed))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
