"""GRPO's advantage with the standard deviation of the whole batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, check_positive, collapsed


@dataclass(frozen=True)
class BatchStd(RewardAdvantage):
    """A_i = (r_i - mean(r)) / (std(R) + eps) (Lite PPO, 2508.08221; TRL's `scale_rewards="batch"`).

    mean is over the group, std over the rewards R of all groups of the update and all ranks, with their number less 1
    in its denominator. So a group that is nearly all right or all wrong is not scaled up. Assumes that rewards of
    different problems are on one scale. Sums to 0 over a group. Degenerate case: exactly 0 where all rewards of a
    group are equal.

    Args:
        eps: added to the standard deviation.

    >>> from edge_grpo.advantages.base import Grading, UpdateGroups
    >>> r = torch.tensor([1.0, 0, 0, 0])
    >>> mask, groups = torch.ones(4, 1, dtype=torch.bool), torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])
    >>> update = UpdateGroups(groups, groups == 1, torch.tensor([4, 4]), {})
    >>> inputs = AdvantageInputs(r, 4, mask, mask, grading=Grading(r == 1, {}, {}, 1.0, update))
    >>> BatchStd(eps=1e-4)(inputs)[0]  # std of 3 ones and 5 zeros: sqrt(3 * 5 / 8 / 7) = 0.5175
    tensor([ 1.4489, -0.4830, -0.4830, -0.4830])
    """

    eps: float

    def __post_init__(self) -> None:
        check_positive(eps=self.eps)

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards -> [N] advantages."""
        r = inputs.grouped_rewards
        deviation = float(inputs.graded.update.rewards.double().std())
        scaled = (r - r.mean(1, keepdim=True)) / (deviation + self.eps)
        return torch.where(collapsed(r)[:, None], 0.0, scaled).flatten(), {}
