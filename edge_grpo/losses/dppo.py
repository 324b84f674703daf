"""A trust region in probabilities instead of ratios: DPPO."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_grpo.losses.base import LossInputs
from edge_grpo.losses.clipped import CLIP_METRICS, clip_reports
from edge_grpo.losses.token_loss import KL_METRICS, TokenLoss
from edge_grpo.types.metric import StrategyMetrics


@dataclass(frozen=True, kw_only=True)
class DPPOLoss(TokenLoss):
    """- M rho A + ratio_penalty (log rho)^2, with a mask M on the change of the token's probability (2602.04879).

    pi and q are the token's probabilities now and before the update, rho = pi / q. M is 0 where A > 0 and
    pi - q > delta_high, and where A < 0 and q - pi > delta_low, else 1: the "binary TV" form. A rare token may so
    multiply its probability, which a bound on rho forbids, and a frequent one may not lose much, which it allows. The
    penalty is prime-rl's. It reaches every row, so none is left out of the update unless it is 0. Degenerate case:
    where rho is exactly 1 the gradient is that of `ClippedLoss`, and the penalty and its gradient are 0.

    Args:
        delta_low, delta_high: bounds on the fall and rise of a probability; 0.2 each in prime-rl.
        ratio_penalty: weight of (log rho)^2; 0.001 in prime-rl.
        aggregation, beta, kl, max_response_tokens: see `TokenLoss`.

    Raises:
        UserError: a value out of range.
    """

    delta_low: float
    delta_high: float
    ratio_penalty: float

    metrics: ClassVar[StrategyMetrics] = CLIP_METRICS | KL_METRICS
    idle_at_ratio_one: ClassVar[str] = "loss.delta_low, loss.delta_high and loss.ratio_penalty do nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_negative("delta_low", "delta_high", "ratio_penalty")

    @property
    def reads_every_row(self) -> bool:
        """As `TokenLoss`, and the penalty reaches every row."""
        return super().reads_every_row or self.ratio_penalty > 0

    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TokenLoss`. Reports of tokens that are masked: `clip_low`, `clip_high`, `clip_region`."""
        log_ratio = inputs.logprobs - inputs.old_logprobs
        rise = (inputs.logprobs.exp() - inputs.old_logprobs.exp()).detach()
        high = (rise > self.delta_high) & (inputs.advantages > 0)
        low = (rise < -self.delta_low) & (inputs.advantages < 0)
        policy = torch.where(low | high, 0.0, torch.exp(log_ratio) * inputs.advantages)
        return self.ratio_penalty * log_ratio.square() - policy, clip_reports(low, high)
