"""The variance of a group between its rewards and its log-ratios: GVPO."""

from dataclasses import dataclass

from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.losses.group_loss import GroupLoss
from edge_grpo.losses.token_loss import trained_mean


@dataclass(frozen=True, kw_only=True)
class GVPOLoss(GroupLoss):
    """1/2 sum_i (kl_weight (R_i - mean(R)) - A_i)^2 / (G - 1), the mean over groups (GVPO, 2504.19599).

    R_i = sum over the response's tokens of log rho, mean(R) has no gradient, and A_i = r_i - mean(r): the paper's is
    advantage=dr_grpo. Of advantages that differ within a response, A_i is their mean. The minimum is the policy whose
    log-ratios are the rewards over `kl_weight`, up to a constant of the group: the optimum under a KL penalty of that
    weight to the policy before the update. Needs neither a clip nor samples of the policy itself.

    Not idle where rho is exactly 1: the gradient there is -kl_weight A_i / (G - 1) on every token of a response,
    however long it is. Degenerate case: a group without advantages has no gradient there, and is pulled back to equal
    log-ratios afterwards; of a group with one trained row the term is -A_i without gradient.

    Args:
        kl_weight: above 0; the paper's beta.

    Raises:
        UserError: a value out of range.
    """

    kl_weight: float

    def __post_init__(self) -> None:
        if not self.kl_weight > 0:
            raise UserError(f"loss.kl_weight={self.kl_weight} must be above 0")

    def of_group(self, log_ratios: Tensor, trained: Tensor, advantages: Tensor, correct: Tensor) -> Tensor:
        """See `GroupLoss`."""
        sums = log_ratios.sum(1)
        wanted = trained_mean(advantages, trained)[:, 0]
        residuals = self.kl_weight * (sums - sums.mean().detach()) - wanted
        return residuals.square().sum() / 2 / max(len(sums) - 1, 1)
