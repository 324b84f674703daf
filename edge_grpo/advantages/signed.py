"""Advantages that depend on a response's own verdict alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage
from edge_grpo.errors import UserError


@dataclass(frozen=True)
class Signed(RewardAdvantage):
    """A_i = right if the response is right, else -wrong (2506.01347): without a baseline, so without collapse.

    (right, wrong) = (0, 1) is NSR, which learns from wrong responses alone, (1, 0) PSR, from right ones alone, and
    (0.1, 1) W-REINFORCE. Reads correctness, not the reward: a format reward teaches nothing. Assumes a verdict that
    is right or wrong. Degenerate case: all-wrong groups get -wrong and all-right ones `right` in every row; a group
    is left out where that is 0.

    The authors' code takes the other class out of the batch for NSR and PSR, and so out of the loss's denominators.
    Here its rows stay in them at advantage 0: the step is smaller by their share.

    Args:
        right, wrong: not negative; at least one above 0.

    >>> from edge_grpo.advantages.base import Grading, UpdateGroups
    >>> mask, r = torch.ones(2, 1, dtype=torch.bool), torch.tensor([1.0, 0])
    >>> update = UpdateGroups(r[None], r[None] == 1, torch.tensor([2]), {})
    >>> inputs = AdvantageInputs(r, 2, mask, mask, grading=Grading(r == 1, {}, {}, 1.0, update))
    >>> Signed(right=0.1, wrong=1.0)(inputs)[0]
    tensor([ 0.1000, -1.0000])
    """

    revives = True  # groups of equal rewards, which a group filter may have dropped

    right: float
    wrong: float

    def __post_init__(self) -> None:
        for name, value in (("right", self.right), ("wrong", self.wrong)):
            if not value >= 0:
                raise UserError(f"advantage.{name}={value} must not be negative: the sign is put by the strategy")
        if self.right == self.wrong == 0:
            raise UserError("advantage.right=0 and advantage.wrong=0 teach nothing: set one above 0")

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] verdicts -> [N] advantages."""
        like = inputs.rewards
        right, wrong = like.new_tensor(self.right), like.new_tensor(-self.wrong)
        return torch.where(inputs.graded.correct, right, wrong), {}
