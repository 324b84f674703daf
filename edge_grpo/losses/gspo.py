"""One importance ratio a response: GSPO."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from edge_grpo.losses.base import LossInputs
from edge_grpo.losses.clipped import ClippedLoss
from edge_grpo.losses.token_loss import trained_mean


@dataclass(frozen=True, kw_only=True)
class GSPOLoss(ClippedLoss):
    """- min(s A, clip(s, 1 - epsilon_low, 1 + epsilon_high) A), s = exp(mean log rho) of the response (2507.18071).

    The mean is over the response's trained tokens, each counted once whatever it weighs. A whole response is clipped
    or not, and s moves far less than a token's rho, so the range is narrower by orders of magnitude. With
    `level: token` (GSPO-token) the value is the same and the gradient of token t is A_t s grad log pi_t, so that
    advantages that differ within a response act on their own tokens; where they do not differ both levels have the
    same gradient.

    Micro-batches hold whole responses, so s does not depend on the cut. Degenerate case: where rho is exactly 1 the
    gradient is that of `ClippedLoss`; a response of one token: s is its rho.

    Args:
        level: "sequence", one ratio and one clip for the response; "token", for advantages that differ within a
            response.
        epsilon_low, epsilon_high: clip range of s; 0.0003 and 0.0004 in the paper.
        aggregation: the paper's is grpo, the mean over responses; see `TokenLoss` for it and the rest.

    Raises:
        UserError: a value out of range.
    """

    level: Literal["sequence", "token"]

    idle_at_ratio_one: ClassVar[str] = (
        "loss.epsilon_low and loss.epsilon_high do nothing, and GSPO's sequence ratio is 1 as well"
    )

    def ratio(self, inputs: LossInputs) -> Tensor:
        """s of each token's response, [B, T] with graph."""
        logprobs = inputs.logprobs
        mean = trained_mean(logprobs - inputs.old_logprobs, inputs.trained)
        if self.level == "token":
            mean = mean.detach() + logprobs - logprobs.detach()
        return torch.exp(mean).expand_as(logprobs)
