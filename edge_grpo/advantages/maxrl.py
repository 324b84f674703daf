"""Advantages whose expected update climbs the log of the success rate."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage


@dataclass(frozen=True)
class MaxRL(RewardAdvantage):
    """A_i = (c_i - p) / p, c_i 1 for a right response and 0 for a wrong one, p their mean over the group (2602.02710).

    A wrong response gets -1, a right one (1 - p) / p: the rarer, the more. So hard problems weigh as in maximum
    likelihood, where GRPO's deviation weighs them less. Reads correctness, not the reward: a format reward teaches
    nothing. Assumes a verdict that is right or wrong, and that p is the policy's own (correction=none). Sums to 0 over
    a group. Degenerate case: exactly 0 where all are right and where all are wrong (as prime-rl does; the authors' code
    adds 1e-6 to p).

    >>> from edge_grpo.advantages.base import Grading, UpdateGroups
    >>> mask, r = torch.ones(4, 1, dtype=torch.bool), torch.tensor([1.0, 0, 0, 0])
    >>> update = UpdateGroups(r[None], r[None] == 1, torch.tensor([4]), {})
    >>> inputs = AdvantageInputs(r, 4, mask, mask, grading=Grading(r == 1, {}, {}, 1.0, update))
    >>> MaxRL()(inputs)[0]  # p = 1/4: (3/4) / (1/4) = 3
    tensor([ 3., -1., -1., -1.])
    """

    reads_pass_rate = True

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] verdicts -> [N] advantages."""
        correct = inputs.grouped_correct.to(inputs.rewards.dtype)
        # Counts, so that all right is exactly 0: c G / sum(c) - 1.
        number = correct.sum(1, keepdim=True)
        taken = correct * inputs.num_generations / number.clamp(min=1) - 1
        return torch.where(number > 0, taken, 0.0).flatten(), {}
