"""Runs -> long frames of what was logged over training, against iterations, responses, tokens and time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
import pandas as pd

from edge_grpo.reporting.evaluations import AVERAGE, SAMPLING, comparable, sampling_of
from edge_grpo.reporting.scores import HELD_OUT, Member

ITERATIONS, ROLLOUTS, MINUTES = "iterations", "responses sampled", "minutes of training"
TOKENS = "tokens generated"
AXES = {ITERATIONS: "iterations", ROLLOUTS: "responses", TOKENS: "tokens", MINUTES: "minutes"}
"""axis -> how the names of files call it"""
COUNTS = {ROLLOUTS: "train/num_rollouts", TOKENS: "train/num_generated_tokens"}
TOTAL = "total"  # of the sets evaluated during training: `AVERAGE` of edge-grpo-evaluate
GRID = 60
# A centred mean over 1/40 of a run: enough to tell arms apart, short against what they do.
SMOOTHED_SHARE = 40


@dataclass(frozen=True)
class Curve:
    """A logged quantity.

    Attributes:
        metric: its column in metrics.csv; of what was evaluated, the name of the set.
        evaluated: it belongs to the policy after `step` updates, not to iteration `step`: see docs/metrics.md.
    """

    metric: str
    evaluated: bool = False


def curve(members: Sequence[Member], of: Curve, axis: str) -> pd.DataFrame:
    """Columns arm, seed, x, y; empty where no run logged it.

    Against iterations, an arm is drawn where all of its seeds have a value. On the other axes the seeds have different
    points, so each seed is interpolated linearly at the same `GRID` places, from where all have begun to where the last
    one ends; a seed that ends before keeps its last value, as its policy does.
    Training metrics are smoothed first. An iteration without a value (of the entropy of right responses, if none was
    right) gets one by interpolation between its neighbours.
    """
    frames = []
    for arm in dict.fromkeys(member.arm for member in members):
        lines = {m.seed: _line(m, of, axis) for m in members if m.arm == arm}
        lines = {seed: line for seed, line in lines.items() if len(line)}
        if len(lines) > 1:
            lines = _on_grid(lines) if axis != ITERATIONS else _where_all_are(lines)
        frames += [
            pd.DataFrame({"arm": arm, "seed": seed, "x": line.index, "y": line.to_numpy()})
            for seed, line in lines.items()
        ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["arm", "seed", "x", "y"])


def _line(member: Member, of: Curve, axis: str) -> pd.Series:
    """x -> y of one run."""
    values = (
        evaluated_at(member).get(of.metric, pd.Series(dtype=float))
        if of.evaluated
        else smoothed(member.run.column(of.metric).reindex(range(member.run.iterations)))
    )
    places = _places(member, axis, after=of.evaluated).reindex(values.index)
    line = pd.Series(values.to_numpy(), index=places.to_numpy())
    every = max(1, window(len(values)) // 2)  # what is smoothed needs no point an iteration
    return line[line.index.notna()].iloc[:: 1 if of.evaluated else every].dropna()


def smoothed(values: pd.Series) -> pd.Series:
    """A centred mean over `window(len(values))` iterations, gaps filled between their ends."""
    return values.rolling(window(len(values)), center=True, min_periods=1).mean().interpolate(limit_area="inside")


def window(iterations: int) -> int:
    """An odd number, so that the mean is centred.

    >>> window(6), window(200)
    (1, 5)
    """
    return 2 * (iterations // SMOOTHED_SHARE // 2) + 1


def _places(member: Member, axis: str, *, after: bool) -> pd.Series:
    """step -> place on the axis: at the end of iteration `step`, or where `step` iterations had been done.

    Time excludes evaluation: how often one evaluates is no cost of an arm.
    """
    run = member.run
    if axis == ITERATIONS:
        steps = range(run.iterations + 1)
        return pd.Series(steps, index=steps, dtype=float)
    done = run.column(COUNTS[axis]) if axis in COUNTS else run.column("timing_s/total").cumsum() / 60
    if not after or done.empty:
        return done
    return pd.concat([pd.Series({0: 0.0}), done.set_axis(done.index + 1)])


def _on_grid(lines: Mapping[int, pd.Series]) -> dict[int, pd.Series]:
    first, last = max(line.index[0] for line in lines.values()), max(line.index[-1] for line in lines.values())
    if first >= last:
        return {}
    grid = np.linspace(first, last, GRID)
    return {seed: pd.Series(np.interp(grid, line.index, line), index=grid) for seed, line in lines.items()}


def _where_all_are(lines: Mapping[int, pd.Series]) -> dict[int, pd.Series]:
    common = set.intersection(*(set(line.index) for line in lines.values()))
    return {seed: line[line.index.isin(common)] for seed, line in lines.items()}


def over_seeds(lines: pd.DataFrame) -> pd.DataFrame:
    """`curve` -> columns arm, x, mean, low, high, seeds: the lowest and the highest seed at each place."""
    groups = lines.groupby(["arm", "x"], sort=False)["y"]
    return groups.agg(mean="mean", low="min", high="max", seeds="count").reset_index()


def evaluated_at(member: Member) -> dict[str, pd.Series]:
    """set -> (step -> avg@n): what was evaluated during training, and afterwards of its checkpoints.

    Points of unequal sampling make no curve. Where training evaluated a set with other sampling than the later
    evaluations, the later ones count if there are several, else those of training.
    """
    run = member.run
    logged = {name.split("/")[1]: run.column(name) for name in run.logged if fnmatch(name, "eval/*/avg@*")}
    found = {AVERAGE if name == TOTAL else name: points for name, points in logged.items()}
    if member.evaluation is None:
        return found
    shown = member.evaluation
    same = comparable(run.evaluations, shown)
    joins = shown.settings == sampling_of({key: run.settings.get(f"evaluation.{key}") for key in SAMPLING})
    for benchmark in shown.problems:
        scores = {e.iteration: e.scores.get((benchmark, f"avg@{shown.num_samples}")) for e in same}
        points = {step: score.value for step, score in scores.items() if score is not None}
        if joins:
            points = {**found.get(benchmark, pd.Series(dtype=float)), **points}
        if len(points) > 1 or benchmark not in found:
            found[benchmark] = pd.Series(points).sort_index()
    return found


def evaluated_sets(members: Sequence[Member]) -> list[str]:
    """Sets with a score at two or more points of some run: held-out problems first, then Avg and the benchmarks."""
    counts: dict[str, int] = {}
    for member in members:
        for name, points in evaluated_at(member).items():
            counts[name] = max(counts.get(name, 0), len(points))
    found = [name for name, count in counts.items() if count > 1]
    return sorted(found, key=lambda name: (name != HELD_OUT, name != AVERAGE))


def shares_of_groups(members: Sequence[Member], metrics: Mapping[str, str]) -> pd.DataFrame:
    """Mean over seeds of an arm: columns arm, step and one a label of `metrics` (metric -> label)."""
    frames = []
    for member in members:
        columns = {label: smoothed(member.run.column(metric)) for metric, label in metrics.items()}
        frame = pd.DataFrame(columns).rename_axis("step").reset_index()
        frames.append(frame.assign(arm=member.arm))
    return pd.concat(frames).groupby(["arm", "step"], sort=False).mean().reset_index() if frames else pd.DataFrame()
