"""Dr. GRPO's advantage: no division by the group's standard deviation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, collapsed


@dataclass(frozen=True)
class DrGRPO(RewardAdvantage):
    """A_i = r_i - mean(r) (2503.20783). Degenerate case: exactly 0 where all rewards are equal.

    >>> mask = torch.ones(4, 1, dtype=torch.bool)
    >>> inputs = AdvantageInputs(torch.tensor([1.0, 0, 0, 0]), 4, completion_mask=mask, sampled_mask=mask)
    >>> DrGRPO()(inputs)[0]
    tensor([ 0.7500, -0.2500, -0.2500, -0.2500])
    """

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards -> [N] advantages."""
        r = inputs.grouped_rewards
        centred = r - r.mean(1, keepdim=True)
        return torch.where(collapsed(r)[:, None], 0.0, centred).flatten(), {}
