"""Problems drawn with a weight for each pool of difficulty."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from edge_grpo.allocations.base import Draw, check_at_least
from edge_grpo.allocations.candidates import BestCandidates
from edge_grpo.errors import UserError
from edge_grpo.types.history import Visit
from edge_grpo.types.problems import Problem


@dataclass(frozen=True)
class DifficultyPools(BestCandidates):
    """Of the candidates, P drawn without replacement with the weights of their pools (as prime-rl's curriculum).

    A problem's pool follows from its accuracy a, the share of right responses at its latest visit: pool i holds those
    with bounds[i-1] <= a < bounds[i]. A problem without a visit has weight 1. Assumes that the latest visit says what
    the next one will be. Degenerate case: with equal weights it is a random choice; a pool of weight 0 is never
    sampled, unless all candidates are of such pools: then the first one is.

    Args:
        bounds: of the pools, shares of right responses at the latest visit, ascending.
        weights: of the pools, from hard to easy: one more than bounds, at least 0, not all 0; an unseen problem has 1.

    Raises:
        UserError: numbers that are no such lists.

    >>> pools = DifficultyPools(candidates_per_group=4, bounds=[0.2, 0.8], weights=[0.5, 1.0, 0.25])
    >>> [pools.weight([Visit(0, 10, right, 0.0, 0.0)]) for right in (0, 2, 8)], pools.weight([])
    ([0.5, 1.0, 0.25], 1.0)
    """

    bounds: list[float]
    weights: list[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(low >= high for low, high in zip(self.bounds, self.bounds[1:], strict=False)):
            raise UserError(f"allocation.bounds={list(self.bounds)} must ascend")
        if len(self.weights) != len(self.bounds) + 1:
            raise UserError(
                f"allocation.weights={list(self.weights)} must be {len(self.bounds) + 1} numbers, one more than "
                f"allocation.bounds={list(self.bounds)}"
            )
        check_at_least(0, **{f"weights[{i}]": weight for i, weight in enumerate(self.weights)})
        if not any(self.weights):
            raise UserError(f"allocation.weights={list(self.weights)} must not all be 0")

    def weight(self, visits: Sequence[Visit]) -> float:
        """Of a problem with these visits."""
        return self.weights[bisect_right(self.bounds, visits[-1].right / visits[-1].rows)] if visits else 1.0

    def ranked(self, candidates: list[Problem], draw: Draw) -> list[Problem]:
        """See `BestCandidates`."""
        # The smallest of E_i / w_i, E_i of the exponential distribution, is i with probability w_i / sum(w).
        waits = torch.empty(len(candidates), dtype=torch.float64).exponential_(generator=draw.generator).tolist()
        weights = [self.weight(draw.history.of(problem.id)) for problem in candidates]
        drawn = [(wait / w, i) for i, (wait, w) in enumerate(zip(waits, weights, strict=True)) if w > 0]
        return [candidates[i] for _, i in sorted(drawn)] or candidates[:1]
