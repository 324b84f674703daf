"""Problems whose success rate is predicted to be near one half."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edge_grpo.allocations.base import Draw, check_share
from edge_grpo.allocations.candidates import BestCandidates
from edge_grpo.errors import UserError
from edge_grpo.types.history import Visit
from edge_grpo.types.problems import Problem


@dataclass(frozen=True)
class MoPPS(BestCandidates):
    """Of the candidates, the P whose drawn success rates are nearest to `target` (MoPPS, 2507.04632).

    A problem's rate is drawn from Beta(a, b) (Thompson sampling). a = b = 1 before its first visit; a visit with c
    right responses and w wrong ones makes a = decay a + (1 - decay) + c and b = decay b + (1 - decay) + w. Assumes that
    the rate moves slowly; a decay below 1 forgets. Degenerate case: without history every rate is uniform on [0, 1],
    and it is a random choice.

    Args:
        decay: lambda, in [0, 1]; 1 never forgets (the authors' value).
        target: success rate to which the chosen problems are nearest, in (0, 1).

    Raises:
        UserError: a number out of range.

    >>> MoPPS(candidates_per_group=4, decay=1.0, target=0.5).posterior([Visit(0, 8, 2, 0.25, 0.43)])  # mean 3 / 10
    (3.0, 7.0)
    """

    decay: float
    target: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(decay=self.decay)
        if not 0 < self.target < 1:
            raise UserError(f"allocation.target={self.target} must be above 0 and below 1")

    def posterior(self, visits: Sequence[Visit]) -> tuple[float, float]:
        """(a, b) after these visits."""
        a = b = 1.0
        for visit in visits:
            a = self.decay * a + (1 - self.decay) + visit.right
            b = self.decay * b + (1 - self.decay) + visit.rows - visit.right
        return a, b

    def ranked(self, candidates: list[Problem], draw: Draw) -> list[Problem]:
        """See `BestCandidates`."""
        # torch draws a Beta from its global generator only.
        numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=draw.generator)))
        distance = {
            problem.id: abs(numbers.beta(*self.posterior(draw.history.of(problem.id))) - self.target)
            for problem in candidates
        }
        return sorted(candidates, key=lambda problem: distance[problem.id])
