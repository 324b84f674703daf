"""What strategies report of rows and tokens, kept until an iteration's end and made one number as they declare."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics
from edge_grpo.types.returned import check_tensor, who


def declared_by(strategy: Any) -> StrategyMetrics:
    """The strategy's `metrics`; none where it has no such attribute."""
    return getattr(strategy, "metrics", {})


def reported_by(strategy: Any) -> list[str]:
    """The names under which it returns values: those of its metrics, and its `records`, which are not logged."""
    of_metrics = [metric.of or name for name, metric in declared_by(strategy).items()]
    return list(dict.fromkeys([*getattr(strategy, "records", ()), *of_metrics]))


def declared(strategies: Sequence[Any], taken: Callable[[str], object]) -> dict[str, StrategyMetric]:
    """Logged name -> definition, of all strategies.

    Args:
        strategies: each with or without an attribute `metrics`.
        taken: name -> something, where the project itself logs under that name.

    Raises:
        UserError: a name that is taken, or that two strategies define.
    """
    found: dict[str, StrategyMetric] = {}
    for strategy in strategies:
        for name, metric in declared_by(strategy).items():
            if taken(name) is not None or name in found:
                raise UserError(
                    f"{type(strategy).__name__}.metrics defines {name}, which is defined already: choose another name"
                )
            found[name] = metric
    return found


_QUANTILES = {"min": 0.0, "p05": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}


def row_means(values: Tensor, mask: Tensor) -> Tensor:
    """[N, T] values of tokens -> [N] means over the tokens of `mask`; 0 for a row without any."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


class Reports:
    """The values of one strategy over the rows of a batch, an update epoch after the other.

    Args:
        strategy: declares its metrics and records; every value that it returns must belong to one of them.
        num_rows: N.
    """

    def __init__(self, strategy: Any, num_rows: int) -> None:
        self.name, self.who, self.metrics = type(strategy).__name__, who("strategy", strategy), declared_by(strategy)
        self.num_rows = num_rows
        self._known = reported_by(strategy)
        # name -> epoch -> [N] sums over the row's tokens, and the tokens that they are over; NaN and 0 where nobody
        # reported. A micro-batch may be computed again, where a gradient that is not finite is looked for.
        self._sums: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}

    def add(self, values: Mapping[str, Tensor], rows: Tensor, mask: Tensor, epoch: int = 0) -> None:
        """Keep what the strategy said of some rows.

        Args:
            values: name -> [B] of rows, or [B, T] of tokens.
            rows: [B], their indices.
            mask: [B, T] bool, the tokens that count.
            epoch: of the update.

        Raises:
            UserError: a name that the strategy does not declare, or a value of another shape.
        """
        for name, value in values.items():
            if name not in self._known:
                raise UserError(
                    f"{self.name} returns {name}, which it does not declare: give it `metrics = "
                    f'{{"{name}": StrategyMetric(unit, estimator)}}` (edge_grpo/types/metric.py)'
                )
            shapes = {"[B]": (len(rows),), "[B, T]": tuple(mask.shape)}
            check_tensor(self.who, f"{name}, a value of each row or token,", value, shapes, "any")
            # On the device in float32 at least, which not every device goes beyond; a row's counts are exact in it.
            value = value.detach().to(torch.promote_types(value.dtype, torch.float32))
            of_tokens = value.ndim == 2
            sums = torch.where(mask, value, 0.0).sum(1) if of_tokens else value
            counts = mask.sum(1).to(sums.dtype) if of_tokens else torch.ones_like(sums)
            epochs = self._sums.setdefault(name, {})
            if epoch not in epochs:
                empty = sums.new_full((self.num_rows,), torch.nan)
                epochs[epoch] = empty, torch.zeros_like(empty)
            for kept, new in zip(epochs[epoch], (sums, counts), strict=True):
                kept[rows] = new

    def rows(self) -> dict[str, Tensor]:
        """Name -> [N] mean of each row in the first epoch, of every declared name; NaN where there is none."""
        nothing = torch.full((self.num_rows,), torch.nan)
        first = {name: epochs[min(epochs)] for name, epochs in self._sums.items()}
        means = {name: (sums / counts).cpu() for name, (sums, counts) in first.items()}
        return {name: means.get(name, nothing) for name in self._known}

    def reduced(self) -> dict[str, float]:
        """Logged name -> number; a name of which nothing was reported is absent."""
        found = {}
        for name, metric in self.metrics.items():
            epochs = [_reduced(*kept, metric) for kept in self._sums.get(metric.of or name, {}).values()]
            numbers = [number for number in epochs if number is not None]
            if numbers:
                found[name] = sum(numbers) / len(numbers)
        return found


def _reduced(sums: Tensor, counts: Tensor, metric: StrategyMetric) -> float | None:
    """One epoch's number; None where no row reported."""
    sums, counts = sums.cpu().double(), counts.cpu().double()
    there = ~sums.isnan() & (counts > 0)
    if not there.any():
        return None
    sums, counts = sums[there], counts[there]
    if metric.reduction == "mean":
        return float(sums.sum() / counts.sum())
    return float(torch.quantile(sums / counts, _QUANTILES[metric.reduction]))
