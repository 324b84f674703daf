"""The mean reward of all responses that were drawn as the baseline, of those too that are not trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, check_positive, collapsed


@dataclass(frozen=True)
class PoolMean(RewardAdvantage):
    """A_i = r_i - mean(R), R the rewards of all responses that were drawn for the problem (Reinforce-Ada, 2510.04996).

    For allocations and corrections that draw more than G responses and keep a choice of them: the mean over the kept
    ones is not the policy's success rate. With `std` it is (r_i - mean(R)) / (std(R) + eps), as LoPE has it
    (2605.05566). The sum over a group is 0 only where all that was drawn is kept; then it is Dr. GRPO, or `vanilla`.
    Assumes that R is as sampled: a correction that changes rewards without drawing leaves R as it was. Degenerate case:
    exactly 0 where all that was drawn has the group's one reward; a group of equal rewards out of a mixed pool gets one
    number for all its rows.

    Args:
        std: whether to divide by the standard deviation, with its number less 1 in its denominator.
        eps: added to the standard deviation, if there is one.

    Raises:
        UserError: eps is not above 0.

    >>> from edge_grpo.advantages.base import Grading, UpdateGroups
    >>> mask, r = torch.ones(4, 1, dtype=torch.bool), torch.tensor([1.0, 1, 0, 0])
    >>> update = UpdateGroups(r[None], r[None] == 1, torch.tensor([4]), {})
    >>> pool = torch.tensor([1.0] * 3 + [0.0] * 13)
    >>> grading = Grading(r == 1, {}, {}, 1.0, update, drawn=[pool] * 4)
    >>> PoolMean(std=False, eps=1e-6)(AdvantageInputs(r, 4, mask, mask, grading=grading))[0]  # mean 3/16
    tensor([ 0.8125,  0.8125, -0.1875, -0.1875])
    """

    reads_drawn = True  # the rewards of all responses that the allocation drew

    std: bool
    eps: float

    def __post_init__(self) -> None:
        check_positive(eps=self.eps)

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards -> [N] advantages."""
        if not inputs.graded.drawn:
            raise ValueError("this advantage reads Grading.drawn, which is empty")
        of_groups = zip(inputs.grouped_rewards, inputs.graded.drawn[:: inputs.num_generations], strict=True)
        return torch.cat([self._group(rewards, drawn.to(rewards)) for rewards, drawn in of_groups]), {}

    def _group(self, rewards: Tensor, drawn: Tensor) -> Tensor:
        if collapsed(torch.cat([rewards, drawn])[None]):
            return torch.zeros_like(rewards)
        centred = rewards - drawn.mean()
        return centred / (drawn.std() + self.eps) if self.std else centred
