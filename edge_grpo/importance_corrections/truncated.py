"""Importance weights with a cap."""

import math
from dataclasses import dataclass
from typing import ClassVar

from edge_grpo.errors import UserError
from edge_grpo.importance_corrections.base import Level, Mismatch, Weighed


@dataclass(frozen=True)
class Truncated:
    """min(w, cap): truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"; a page, no paper).

    w = pi / mu of the token, or of its response (`Level`). The gradient's expectation is over mu, the engine's policy;
    weighed by w it is over pi, the trainer's, and the cap bounds its variance at the price of a bias. By token it
    corrects the choice of the token and not of what led to it; by sequence both, with a variance that grows with the
    length of the response; the geometric mean is no importance weight of anything, and bounds per token what a response
    of any length weighs. Degenerate case: where engine and trainer agree, every weight is 1.

    Args:
        level: w of each "token", the product over its "sequence", or their "geometric" mean.
        cap: upper bound on the weight, at least 1; 2 by token in the source.

    Raises:
        UserError: a cap below 1, which would shrink the gradient where engine and trainer agree.

    >>> import torch
    >>> mismatch = Mismatch(torch.tensor([[0.0, 0.5, 3.0]]), torch.ones(1, 3, dtype=torch.bool))
    >>> Truncated(level="token", cap=2.0)(mismatch).weights  # 1, exp(0.5) and 2 in place of exp(3)
    tensor([[1.0000, 1.6487, 2.0000]])
    """

    level: Level
    cap: float

    corrects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.cap >= 1:
            raise UserError(f"importance_correction.cap={self.cap} must be at least 1, the weight where engines agree")

    def __call__(self, mismatch: Mismatch) -> Weighed:
        """See `ImportanceCorrection`."""
        log_weight, bound = mismatch.at(self.level), math.log(self.cap)
        return Weighed(log_weight.clamp(max=bound).exp(), log_weight > bound)
