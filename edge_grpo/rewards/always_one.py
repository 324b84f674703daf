"""The format reward as the released EDGE-GRPO code computes it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from edge_grpo.types.problems import Problem


class AlwaysOne:
    """1 for every response (arXiv 2507.21848, released code).

    The released trainer tests the truth of a dictionary that is never empty, so its format reward is constant:
    departure 16 of `docs/departures.md`. A constant leaves every advantage as it is and shifts the logged reward by 1.
    Use `BoxedFormat` for a real check.

    >>> AlwaysOne()([], ["no box at all"]).tolist()
    [1.0]
    """

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Tensor:
        """[n] float32 ones."""
        return torch.ones(len(texts), dtype=torch.float32)
