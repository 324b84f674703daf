"""GRPO's group-relative advantage."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, check_positive, collapsed


@dataclass(frozen=True)
class Vanilla(RewardAdvantage):
    """A_i = (r_i - mean(r)) / (std(r) + eps), std with G - 1 in its denominator (GRPO, 2402.03300; TRL).

    Assumes nothing of the rewards. Degenerate case: a group of equal rewards gets exactly 0 (advantage
    collapse), and no correction of the scale can revive it. Sums to 0 over a group.

    Args:
        eps: added to the standard deviation.

    >>> mask = torch.ones(4, 1, dtype=torch.bool)
    >>> inputs = AdvantageInputs(torch.tensor([1.0, 0, 0, 0]), 4, completion_mask=mask, sampled_mask=mask)
    >>> Vanilla(eps=1e-4)(inputs)[0]  # mean 1/4, std sqrt((9 + 3) / 16 / 3) = 1/2
    tensor([ 1.4997, -0.4999, -0.4999, -0.4999])
    """

    eps: float

    def __post_init__(self) -> None:
        check_positive(eps=self.eps)

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards -> [N] advantages."""
        r = inputs.grouped_rewards
        scaled = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + self.eps)
        return torch.where(collapsed(r)[:, None], 0.0, scaled).flatten(), {}
