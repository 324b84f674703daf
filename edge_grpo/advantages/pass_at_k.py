"""Advantages of single responses where pass@k is what is rewarded."""

from dataclasses import dataclass
from math import comb, sqrt

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage
from edge_grpo.errors import UserError


@dataclass(frozen=True)
class PassAtK(RewardAdvantage):
    """Pass@k training in closed form (2508.10751): the mean over all sets of k responses that one is in.

    Of n = G responses c are right. A set of k is rewarded where one of it is right: that is rho = 1 - C(n-c, k) /
    C(n, k) of the sets, with deviation s = sqrt(rho (1 - rho)). Then

        A_i = (1 - rho) / s                                           for a right response
        A_i = (1 - rho - C(n-c-1, k-1) / C(n-1, k-1)) / s             for a wrong one

    k = 1 is GRPO over verdicts with the population's deviation. Reads correctness, not the reward: a format reward
    teaches nothing. Assumes a verdict that is right or wrong, and that c is the policy's own (correction=none). Sums to
    0 over a group. Degenerate case: exactly 0 where all are right, where all are wrong, and already where fewer than k
    are wrong. The authors' code adds 1e-6 to s.

    Args:
        k: from 1 to G - 1; at G no group has an advantage.

    >>> from edge_grpo.advantages.base import Grading, UpdateGroups
    >>> mask, r = torch.ones(4, 1, dtype=torch.bool), torch.tensor([1.0, 0, 0, 0])
    >>> update = UpdateGroups(r[None], r[None] == 1, torch.tensor([4]), {})
    >>> inputs = AdvantageInputs(r, 4, mask, mask, grading=Grading(r == 1, {}, {}, 1.0, update))
    >>> PassAtK(k=2)(inputs)[0]  # rho = 1 - 3/6, s = 1/2: (1/2) / (1/2), and (1/2 - 2/3) / (1/2)
    tensor([ 1.0000, -0.3333, -0.3333, -0.3333])
    """

    reads_pass_rate = True

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"advantage.k={self.k} must be at least 1")

    @property
    def min_generations(self) -> int:
        """G above k."""
        return self.k + 1

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] verdicts -> [N] advantages."""
        correct, n = inputs.grouped_correct, inputs.num_generations
        values = [self._values(n, c) for c in range(n + 1)]
        of_count = inputs.rewards.new_tensor(values)[correct.sum(1)]  # [P, 2]: of a right and of a wrong response
        return torch.where(correct, of_count[:, :1], of_count[:, 1:]).flatten(), {}

    def _values(self, n: int, c: int) -> tuple[float, float]:
        """Advantage of a right and of a wrong response where c of n are right."""
        lost = comb(n - c, self.k) / comb(n, self.k)  # 1 - rho
        if lost in (0, 1):
            return 0.0, 0.0
        deviation = sqrt(lost * (1 - lost))
        return lost / deviation, (lost - comb(n - c - 1, self.k - 1) / comb(n - 1, self.k - 1)) / deviation
