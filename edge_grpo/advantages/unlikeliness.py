"""GRPO's advantage where the likeliest of the right responses are rewarded less."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, check_positive, collapsed
from edge_grpo.errors import UserError


@dataclass(frozen=True)
class Unlikeliness(RewardAdvantage):
    """A_i = (r'_i - mean(r')) / (std(r') + eps), r'_i = r_i (1 - beta rank_i / G) for a right response, r_i for a wrong
    one (2506.02355).

    rank is by the mean log-prob over a response's tokens under the policy before the update, 0 for the least likely of
    the group; equal log-probs share the mean of their ranks. std has G - 1 in its denominator. Against sharpening: of
    the right responses the rare ones gain. Assumes rewards that are not negative. The authors' rewards are 0 for wrong
    responses; that a format reward is not lowered is our reading. Degenerate case: revives all-right groups (unless all
    are equally likely); a group of equal rewards without a right response stays at 0.

    A reference solution is mostly the least likely row of its group: after a correction this rewards imitation.

    Args:
        beta: share of the reward that the likeliest loses, nearly; from 0 (GRPO) to below 1.
        eps: added to the standard deviation.

    >>> from edge_grpo.advantages.base import Grading, UpdateGroups
    >>> mask, right = torch.ones(4, 1, dtype=torch.bool), torch.ones(4)
    >>> logprobs = torch.tensor([[-0.2], [-0.4], [-0.6], [-0.8]])
    >>> update = UpdateGroups(right[None], right[None] == 1, torch.tensor([4]), {})
    >>> grading = Grading(right == 1, {}, {}, 1.0, update)
    >>> inputs = AdvantageInputs(right, 4, mask, mask, grading=grading, logprobs=logprobs)
    >>> Unlikeliness(beta=0.25, eps=1e-6)(inputs)[0]  # r' = 1 - (3, 2, 1, 0) / 16, std sqrt(5 / 3) / 16
    tensor([-1.1619, -0.3873,  0.3873,  1.1619])
    """

    revives = True  # groups of equal rewards, which a group filter may have dropped

    beta: float
    eps: float

    reads_entropy = True  # the log-probs come with the entropies

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise UserError(f"advantage.beta={self.beta} must be at least 0 and below 1")
        check_positive(eps=self.eps)

    def zero_advantage_groups(self, inputs: AdvantageInputs) -> Tensor:
        """Groups of equal rewards without a right response."""
        equal = collapsed(inputs.grouped_rewards)
        return equal & ~inputs.grouped_correct.any(1) if self.beta else equal

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards and [N, T] log-probs -> [N] advantages."""
        r, g = inputs.grouped_rewards, inputs.num_generations
        lowered = torch.where(inputs.grouped_correct, r * (1 - self.beta * self._ranks(inputs) / g), r)
        scaled = (lowered - lowered.mean(1, keepdim=True)) / (lowered.std(1, keepdim=True) + self.eps)
        return torch.where(collapsed(lowered)[:, None], 0.0, scaled).flatten(), {}

    @staticmethod
    def _ranks(inputs: AdvantageInputs) -> Tensor:
        """[P, G] ranks of the mean log-probs within the group, from 0."""
        if inputs.logprobs is None:
            raise ValueError("unlikeliness needs log-probs")
        mask = inputs.completion_mask
        mean = torch.where(mask, inputs.logprobs, 0.0).sum(1) / mask.sum(1).clamp(min=1)
        grouped = mean.view(-1, inputs.num_generations)
        below = (grouped[:, :, None] > grouped[:, None, :]).sum(2)
        equal = (grouped[:, :, None] == grouped[:, None, :]).sum(2)
        return below + (equal - 1) / 2
