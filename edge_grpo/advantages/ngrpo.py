"""GRPO's advantage with one virtual perfect response in every group."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, check_positive, collapsed


@dataclass(frozen=True)
class NGRPO(RewardAdvantage):
    """A_i = (r_i - mean(r')) / (std(r') + eps), r' the group's rewards and one virtual r_max (NGRPO, 2509.18851).

    std has G in its denominator, r_max is the reward of a perfect response. The group's sum is at most 0. Assumes that
    no reward is above r_max. Degenerate case: an all-wrong group gets -1 / sqrt(G + 1) in every row, an all-right one
    stays at 0; equal rewards below r_max (right without the format) are punished alike.

    The published run also drops all-right groups and clips at 0.16 and 0.24 (`loss.epsilon_low`, `epsilon_high`),
    because every push is down.

    Args:
        eps: added to the standard deviation.

    >>> from edge_grpo.advantages.base import Grading, UpdateGroups
    >>> mask, wrong = torch.ones(4, 1, dtype=torch.bool), torch.zeros(4)
    >>> update = UpdateGroups(wrong[None], wrong[None] == 1, torch.tensor([4]), {})
    >>> inputs = AdvantageInputs(wrong, 4, mask, mask, grading=Grading(wrong == 1, {}, {}, 1.0, update))
    >>> NGRPO(eps=1e-6)(inputs)[0]  # of (0, 0, 0, 0, 1) mean 1/5, std sqrt((4/25 + 16/25) / 4) = sqrt(1/5)
    tensor([-0.4472, -0.4472, -0.4472, -0.4472])
    """

    revives = True  # groups of equal rewards, which a group filter may have dropped

    eps: float

    def __post_init__(self) -> None:
        check_positive(eps=self.eps)

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards -> [N] advantages."""
        r = inputs.grouped_rewards
        best, perfect = r.amax(1, keepdim=True), r.new_full((len(r), 1), inputs.graded.max_reward)
        # A sum of weights in float32 need not be the same sum in float64.
        virtual = torch.where(torch.isclose(best, perfect, rtol=1e-6, atol=0.0), best, perfect)
        joined = torch.cat([r, virtual], dim=1)
        scaled = (r - joined.mean(1, keepdim=True)) / (joined.std(1, keepdim=True) + self.eps)
        return torch.where(collapsed(joined)[:, None], 0.0, scaled).flatten(), {}
