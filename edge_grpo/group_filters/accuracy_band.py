"""Groups that are too hard or too easy leave the update, by what is right and not by what is rewarded."""

from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.group_filters.base import Groups


class AccuracyBand:
    """Keeps groups of which more than `low` and less than `high` of the responses are right.

    With 0 and 1 it is DAPO's condition 0 < right < G (2503.14476) without its refill: a group counts as collapsed by
    correctness. An all-wrong group of which some responses have a format bonus has variance, and would teach format
    only; `DropZeroVariance` keeps it, this filter does not (metric `collapse/phantom`). ROLL's difficulty mask has
    0.1 and 0.95 (github.com/alibaba/ROLL).

    Degenerate case: where no group is kept, the step moves nothing.

    Args:
        low, high: shares of right responses, both excluded.

    Raises:
        UserError: not 0 <= low < high <= 1.

    >>> import torch
    >>> rewards = torch.tensor([[0.0, 1.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    >>> AccuracyBand(0.0, 1.0)(Groups(rewards, rewards == 2))
    tensor([False,  True, False])
    """

    def __init__(self, low: float, high: float) -> None:
        if not 0 <= low < high <= 1:
            raise UserError(f"group_filter.low={low} and high={high}: expected 0 <= low < high <= 1")
        self.low, self.high = low, high

    def __call__(self, groups: Groups) -> Tensor:
        """[P]"""
        share = groups.correct.double().mean(1)
        return (share > self.low) & (share < self.high)
