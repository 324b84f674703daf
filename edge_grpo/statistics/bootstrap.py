"""The bootstrap behind every interval: units, which are problems, questions or seeds, are drawn with replacement."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_grpo.errors import UserError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""[R, C] times that each of C units was drawn -> the statistic of each of R draws, NaN where it is not defined"""
# Counts that are held as floats at once: 4 million are 32 MB.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A statistic with the interval of its bootstrap draws.

    Attributes:
        value: NaN where the statistic is not defined.
        low, high: ends of the interval; None where there is none.
        n: units that were drawn.
        std: standard deviation over units with n - 1, of a mean over at least two; None otherwise.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    std: float | None = None

    def overlaps(self, other: "Estimate") -> bool | None:
        """Whether the intervals share a value; None if one of the two has no interval."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return None
        return self.low <= other.high and other.low <= self.high

    def as_dict(self) -> dict[str, float | None]:
        """value, low and high for a JSON file: null where there is none.

        >>> Estimate(float("nan")).as_dict()
        {'value': None, 'low': None, 'high': None}
        """
        value = None if math.isnan(self.value) else self.value
        return {"value": value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals from drawing the units again (Efron and Tibshirani 1993, chapter 13).

    What depends on each other is one unit: the samples of a problem, the responses to a question, all of a run. It
    assumes that units are independent draws from one distribution, and no shape of it. The interval of a mean never
    leaves the range of the units, so of few units it is too narrow: see `highest_coverage`. Student's t interval would
    keep its confidence with 3 units if they were normal, which nobody can check with 3.

    Degenerate cases: a single unit has no interval; a statistic that is the same in every draw (0 of 30 right) has one
    of no width, which says nothing about the next unit.

    Args:
        confidence: of the intervals, in (0, 1).
        resamples: draws, R, at least 1.
        seed: of the draws, at least 0. Statistics over the same number of units see the same draws.

    Raises:
        UserError: a value out of range.

    >>> Bootstrap(confidence=0.95, resamples=1000, seed=0).mean([0.0, 0.5])  # 0, 1/4 or 1/2: 1/4, 1/2, 1/4 of draws
    Estimate(value=0.25, low=0.0, high=0.5, n=2, std=0.3535533905932738)
    """

    confidence: float
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise UserError(f"bootstrap.confidence={self.confidence} must lie between 0 and 1: 0.95 is usual")
        if self.resamples < 1 or self.seed < 0:
            raise UserError(
                f"bootstrap.resamples={self.resamples} must be at least 1 and bootstrap.seed={self.seed} at least 0"
            )

    def mean(self, values: ArrayLike) -> Estimate:
        """Mean of [C] values, one a unit."""
        array = np.asarray(values, dtype=np.float64)
        found = self.estimate(lambda counts: counts @ array / len(array), len(array))
        return replace(found, std=float(array.std(ddof=1))) if len(array) > 1 else found

    def ratio(self, numerator: ArrayLike, denominator: ArrayLike, units: NDArray[np.intp]) -> Estimate:
        """sum(numerator) / sum(denominator).

        Args:
            numerator, denominator: [N] numbers or truths; a row that does not count is 0 in both.
            units: [N] number of each row's unit, from 0.

        >>> bootstrap = Bootstrap(confidence=0.95, resamples=500, seed=0)
        >>> bootstrap.ratio([1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1])  # means 1/2 and 1: 1/2, 3/4 or 1 in a draw
        Estimate(value=0.75, low=0.5, high=1.0, n=2, std=None)
        """
        tops, bottoms = unit_sums(numerator, units), unit_sums(denominator, units)
        return self.estimate(lambda counts: divide(counts @ tops, counts @ bottoms), len(tops))

    def estimate(self, statistic: Statistic, num_units: int, width: int = 0) -> Estimate:
        """Any statistic of units.

        Args:
            statistic: [R, C] -> [R].
            num_units: C.
            width: numbers that the statistic holds for a draw, if more than C; bounds the memory.
        """
        return self.estimates(lambda counts: statistic(counts)[:, None], [num_units], width)[0]

    def estimates(self, statistic: Statistic, strata: Sequence[int], width: int = 0) -> list[Estimate]:
        """Several statistics of the same draws.

        Args:
            statistic: [R, C] -> [R, M].
            strata: number of units in each stratum, C in all. Units are drawn within their stratum, independently.
            width: see `estimate`.

        Returns:
            The M estimates.
        """
        units = sum(strata)
        values = statistic(np.ones((1, units)))[0]
        if max(strata) < 2:
            return [Estimate(float(value), n=units) for value in values]
        counts = _draws(tuple(strata), self.resamples, self.seed)
        step = max(1, CHUNK // max(units, width))
        parts = [statistic(counts[i : i + step].astype(np.float64)) for i in range(0, len(counts), step)]
        drawn = np.concatenate(parts).T
        return [self._interval(float(value), own, units) for value, own in zip(values, drawn, strict=True)]

    def _interval(self, value: float, drawn: Floats, units: int) -> Estimate:
        drawn = drawn[~np.isnan(drawn)]
        if math.isnan(value) or not len(drawn):
            return Estimate(value, n=units)
        # The same but for rounding: one unit alone has all of it, or every unit the same.
        if drawn.max() - drawn.min() <= 1e-9 * max(1.0, abs(value)):
            return Estimate(value, value, value, n=units)
        low, high = np.quantile(drawn, [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return Estimate(value, float(low), float(high), n=units)


def unit_sums(values: ArrayLike, units: NDArray[np.intp]) -> Floats:
    """[N] values -> [C] sums over the rows of each unit."""
    return np.bincount(units, weights=np.asarray(values, dtype=np.float64)).astype(np.float64, copy=False)


def divide(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise; NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator == 0, np.nan, numerator / denominator)


def highest_coverage(n: int) -> float:
    """The most often that an interval within the range of n draws can cover a fixed value, whatever its confidence.

    All n draws lie to one side of the value, such as the true mean, with probability at least 2^(1-n).

    >>> [highest_coverage(n) for n in (2, 3, 5)]
    [0.5, 0.75, 0.9375]
    """
    return 1 - 2.0 ** (1 - n)


@functools.lru_cache(maxsize=1)
def _draws(strata: tuple[int, ...], resamples: int, seed: int) -> NDArray[np.uint8]:
    """[R, C] times that each unit is drawn; kept, for every statistic of a source asks for the same."""
    generator = np.random.default_rng(seed)
    return np.concatenate([_counts(generator, size, resamples) for size in strata], axis=1)


def _counts(generator: np.random.Generator, size: int, resamples: int) -> NDArray[np.uint8]:
    """[R, size]: each row counts `size` draws from as many units."""
    parts = []
    step = max(1, CHUNK // size)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
        # More than 255 times does not happen: the count is Poisson with mean 1, or at most `size`.
        parts.append(counts.clip(max=255).astype(np.uint8))
    return np.concatenate(parts)
