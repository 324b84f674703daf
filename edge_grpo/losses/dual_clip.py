"""PPO's clip with a second bound for tokens of negative advantage."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.losses.base import LossInputs
from edge_grpo.losses.clipped import CLIP_METRICS, ClippedLoss
from edge_grpo.losses.token_loss import KL_METRICS
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics


@dataclass(frozen=True, kw_only=True)
class DualClipLoss(ClippedLoss):
    """`ClippedLoss` whose loss of a token with A < 0 is at most -c A: min(clipped loss, -c A), c = `ceiling`.

    From 1912.09729, as verl has it. PPO's clip leaves rho unbounded above where A < 0, so one token that became much
    likelier can dominate the step; here its gradient is 0 once rho > c. (TRL's `delta` bounds the unclipped ratio for
    both signs; for A > 0 that does nothing while delta > 1 + epsilon_high.) Degenerate case: where rho is exactly 1
    this is the policy gradient.

    Args:
        ceiling: c, above 1; 3 in verl.
        epsilon_low, epsilon_high, aggregation, beta, kl, max_response_tokens: see `ClippedLoss`.

    Raises:
        UserError: a value out of range.
    """

    ceiling: float

    metrics: ClassVar[StrategyMetrics] = (
        CLIP_METRICS
        | {
            "train/clip_ratio/ceiling": StrategyMetric(
                "share",
                "trained tokens of computed rows that have a negative advantage and a ratio above the ceiling",
                of="clip_ceiling",
            )
        }
        | KL_METRICS
    )
    idle_at_ratio_one: ClassVar[str] = "loss.epsilon_low, loss.epsilon_high and loss.ceiling do nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ceiling > 1:
            raise UserError(f"loss.ceiling={self.ceiling} must be above 1, or no token of negative advantage learns")

    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TokenLoss`. Reports of tokens: those of `ClippedLoss`, and `clip_ceiling`."""
        per_token, reports = super().surrogate(inputs)
        negative = inputs.advantages < 0
        bounded = torch.minimum(per_token, -self.ceiling * inputs.advantages)
        reports["clip_ceiling"] = negative & (self.ratio(inputs) > self.ceiling)
        return torch.where(negative, bounded, per_token), reports
