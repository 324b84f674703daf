"""A soft gate in place of the clip: SAPO."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.losses.base import LossInputs
from edge_grpo.losses.token_loss import KL_METRICS, TokenLoss
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics


@dataclass(frozen=True, kw_only=True)
class SAPOLoss(TokenLoss):
    """- (4 / tau) sigmoid(tau (rho - 1)) A (2511.20347).

    tau is `tau_positive` where A > 0, else `tau_negative`. The derivative by rho is 4 sigma (1 - sigma) A: largest at
    rho = 1, where it is exactly A, and falling to 0 on both sides, the faster the greater tau. Degenerate case: where
    rho is exactly 1 the gradient is that of `ClippedLoss`, whatever tau is.

    Args:
        tau_positive, tau_negative: above 0; 1.0 and 1.05 in the paper.
        aggregation, beta, kl, max_response_tokens: see `TokenLoss`.

    Raises:
        UserError: a value out of range.
    """

    tau_positive: float
    tau_negative: float

    metrics: ClassVar[StrategyMetrics] = {
        "train/sapo/gate": StrategyMetric(
            "1",
            "mean of 4 sigma (1 - sigma), what the gate leaves of a gradient, over trained tokens of computed rows",
            of="gate",
        )
    } | KL_METRICS
    idle_at_ratio_one: ClassVar[str] = "loss.tau_positive and loss.tau_negative do nothing"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tau_positive", "tau_negative"):
            if not getattr(self, name) > 0:
                raise UserError(f"loss.{name}={getattr(self, name)} must be above 0")

    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TokenLoss`. Reports of tokens: `gate`."""
        ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
        tau = torch.full_like(ratio, self.tau_negative).masked_fill(inputs.advantages > 0, self.tau_positive)
        sigma = torch.sigmoid(tau * (ratio - 1))
        return -4 / tau * sigma * inputs.advantages, {"gate": (4 * sigma * (1 - sigma)).detach()}
