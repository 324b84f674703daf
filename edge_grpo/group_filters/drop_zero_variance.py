"""Collapsed groups leave the update."""

import torch
from torch import Tensor


class DropZeroVariance:
    """Drops groups whose rewards are all equal, by exact equality (DAPO's filter without its refill, 2503.14476).

    The loss's denominators then count the other groups only, so the step is larger than under `KeepAll`.

    >>> DropZeroVariance()(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    tensor([False,  True])
    """

    def __call__(self, grouped_rewards: Tensor) -> Tensor:
        """[P, G] -> [P]"""
        return torch.any(grouped_rewards != grouped_rewards[:, :1], dim=1)
