"""Seeds -> mean, standard deviation, interval; and the difference to a baseline, seed by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_grpo.errors import UserError
from edge_grpo.statistics.estimators import bootstrap_means, interval


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds.

    Attributes:
        std: over seeds, with n - 1; None for one seed.
        low, high: ends of the interval; None where there is none.
        resampled: what the interval resamples, "seeds" or "problems"; "" where there is none.
    """

    mean: float
    n: int
    std: float | None = None
    low: float | None = None
    high: float | None = None
    resampled: str = ""

    def overlaps(self, other: "Estimate") -> bool | None:
        """Whether the intervals share a value; None if one of the two has no interval."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return None
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Bootstrap:
    """The percentile bootstrap interval of a mean over seeds (Efron, 1979).

    It assumes that seeds are draws from one distribution and no shape of it, but it never leaves the range of the
    seeds that were run. A fixed value such as the true mean lies to one side of all n draws with probability at least
    2^(1-n), so with n seeds no interval inside that range covers it more often than `ceiling(n)`: 50 % of the time
    with 2 seeds, 75 % with 3, 94 % with 5. That is said beside every table. Student's t interval would keep its
    confidence with 3 seeds if seeds were normal, which nobody can check with 3, and with 2 reaches 9 standard
    deviations to either side; the standard deviation over seeds is given, so that it can be had. The cure is more
    seeds.

    Degenerate cases: one seed has no interval; seeds of equal values have one of no width.

    Args:
        confidence: of the interval, in (0, 1).
        resamples: bootstrap draws, at least 1.
        seed: of the draws.

    Raises:
        UserError: a value out of range.

    >>> Bootstrap(confidence=0.95, resamples=1000, seed=0).of([0.0, 0.5])  # a mean is 0, 1/4 or 1/2: 1/4, 1/2, 1/4
    Estimate(mean=0.25, n=2, std=0.3535533905932738, low=0.0, high=0.5, resampled='seeds')
    """

    confidence: float
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise UserError(f"confidence={self.confidence} must lie between 0 and 1: 0.95 is usual")
        if self.resamples < 1:
            raise UserError(f"resamples={self.resamples} must be at least 1")

    def of(self, values: Sequence[float]) -> Estimate:
        """Of one value a seed, at least one."""
        array = np.asarray(values, dtype=np.float64)
        if len(array) == 1:
            return Estimate(float(array[0]), 1)
        draws = bootstrap_means({"": array}, self.resamples, np.random.default_rng(self.seed))[""]
        low, high = interval(draws, self.confidence)
        return Estimate(float(array.mean()), len(array), float(array.std(ddof=1)), low, high, "seeds")

    def paired(self, values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
        """Of the differences, seed by seed; None if there is no common seed.

        Args:
            values: seed -> value.
            baseline: seed -> value.
        """
        common = [seed for seed in values if seed in baseline]
        return self.of([values[seed] - baseline[seed] for seed in common]) if common else None


def ceiling(n: int) -> float:
    """The most often that an interval within the range of n draws can cover a fixed value, whatever its confidence.

    >>> [ceiling(n) for n in (2, 3, 5)]
    [0.5, 0.75, 0.9375]
    """
    return 1 - 2.0 ** (1 - n)
