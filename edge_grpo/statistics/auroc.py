"""AUROC: how well a number tells wrong responses from right ones, over all pairs or within strata."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_grpo.statistics.bootstrap import Floats


def wins_and_pairs(
    values: Floats, wrong: NDArray[np.bool_], strata: NDArray[Any], weights: Floats | None = None
) -> tuple[Floats, Floats]:
    """Pairs of a wrong and a right response of one stratum, and those of them that the wrong one wins.

    wins / pairs is the AUROC, P(value of wrong > value of right) + P(equal) / 2 (Mann and Whitney 1947): 1/2 says
    that the value tells nothing.

    Args:
        values: [N].
        wrong: [N].
        strata: [N] number of each row's stratum, from 0 without gaps.
        weights: [R, N] times that each row counts; None for once, R = 1.

    Returns:
        wins and pairs, [R, S] each.

    >>> values, wrong = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    >>> wins_and_pairs(values, wrong, np.zeros(4, dtype=int))  # 3 > 2, 3 > 1, 2 = 2, 2 > 1
    (array([[3.5]]), array([[4.]]))
    """
    order = np.lexsort((values, strata))
    values, strata, wrong = values[order], strata[order], wrong[order]
    weights = np.ones((1, len(order))) if weights is None else weights[:, order]
    of_right, of_wrong = weights * ~wrong, weights * wrong
    starts = np.flatnonzero(np.diff(strata, prepend=-1))
    # Rows of equal values in one stratum are a tie; below[i] is the weight of right rows sorted before row i.
    new_tie = (np.diff(strata, prepend=-1) != 0) | (np.diff(values, prepend=np.nan) != 0)
    first = np.flatnonzero(new_tie)
    past = np.append(first[1:], len(order))
    tie = np.cumsum(new_tie) - 1
    below = np.pad(np.cumsum(of_right, axis=1), ((0, 0), (1, 0)))
    beaten = (below[:, first[tie]] + below[:, past[tie]]) / 2 - below[:, starts[strata]]
    wins = np.add.reduceat(of_wrong * beaten, starts, axis=1)
    pairs = np.add.reduceat(of_wrong, starts, axis=1) * np.add.reduceat(of_right, starts, axis=1)
    return wins, pairs
