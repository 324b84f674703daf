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
        scores: of edge-grpo-evaluate, or held-out accuracy if nothing was evaluated.
        differences: of `compared`, to the baseline.
        learning: of training.
        is_evaluated: whether scores are of edge-grpo-evaluate.
    """

    columns: Sequence[Column]
    compared: Sequence[Column]
    problems: Mapping[str, int]
    scores: pd.DataFrame
    differences: pd.DataFrame
    learning: pd.DataFrame
    is_evaluated: bool


def numbers_of(members: Sequence[Member], arms: Arms, bootstrap: Bootstrap) -> Numbers:
    """Aggregate the runs in the tables."""
    of_evaluations, in_training = evaluated(members), accuracy_in_training(members)
    values = of_evaluations if len(of_evaluations) else in_training
    columns = shown_columns(values)
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
        is_evaluated=len(of_evaluations) > 0,
    )


def _problems(members: Sequence[Member]) -> dict[str, int]:
    sizes = {(name, size) for m in members if m.evaluation for name, size in m.evaluation.problems.items()}
    counts = Counter(name for name, _ in sizes)
    return {name: size for name, size in sizes if counts[name] == 1}
