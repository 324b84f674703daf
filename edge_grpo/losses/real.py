"""Right and wrong responses as the two classes of a classifier: REAL."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.losses.group_loss import GroupLoss
from edge_grpo.losses.token_loss import trained_mean


@dataclass(frozen=True, kw_only=True)
class REALLoss(GroupLoss):
    """log(1 + sum_right exp(-s_i / tau)) + log(1 + sum_wrong exp(s_i / tau)), the mean over groups (2602.05630).

    s_i is the mean log rho over a response's tokens: the logit with which it is called right. So a verdict is a label
    and no weight: reads neither rewards nor advantages. The gradient of a row by s_i is at most 1 / tau in size, and
    falls as the response moves to its side; a row that the policy already moved far weighs little. Assumes verdicts.

    Not idle where rho is exactly 1: with n rows of its class a row has the gradient (1 / tau) / (n + 1) there, down for
    a right response and up for a wrong one. Degenerate case: revives all-right and all-wrong groups. A correction that
    makes groups uniform fills them with references: that is fine-tuning on these.

    Args:
        tau: temperature, above 0; 0.5 in the paper.

    Raises:
        UserError: a value out of range.
    """

    tau: float

    reads_advantages: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise UserError(f"loss.tau={self.tau} must be above 0")

    def of_group(self, log_ratios: Tensor, trained: Tensor, advantages: Tensor, correct: Tensor) -> Tensor:
        """See `GroupLoss`."""
        logits = trained_mean(log_ratios, trained)[:, 0] / self.tau
        one = logits.new_zeros(1)  # log 1
        right, wrong = torch.cat([one, -logits[correct]]), torch.cat([one, logits[~correct]])
        return right.logsumexp(0) + wrong.logsumexp(0)
