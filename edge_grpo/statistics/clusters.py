"""Intervals by resampling whole questions: the responses to one question depend on each other."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_grpo.errors import UserError
from edge_grpo.statistics.estimators import Estimate, Floats

Statistic = Callable[[Floats], Floats]
# Weights that are held as floats at once: 4 million are 32 MB.
CHUNK = 4_000_000


@dataclass(frozen=True)
class ClusterBootstrap:
    """Percentile interval from drawing the clusters again, with replacement (Efron and Tibshirani 1993, chapter 13).

    Assumes that clusters are independent and that there are more than a few: with 10 it is too narrow. Degenerate
    cases, without an interval: a single cluster, and a statistic that is the same in every draw (0 of 30 repaired).

    Args:
        confidence: of the interval, in (0, 1).
        resamples: draws, at least 1.
        seed: of the draws. All statistics over the same number of clusters see the same draws.

    Raises:
        UserError: a value out of range.

    >>> bootstrap = ClusterBootstrap(confidence=0.95, resamples=500, seed=0)
    >>> bootstrap.ratio([1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1])  # means 1/2 and 1: 1/2, 3/4 or 1 in a draw
    Estimate(value=0.75, low=0.5, high=1.0)
    """

    confidence: float
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise UserError(f"bootstrap.confidence={self.confidence} must lie between 0 and 1")
        if self.resamples < 1 or self.seed < 0:
            raise UserError(
                f"bootstrap.resamples={self.resamples} must be at least 1 and bootstrap.seed={self.seed} at least 0"
            )

    def ratio(self, numerator: ArrayLike, denominator: ArrayLike, clusters: NDArray[np.intp]) -> Estimate:
        """sum(numerator) / sum(denominator).

        Args:
            numerator, denominator: [N] numbers or truths; a row that does not count is 0 in both.
            clusters: [N] number of each row's cluster, from 0.
        """
        tops, bottoms = cluster_sums(numerator, clusters), cluster_sums(denominator, clusters)
        return self.estimate(lambda weights: divide(weights @ tops, weights @ bottoms), len(tops))

    def estimate(self, statistic: Statistic, num_clusters: int, width: int = 0) -> Estimate:
        """Any statistic of weighted clusters.

        Args:
            statistic: [R, C] times that each cluster was drawn -> [R] values, NaN where it is not defined.
            num_clusters: C.
            width: numbers that the statistic holds a draw, if more than C; bounds the memory.
        """
        value = float(statistic(np.ones((1, num_clusters)))[0])
        nothing = Estimate(value, float("nan"), float("nan"))
        if num_clusters < 2 or np.isnan(value):
            return nothing
        draws = _draws(num_clusters, self.resamples, self.seed)
        step = max(1, CHUNK // max(num_clusters, width))
        values = np.concatenate(
            [statistic(draws[start : start + step].astype(np.float64)) for start in range(0, len(draws), step)]
        )
        tail = (1 - self.confidence) / 2
        low, high = np.nanquantile(values, [tail, 1 - tail])
        # Equal but for rounding: one question alone has it, or every question the same.
        constant = np.nanmax(values) - np.nanmin(values) <= 1e-9 * max(1.0, abs(value))
        return nothing if constant else Estimate(value, float(low), float(high))


def cluster_sums(values: ArrayLike, clusters: NDArray[np.intp]) -> Floats:
    """[N] values -> [C] sums over clusters."""
    return np.bincount(clusters, weights=np.asarray(values, dtype=np.float64)).astype(np.float64, copy=False)


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise; NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)


@functools.lru_cache(maxsize=1)
def _draws(num_clusters: int, resamples: int, seed: int) -> NDArray[np.uint8]:
    """[R, C] times that each cluster is drawn; kept, for every statistic of a source asks for the same."""
    generator = np.random.default_rng(seed)
    rows = (generator.integers(num_clusters, size=num_clusters) for _ in range(resamples))
    # More than 255 times does not happen: the count is Poisson with mean 1, or at most C.
    return np.stack([np.bincount(row, minlength=num_clusters).clip(max=255).astype(np.uint8) for row in rows])
