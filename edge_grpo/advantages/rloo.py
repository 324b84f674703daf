"""REINFORCE leave-one-out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, collapsed


@dataclass(frozen=True)
class RLOO(RewardAdvantage):
    """A_i = r_i - mean of the other G - 1 rewards = G / (G - 1) (r_i - mean(r)) (2402.14740).

    Degenerate case: exactly 0 where all rewards are equal.

    >>> mask = torch.ones(4, 1, dtype=torch.bool)
    >>> inputs = AdvantageInputs(torch.tensor([1.0, 0, 0, 0]), 4, completion_mask=mask, sampled_mask=mask)
    >>> RLOO()(inputs)[0]
    tensor([ 1.0000, -0.3333, -0.3333, -0.3333])
    """

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards -> [N] advantages."""
        r, g = inputs.grouped_rewards, inputs.num_generations
        others = (r.sum(1, keepdim=True) - r) / (g - 1)
        return torch.where(collapsed(r)[:, None], 0.0, r - others).flatten(), {}
