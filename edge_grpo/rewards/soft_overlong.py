"""A penalty for responses that come near the token budget."""

from collections.abc import Sequence

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.types.problems import Problem
from edge_grpo.types.responses import Response


class SoftOverlong:
    """DAPO's soft overlong punishment (2503.14476): 0 up to max_tokens - buffer tokens, then falling to -1.

        0                                       L <= max_tokens - buffer
        (max_tokens - buffer - L) / buffer      up to max_tokens
        -1                                      beyond

    L counts the response's tokens, the end-of-sequence token included, and buffer = `share` * max_tokens. Assumes that
    the rollout's budget is `max_tokens`; a correction may make a response longer. A text that nobody generated has 0.
    Degenerate case: two responses of one verdict and different lengths differ, so a group that is all wrong gets
    advantages from its lengths alone (`collapse/phantom`), which say nothing about the answer.

    Args:
        max_tokens: the length that costs a whole point; at least 1.
        share: of `max_tokens` before its end where the penalty begins, above 0 and at most 1; DAPO's is 0.2.

    Raises:
        UserError: a value out of range.
    """

    highest = 0.0

    def __init__(self, max_tokens: int, share: float) -> None:
        if max_tokens < 1:
            raise UserError(f"reward: max_tokens={max_tokens} must be at least 1")
        if not 0 < share <= 1:
            raise UserError(f"reward: share={share} must be above 0 and at most 1")
        self.max_tokens, self.buffer = max_tokens, share * max_tokens

    def __call__(
        self, problems: Sequence[Problem], texts: Sequence[str], *, responses: Sequence[Response] | None = None
    ) -> Tensor:
        """[n] float32 in [-1, 0]; problems and texts are not read."""
        if responses is None:
            return torch.zeros(len(texts))
        lengths = torch.tensor([len(response) for response in responses], dtype=torch.float64)
        return ((self.max_tokens - self.buffer - lengths) / self.buffer).clamp(-1, 0).float()
