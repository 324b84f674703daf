"""Collapsed groups leave the update."""

import torch
from torch import Tensor

from edge_grpo.group_filters.base import Groups


class DropZeroVariance:
    """Drops groups whose rewards are all equal, by exact equality (DAPO's filter without its refill, 2503.14476).

    The loss's denominators then count the other groups only, so the step is larger than under `KeepAll`. A shaped
    reward hides collapse from it: all-wrong groups of which some rows have the format bonus stay (`AccuracyBand`).

    >>> rewards = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    >>> DropZeroVariance()(Groups(rewards, rewards == 1))
    tensor([False,  True])
    """

    def __call__(self, groups: Groups) -> Tensor:
        """[P]"""
        return torch.any(groups.rewards != groups.rewards[:, :1], dim=1)
