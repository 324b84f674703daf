"""Several rewards, each made relative to its group before they are added up."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_grpo.advantages.base import AdvantageInputs, RewardAdvantage, check_positive, collapsed


@dataclass(frozen=True)
class GDPO(RewardAdvantage):
    """A_i = S_i / (std(S) + eps), S_i = sum_k w_k (r_ik - mean(r_k)) / (std(r_k) + eps) (GDPO, 2601.05242; TRL's
    `normalize_then_sum`).

    r_ik is reward k of response i before weighting and w_k its weight; their mean and standard deviation (G - 1) are of
    the group, the last std is over S of all groups of the update and all ranks. TRL subtracts the mean of S there,
    which is 0, because every group's sum is. So (right, no box) and (wrong, box) differ although their sums are equal.
    Assumes nothing of the rewards. Sums to 0 over a group. Degenerate case: exactly 0 where every reward is equal over
    the group; with one reward it is GRPO divided by its deviation over the update.

    Args:
        eps: added to every standard deviation.

    >>> from edge_grpo.advantages.base import Grading, UpdateGroups
    >>> mask, right, box = torch.ones(2, 1, dtype=torch.bool), torch.tensor([1.0, 0]), torch.tensor([0.0, 1])
    >>> parts, weights = {"accuracy": right, "format": box}, {"accuracy": 1.0, "format": 0.5}
    >>> groups = UpdateGroups((right + box / 2)[None], right[None] == 1, torch.tensor([2]),
    ...                       {name: part[None] for name, part in parts.items()})
    >>> grading = Grading(right == 1, parts, weights, 1.5, groups)
    >>> inputs = AdvantageInputs(right + box / 2, 2, mask, mask, grading=grading)
    >>> GDPO(eps=1e-4)(inputs)[0]  # S is sqrt(1/2) - sqrt(1/2) / 2 and minus that; S / (sqrt(2) S)
    tensor([ 0.7070, -0.7070])
    """

    eps: float

    def __post_init__(self) -> None:
        check_positive(eps=self.eps)

    def __call__(self, inputs: AdvantageInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N] values of each reward -> [N] advantages."""
        graded, g = inputs.graded, inputs.num_generations
        parts = {name: part.view(-1, g) for name, part in graded.parts.items()}
        whole = {name: part.double() for name, part in graded.update.parts.items()}
        deviation = float(self._summed(whole, graded.weights).std())
        return (self._summed(parts, graded.weights) / (deviation + self.eps)).flatten(), {}

    def _summed(self, parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """[P, G] of each reward -> S [P, G]."""
        return sum((weights[name] * self._relative(part) for name, part in parts.items()), torch.zeros(()))

    def _relative(self, r: Tensor) -> Tensor:
        scaled = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + self.eps)
        return torch.where(collapsed(r)[:, None], 0.0, scaled)
