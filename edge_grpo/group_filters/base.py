"""The group-filter stage: which groups enter the update."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """P groups of G responses, after correction.

    Args:
        rewards: [P, G] total rewards.
        correct: [P, G] bool, what the accuracy reward calls right.
    """

    rewards: Tensor
    correct: Tensor


class GroupFilter(Protocol):
    """Groups in, [P] bool out: true for those that are trained on."""

    def __call__(self, groups: Groups) -> Tensor: ...
