"""The interval of a share that is 0 or 1, of which every bootstrap draw is the same."""

import math
from statistics import NormalDist


def wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of n independent units.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z the normal quantile of the confidence. It
    stays in [0, 1] and has a width where the share is 0 or 1: up to z^2 / (n + z^2) at 0.

    Args:
        share: p, in [0, 1].
        n: units, at least 1.
        confidence: in (0, 1).

    >>> [round(end, 4) for end in wilson(0.0, 30, 0.95)]  # z = 1.96: 3.84 / 33.84
    [0.0, 0.1135]
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 + z**2 / n
    middle = (share + z**2 / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)
