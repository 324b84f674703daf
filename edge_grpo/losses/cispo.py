"""Clipped importance weights that cut no token's gradient off: CISPO."""

from dataclasses import dataclass

from torch import Tensor

from edge_grpo.losses.base import LossInputs
from edge_grpo.losses.clipped import ClippedLoss, clip_reports


@dataclass(frozen=True, kw_only=True)
class CISPOLoss(ClippedLoss):
    """- sg(clip(rho, 1 - epsilon_low, 1 + epsilon_high)) A log pi, sg without gradient (2506.13585).

    rho is a weight and not what is differentiated, so a token beyond the range keeps a gradient, of bounded weight,
    where `ClippedLoss` gives it none. The paper leaves the range open below: `epsilon_low: 1` bounds the weight by 0.
    TRL takes the upper bound itself as `epsilon_high`; verl bounds at both ends as here. Degenerate case: where rho is
    exactly 1 the gradient is that of `ClippedLoss`; the loss itself is another number.

    Args:
        epsilon_low, epsilon_high: the weight lies in [1 - epsilon_low, 1 + epsilon_high].
        aggregation: the paper's is dapo, the mean over all tokens; see `TokenLoss` for it and the rest.

    Raises:
        UserError: a value out of range.
    """

    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TokenLoss`. Reports of tokens with an advantage: `clip_low`, `clip_high`, `clip_region`."""
        ratio = self.ratio(inputs).detach()
        lowest, highest = 1 - self.epsilon_low, 1 + self.epsilon_high
        moved = inputs.advantages != 0
        reports = clip_reports((ratio < lowest) & moved, (ratio > highest) & moved)
        return -ratio.clamp(lowest, highest) * inputs.advantages * inputs.logprobs, reports
