"""The group-filter stage: which groups enter the update."""

from typing import Protocol

from torch import Tensor


class GroupFilter(Protocol):
    """[P, G] rewards after correction in, [P] bool out: true for the groups that are trained on."""

    def __call__(self, grouped_rewards: Tensor) -> Tensor: ...
