"""The geometric mean of a response's ratios: GMPO."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_grpo.losses.base import LossInputs
from edge_grpo.losses.clipped import CLIP_METRICS, clip_reports
from edge_grpo.losses.token_loss import KL_METRICS, TokenLoss, trained_mean
from edge_grpo.types.metric import StrategyMetrics


@dataclass(frozen=True, kw_only=True)
class GMPOLoss(TokenLoss):
    """- A exp(mean of the bounded log rho) over the response's trained tokens (2507.20673).

    log rho is bounded a token and on one side, by `log_epsilon_high` above where A > 0 and by -`log_epsilon_low` below
    where A < 0, before the mean; a token that is bounded has no gradient of its own and still counts. So outliers
    are damped within a response and not the whole of it is clipped, as in GSPO. Each trained token counts once,
    whatever it weighs.

    Micro-batches hold whole responses, so the mean does not depend on the cut. Degenerate case: where rho is exactly
    1 the gradient is that of `ClippedLoss` (advantages that are equal within a response assumed); a response of one
    token: its bounded rho.

    Args:
        log_epsilon_low, log_epsilon_high: bounds of log rho; 0.4 each in the paper.
        aggregation: the paper's is grpo, the mean over responses; see `TokenLoss` for it and the rest.

    Raises:
        UserError: a value out of range.
    """

    log_epsilon_low: float
    log_epsilon_high: float

    metrics: ClassVar[StrategyMetrics] = CLIP_METRICS | KL_METRICS
    idle_at_ratio_one: ClassVar[str] = "loss.log_epsilon_low and loss.log_epsilon_high do nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_negative("log_epsilon_low", "log_epsilon_high")

    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TokenLoss`. Reports of tokens: `clip_low`, `clip_high`, `clip_region`."""
        log_ratio = inputs.logprobs - inputs.old_logprobs
        high = (log_ratio > self.log_epsilon_high) & (inputs.advantages > 0)
        low = (log_ratio < -self.log_epsilon_low) & (inputs.advantages < 0)
        bounded = torch.where(high, self.log_epsilon_high, torch.where(low, -self.log_epsilon_low, log_ratio))
        return -inputs.advantages * torch.exp(trained_mean(bounded, inputs.trained)), clip_reports(low, high)
