"""An advantage whose baseline weighs responses by their length."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, collapsed


@dataclass(frozen=True)
class OPO(RewardAdvantage):
    """A_i = r_i - sum_j(L_j r_j) / sum_j(L_j), L_j the tokens of response j (OPO, 2505.23585; verl).

    The baseline of least variance, assuming that the variance of a response's gradient grows with its length.
    sum_j(L_j A_j) = 0 over a group. Degenerate case: exactly 0 where all rewards are equal. Where all lengths are equal
    it is Dr. GRPO.

    >>> mask = torch.tensor([[True, False, False], [True, True, True]])  # L = 1, 3
    >>> inputs = AdvantageInputs(torch.tensor([1.0, 0.0]), 2, completion_mask=mask, sampled_mask=mask)
    >>> OPO()(inputs)[0]  # baseline (1 * 1 + 3 * 0) / 4 = 1/4
    tensor([ 0.7500, -0.2500])
    """

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards and [N, T] mask -> [N] advantages."""
        r = inputs.grouped_rewards
        # A response of no tokens weighs as much as one of one token: a group of such must not divide by 0.
        length = inputs.completion_mask.sum(1).clamp(min=1).view_as(r).to(r.dtype)
        baseline = (length * r).sum(1, keepdim=True) / length.sum(1, keepdim=True)
        return torch.where(collapsed(r)[:, None], 0.0, r - baseline).flatten(), {}
