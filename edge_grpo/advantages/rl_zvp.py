"""Advantages for groups of equal rewards, from the entropies of their tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, OverBase, check_positive, collapsed


@dataclass(frozen=True)
class ZeroVariancePrompts(OverBase):
    """RL-ZVP (2509.21880): the base, but where all rewards of a group are equal, with H_it the token's entropy,

        A_it = alpha H_it                         if all its responses are right
        A_it = -alpha (max_s H_is - H_it)         if all are wrong, max over the response's own tokens

    Uncertain tokens of right responses are rewarded most, sure tokens of wrong ones punished most. Assumes that entropy
    says where a response decides something. Degenerate case: revives all-right and all-wrong groups; a response of
    one token in an all-wrong group, and one without entropy in an all-right group, get 0. A group of equal rewards
    with right and wrong responses (a format reward can make one) keeps the base.

    Args:
        base: the advantage of the other groups; the paper's is `vanilla`.
        alpha: advantage a nat of entropy, in groups of equal rewards.

    >>> from edge_grpo.advantages.base import Grading, UpdateGroups
    >>> from edge_grpo.advantages.dr_grpo import DrGRPO
    >>> mask, wrong = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2)
    >>> update = UpdateGroups(wrong[None], wrong[None] == 1, torch.tensor([4]), {})
    >>> grading = Grading(wrong == 1, {}, {}, 1.0, update)
    >>> inputs = AdvantageInputs(wrong, 2, mask, mask, torch.tensor([[2.0, 5], [1, 1]]), grading)
    >>> ZeroVariancePrompts(DrGRPO(), alpha=0.1)(inputs)[0]  # -0.1 (5 - 2), 0; no token of row 1 is above another
    tensor([[-0.3000,  0.0000],
            [ 0.0000,  0.0000]])
    """

    revives = True  # groups of equal rewards, which a group filter may have dropped

    alpha: float

    def __post_init__(self) -> None:
        check_positive(alpha=self.alpha)

    def zero_advantage_groups(self, inputs: AdvantageInputs) -> Tensor:
        """The base's, less the groups that are revived."""
        all_right, all_wrong = self._revived(inputs)
        return self.base.zero_advantage_groups(inputs) & ~all_right & ~all_wrong

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] rewards and [N, T] entropies -> [N, T] advantages; reports what the base reports."""
        advantages, entropy, reports = self.of_base(inputs)
        right, wrong = (some.repeat_interleave(inputs.num_generations)[:, None] for some in self._revived(inputs))
        highest = entropy.masked_fill(~inputs.completion_mask, 0.0).amax(1, keepdim=True)
        taken = torch.where(right, self.alpha * entropy, advantages)
        taken = torch.where(wrong, self.alpha * (entropy - highest), taken)
        return torch.where(inputs.completion_mask, taken, 0.0), reports

    @staticmethod
    def _revived(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
        """[P] bool each: groups of equal rewards that are all right, and all wrong."""
        equal, correct = collapsed(inputs.grouped_rewards), inputs.grouped_correct
        return equal & correct.all(1), equal & ~correct.any(1)
