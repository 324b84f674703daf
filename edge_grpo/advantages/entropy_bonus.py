"""An advantage with a bounded bonus for uncertain tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, OverBase
from edge_grpo.errors import UserError


@dataclass(frozen=True)
class EntropyBonus(OverBase):
    """A'_it = A_i + min(alpha H_it, |A_i| / kappa), H_it the token's entropy without graph (2506.14758).

    Uncertain tokens are rewarded: more where the response is right, less punished where it is wrong. Assumes that
    they are where the response explores. Never turns a sign. Degenerate case: exactly 0 where the base is 0, so a
    collapsed group stays collapsed; a token of entropy 0 keeps the base's advantage.

    Args:
        base: the advantage A.
        alpha: bonus a nat, at least 0.
        kappa: the bonus is at most the advantage's size over this; above 1.

    >>> from edge_grpo.advantages.dr_grpo import DrGRPO
    >>> mask = torch.ones(2, 2, dtype=torch.bool)
    >>> inputs = AdvantageInputs(torch.tensor([1.0, 0]), 2, mask, mask, entropy=torch.tensor([[0.5, 2], [0, 1]]))
    >>> EntropyBonus(DrGRPO(), alpha=0.4, kappa=2.0)(inputs)[0]  # 1/2 + 0.2, + min(0.8, 1/4); -1/2 + 0, + 1/4
    tensor([[ 0.7000,  0.7500],
            [-0.5000, -0.2500]])
    """

    alpha: float
    kappa: float

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise UserError(f"advantage.alpha={self.alpha} must not be negative")
        if not self.kappa > 1:
            raise UserError(f"advantage.kappa={self.kappa} must be above 1: a bonus as large as A takes it away")

    def zero_advantage_groups(self, inputs: AdvantageInputs) -> Tensor:
        """The base's."""
        return self.base.zero_advantage_groups(inputs)

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards and [N, T] entropies -> [N, T] advantages; reports what the base reports."""
        advantages, entropy, reports = self.of_base(inputs)
        bonus = torch.minimum(self.alpha * entropy, advantages.detach().abs() / self.kappa)
        return advantages + bonus, reports
