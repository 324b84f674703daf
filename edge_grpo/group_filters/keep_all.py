"""Every group enters the update, as in GRPO."""

import torch
from torch import Tensor

from edge_grpo.group_filters.base import Groups


class KeepAll:
    """Keeps every group: collapsed ones contribute no gradient but count in the loss's denominator.

    >>> rewards = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    >>> KeepAll()(Groups(rewards, rewards == 1))
    tensor([True, True])
    """

    def __call__(self, groups: Groups) -> Tensor:
        """[P]"""
        return torch.ones(groups.rewards.shape[0], dtype=torch.bool, device=groups.rewards.device)
