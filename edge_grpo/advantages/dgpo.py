"""Advantages of one mean size, weighed by how hard the problem is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, UpdateGroups, check_positive, collapsed


@dataclass(frozen=True)
class DGPO(RewardAdvantage):
    """A_i = A0_i w_p tokens / tokens_live (DGPO of MathForge, 2601.20614).

        A0_i = G (r_i - mean(r)) / (sum_j |r_j - mean(r)| + eps)
        w_p  = n_live exp(-acc_p / temperature) / sum_q exp(-acc_q / temperature)

    acc_p is the share of right responses to problem p, q runs over the n_live groups of the update whose rewards are
    not all equal, on all ranks; tokens counts the response tokens of the update, tokens_live those of live groups. The
    mean size of A0 is 1 in every live group, whatever its success rate, and hard problems weigh more. The factor of
    tokens makes up for dead groups in the denominator of a token mean: it belongs to loss=dapo. Assumes that acc_p is
    the policy's own (correction=none). Sums to 0 over a group. Degenerate case: exactly 0 where all rewards of a group
    are equal.

    Args:
        temperature: of the weights; large values weigh all problems alike.
        eps: added to the sum of deviations.

    >>> from edge_grpo.advantages.base import Grading
    >>> mask, r = torch.ones(4, 1, dtype=torch.bool), torch.tensor([1.0, 0, 0, 0])
    >>> update = UpdateGroups(r[None], r[None] == 1, torch.tensor([4]), {})
    >>> inputs = AdvantageInputs(r, 4, mask, mask, grading=Grading(r == 1, {}, {}, 1.0, update))
    >>> DGPO(temperature=2.0, eps=1e-4)(inputs)[0]  # one live group, so 1; 4 (3/4) / (6/4) = 2
    tensor([ 1.9999, -0.6666, -0.6666, -0.6666])
    """

    reads_pass_rate = True

    temperature: float
    eps: float

    def __post_init__(self) -> None:
        check_positive(temperature=self.temperature, eps=self.eps)

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards and verdicts -> [N] advantages."""
        r, dead = inputs.grouped_rewards, collapsed(inputs.grouped_rewards)
        centred = r - r.mean(1, keepdim=True)
        scaled = inputs.num_generations * centred / (centred.abs().sum(1, keepdim=True) + self.eps)
        accuracy = inputs.grouped_correct.to(r.dtype).mean(1, keepdim=True)
        weight = self._scale(inputs.graded.update) * torch.exp(-accuracy / self.temperature)
        return torch.where(dead[:, None], 0.0, scaled * weight).flatten(), {}

    def _scale(self, update: UpdateGroups) -> float:
        """What every live group's weight has in common; 0 where no group is live."""
        live = ~collapsed(update.rewards)
        if not live.any():
            return 0.0
        total = torch.exp(-update.correct[live].double().mean(1) / self.temperature).sum()
        return float(live.sum() / total * (update.tokens.sum() / update.tokens[live].sum().clamp(min=1)))
