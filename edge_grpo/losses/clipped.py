"""PPO's clipped surrogate a token, the loss of GRPO."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_grpo.losses.base import LossInputs
from edge_grpo.losses.token_loss import KL_METRICS, TokenLoss
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics

CLIP_METRICS: dict[str, StrategyMetric] = {
    "train/clip_ratio/low_mean": StrategyMetric(
        "share", "trained tokens of computed rows clipped at the lower bound", of="clip_low"
    ),
    "train/clip_ratio/low_min": StrategyMetric(
        "share", "the same of the response with the fewest", ranks="min", of="clip_low", reduction="min"
    ),
    "train/clip_ratio/high_mean": StrategyMetric(
        "share", "trained tokens of computed rows clipped at the upper bound", of="clip_high"
    ),
    "train/clip_ratio/high_max": StrategyMetric(
        "share", "the same of the response with the most", ranks="max", of="clip_high", reduction="max"
    ),
    "train/clip_ratio/region_mean": StrategyMetric(
        "share", "trained tokens of computed rows clipped at either end", of="clip_region"
    ),
}


def clip_reports(low: Tensor, high: Tensor) -> dict[str, Tensor]:
    """What `CLIP_METRICS` are made of: [B, T] bool, tokens clipped at the lower and at the upper bound."""
    return {"clip_low": low, "clip_high": high, "clip_region": low | high}


@dataclass(frozen=True, kw_only=True)
class ClippedLoss(TokenLoss):
    """- min(rho A, clip(rho, 1 - epsilon_low, 1 + epsilon_high) A), PPO's clip (1707.06347, 2402.03300).

    rho = exp(logprobs - old_logprobs) a token. Degenerate case: where rho is exactly 1 this is the policy gradient,
    -A grad log pi, and the clip does nothing.

    Args:
        epsilon_low, epsilon_high: clip range; equal in GRPO, 0.2 / 0.28 in DAPO's clip-higher (2503.14476).
        aggregation, beta, kl, max_response_tokens: see `TokenLoss`.

    Raises:
        UserError: a value out of range.
    """

    epsilon_low: float
    epsilon_high: float

    metrics: ClassVar[StrategyMetrics] = CLIP_METRICS | KL_METRICS
    idle_at_ratio_one: ClassVar[str] = "loss.epsilon_low and loss.epsilon_high do nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_negative("epsilon_low", "epsilon_high")

    def ratio(self, inputs: LossInputs) -> Tensor:
        """rho, [B, T] with graph."""
        return torch.exp(inputs.logprobs - inputs.old_logprobs)

    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TokenLoss`. Reports of tokens: `clip_low`, `clip_high`, `clip_region`."""
        ratio = self.ratio(inputs)
        clipped = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        per_token = -torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
        low = (ratio < 1 - self.epsilon_low) & (inputs.advantages < 0)
        high = (ratio > 1 + self.epsilon_high) & (inputs.advantages > 0)
        return per_token, clip_reports(low, high)
