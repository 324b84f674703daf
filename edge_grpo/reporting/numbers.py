"""All numbers of a report, aggregated over seeds, before they become tables and figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from edge_grpo.reporting.scores import (
    BEFORE,
    Member,
    accuracy_in_training,
    aggregated,
    differences,
    evaluated,
    has_all_arms,
    learning,
    shown_columns,
)
from edge_grpo.statistics.bootstrap import Bootstrap

Column = tuple[str, str]
"""benchmark and metric"""


@dataclass(frozen=True)
class Arms:
    """The arms in the order of the tables, with the number of seeds of each.

    Attributes:
        baseline: one of them; "" if there are none.
    """

    seeds: Mapping[str, int]
    baseline: str


@dataclass(frozen=True)
class Numbers:
    """What a report says of its runs; the frames have the columns of `aggregated`.

    Attributes:
        columns: of the main table.
        compared: columns in which arms are compared with the baseline.
        problems: benchmark -> number of problems, where all evaluations agree on it.
        scores: of edge-grpo-evaluate where there is a benchmark on which every arm was evaluated (or no held-out
            accuracy), else held-out accuracy.
        differences: of `compared`, to the baseline.
        learning: of training.
        benchmarks: of edge-grpo-evaluate; empty if nothing was evaluated.
        beside: columns of `benchmarks` where scores are held-out accuracy although something was evaluated.
        unevaluated: arm and seed of the runs of which no evaluation is shown.
    """

    columns: Sequence[Column]
    compared: Sequence[Column]
    problems: Mapping[str, int]
    scores: pd.DataFrame
    differences: pd.DataFrame
    learning: pd.DataFrame
    benchmarks: pd.DataFrame
    beside: Sequence[Column]
    unevaluated: Sequence[str]


def numbers_of(members: Sequence[Member], arms: Arms, bootstrap: Bootstrap) -> Numbers:
    """Aggregate the runs in the tables."""
    of_evaluations, in_training = evaluated(members), accuracy_in_training(members)
    of_benchmarks = shown_columns(of_evaluations, len(arms.seeds))
    is_complete = any(has_all_arms(of_evaluations, column, len(arms.seeds)) for column in of_benchmarks[:1])
    is_main = is_complete or in_training.empty
    values = of_evaluations if is_main else in_training
    columns = of_benchmarks if is_main else shown_columns(in_training, len(arms.seeds))
    compared = [column for column in columns if column[1] != BEFORE]
    wanted = (
        [column in compared for column in zip(values["benchmark"], values["metric"], strict=True)] if columns else []
    )
    frames = [frame for frame in (in_training, learning(members)) if len(frame)]
    return Numbers(
        columns=columns,
        compared=compared,
        problems=_problems(members),
        scores=aggregated(values, bootstrap),
        differences=differences(values[wanted] if columns else values, arms.baseline, bootstrap),
        learning=aggregated(pd.concat(frames, ignore_index=True) if frames else in_training, bootstrap),
        benchmarks=aggregated(of_evaluations, bootstrap),
        beside=[] if is_main else of_benchmarks,
        unevaluated=[f"{m.arm}, seed {m.seed}" for m in members if m.evaluation is None],
    )


def _problems(members: Sequence[Member]) -> dict[str, int]:
    sizes = {(name, size) for m in members if m.evaluation for name, size in m.evaluation.problems.items()}
    counts = Counter(name for name, _ in sizes)
    return {name: size for name, size in sizes if counts[name] == 1}
