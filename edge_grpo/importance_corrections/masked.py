"""Importance weights within a range; what is outside does not learn."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from edge_grpo.errors import UserError
from edge_grpo.importance_corrections.base import Level, Mismatch, Weighed


@dataclass(frozen=True)
class Masked:
    """w where lowest <= w <= highest, else 0: IcePop by token (Ring-1T, 2510.18855), TRL's `sequence_mask` by sequence.

    w = pi / mu of the token, or of its response (`Level`): 0 then silences all its sampled tokens. They stay in the
    loss's denominators, so the step shrinks with them. Assumes that a ratio out of range is an error of one of the two
    and no information. Degenerate case: where engine and trainer agree, every weight is 1.

    Args:
        level: w of each "token", the product over its "sequence", or their "geometric" mean.
        lowest, highest: bounds of w, 0 <= lowest <= 1 <= highest. 0.5 and 5 by token in verl's IcePop; 0 and 3 by
            sequence in TRL; 0.99 and 1.01 for the geometric mean in SkyRL.

    Raises:
        UserError: a range without 1, the weight where engine and trainer agree.

    >>> mismatch = Mismatch(torch.tensor([[0.0, 0.5, 3.0, -1.0]]), torch.ones(1, 4, dtype=torch.bool))
    >>> Masked(level="token", lowest=0.5, highest=5.0)(mismatch).weights  # exp(3) is above, exp(-1) = 0.37 below
    tensor([[1.0000, 1.6487, 0.0000, 0.0000]])
    """

    level: Level
    lowest: float
    highest: float

    corrects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= 1:
            raise UserError(f"importance_correction.lowest={self.lowest} must be at least 0 and at most 1")
        if not self.highest >= 1:
            raise UserError(f"importance_correction.highest={self.highest} must be at least 1")

    def __call__(self, mismatch: Mismatch) -> Weighed:
        """See `ImportanceCorrection`."""
        log_weight = mismatch.at(self.level)
        below = log_weight < (math.log(self.lowest) if self.lowest else -math.inf)
        capped = mismatch.known & (below | (log_weight > math.log(self.highest)))
        return Weighed(torch.where(capped, 0.0, log_weight.exp()), capped)
