"""The clipped loss on the tokens where the policy was least sure."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.losses.base import LossInputs
from edge_grpo.losses.clipped import CLIP_METRICS, ClippedLoss
from edge_grpo.losses.token_loss import KL_METRICS
from edge_grpo.metric import StrategyMetric, StrategyMetrics


@dataclass(frozen=True, kw_only=True)
class TopEntropyLoss(ClippedLoss):
    """`ClippedLoss` on the tokens whose entropy is in the top `top_share` of the response; 0 elsewhere (2506.01939).

    A token counts if its entropy is at least the (1 - top_share) quantile, linearly interpolated, of its response's
    trained tokens. The others stay in the denominators, as in TRL, so the step shrinks with them. The paper and TRL
    take the quantile over a batch and a micro-batch; over a response, as in SIREN's baseline (2509.25133), it does not
    depend on how the update is cut, but every response then keeps the same share. Entropies are those of the current
    forward pass; no gradient flows through them. The KL term, where there is one, is over all tokens.

    Not idle where rho is exactly 1. Degenerate case: equal entropies, or one token: every token counts, which is
    `ClippedLoss`; so is `top_share: 1`.

    Args:
        top_share: above 0, at most 1; 0.2 in the paper.
        epsilon_low, epsilon_high, aggregation, beta, kl, max_response_tokens: see `ClippedLoss`.

    Raises:
        UserError: a value out of range.
    """

    top_share: float

    metrics: ClassVar[StrategyMetrics] = (
        CLIP_METRICS
        | {
            "train/top_entropy/share": StrategyMetric(
                "share", "trained tokens whose entropy is high enough to count", of="counted"
            )
        }
        | KL_METRICS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.top_share <= 1:
            raise UserError(f"loss.top_share={self.top_share} must be above 0 and at most 1")

    def surrogate(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TokenLoss`. Reports of tokens: those of `ClippedLoss`, and `counted`."""
        per_token, reports = super().surrogate(inputs)
        entropy = inputs.entropy.masked_fill(~inputs.trained, torch.nan)
        counted = entropy >= entropy.nanquantile(1 - self.top_share, dim=1, keepdim=True)
        return torch.where(counted, per_token, 0.0), reports | {"counted": counted}
