"""The format reward: is there an answer in a box?"""

from collections.abc import Sequence

import torch
from torch import Tensor

from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.types.problems import Problem


class BoxedFormat:
    r"""1 if the last complete `\boxed{...}` is not empty, else 0.

    >>> BoxedFormat()([], [r"so \boxed{7}", "so 7", r"\boxed{"]).tolist()
    [1.0, 0.0, 0.0]
    """

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Tensor:
        """[n] float32, 0 or 1; the problems are not read."""
        return torch.tensor([last_boxed(text) is not None for text in texts], dtype=torch.float32)
