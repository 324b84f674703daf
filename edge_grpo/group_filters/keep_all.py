"""Every group enters the update, as in GRPO."""

import torch
from torch import Tensor


class KeepAll:
    """Keeps every group: collapsed ones contribute no gradient but count in the loss's denominator.

    >>> KeepAll()(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    tensor([True, True])
    """

    def __call__(self, grouped_rewards: Tensor) -> Tensor:
        """[P, G] -> [P]"""
        return torch.ones(grouped_rewards.shape[0], dtype=torch.bool, device=grouped_rewards.device)
