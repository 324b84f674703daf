"""An advantage with a quantile for a baseline."""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, check_positive, collapsed
from edge_grpo.errors import UserError


@dataclass(frozen=True)
class QuantileBaseline(RewardAdvantage):
    """A_i = (r_i - Q) / (std(r) + eps), Q the `quantile` of the group's rewards (QAE, 2509.22611).

    Q is the ceil(quantile * G)-th smallest reward, and std has G - 1 in its denominator. With rewards 0 and 1 a group
    learns from its right responses only where at most 1 - quantile of them are right, and from its wrong ones only
    otherwise. Assumes nothing of the rewards. A group does not sum to 0. Degenerate case: 0 where all rewards are
    equal, and for every response whose reward is Q.

    The authors' code interpolates between two rewards, where the paper's text has a reward of the group; this is the
    text.

    Args:
        quantile: above 0 and below 1.
        eps: added to the standard deviation.

    >>> mask = torch.ones(4, 1, dtype=torch.bool)
    >>> inputs = AdvantageInputs(torch.tensor([1.0, 0, 0, 0]), 4, completion_mask=mask, sampled_mask=mask)
    >>> QuantileBaseline(quantile=0.4, eps=1e-6)(inputs)[0]  # the second smallest is 0, std 1/2
    tensor([2.0000, 0.0000, 0.0000, 0.0000])
    """

    quantile: float
    eps: float

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise UserError(f"advantage.quantile={self.quantile} must be above 0 and below 1")
        check_positive(eps=self.eps)

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards -> [N] advantages."""
        r = inputs.grouped_rewards
        # Rounded, because 0.07 * 100 is 7.000000000000001 in floating point.
        place = ceil(round(self.quantile * inputs.num_generations, 9)) - 1
        baseline = r.sort(1).values[:, place, None]
        scaled = (r - baseline) / (r.std(1, keepdim=True) + self.eps)
        return torch.where(collapsed(r)[:, None], 0.0, scaled).flatten(), {}
