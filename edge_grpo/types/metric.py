"""What a logged number is: read by strategies that define their own, by loggers and by docs, so it knows no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Reduction = Literal["mean", "p05", "p50", "p95", "min", "max"]
"""How a strategy's values become one number. `mean` is over rows, and over tokens where the values are of tokens; the
quantiles and ends are over rows, of each row's mean."""


@dataclass(frozen=True)
class Metric:
    """Definition of one logged name; `*` in a name stands for one variable part.

    Args:
        unit: of the values.
        estimator: what is averaged or counted over what.
        summary: what W&B keeps of a run; all but "last" beside the last value.
        ranks: how the values of several ranks that have one become one.
    """

    unit: str
    estimator: str
    summary: Literal["last", "max", "min", "mean"] = "last"
    ranks: Literal["mean", "sum", "min", "max"] = "mean"


@dataclass(frozen=True)
class StrategyMetric(Metric):
    """Definition of a number that a strategy reports, in the strategy's attribute `metrics`: logged name -> this.

    Args:
        of: the name under which the strategy returns the values; "" for the logged name itself. So one tensor can be
            logged in several ways.
        reduction: see `Reduction`. Update epochs are averaged afterwards.
    """

    of: str = ""
    reduction: Reduction = "mean"


StrategyMetrics = Mapping[str, StrategyMetric]
