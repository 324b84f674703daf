"""The loss stage: log-probs and advantages of a micro-batch in, its share of the update's loss out."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """One micro-batch of B rows.

    Args:
        logprobs: [B, T] with graph.
        old_logprobs: [B, T] of the policy before the update; equal to `logprobs` at the first update epoch.
        advantages: [B, T].
        completion_mask: [B, T] bool.
        token_weights: [B, T], loss weight by provenance; a token of weight 0 also leaves the denominators.
        ref_logprobs: [B, T] of the frozen reference model, or None where beta = 0.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    completion_mask: Tensor
    token_weights: Tensor
    ref_logprobs: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {
            tuple(x.shape)
            for x in (self.logprobs, self.old_logprobs, self.advantages, self.completion_mask, self.token_weights)
        }
        if len(shapes) != 1:
            raise ValueError(f"loss inputs must share one shape [B, T], got {sorted(shapes)}")


@dataclass(frozen=True)
class UpdateSize:
    """What the denominators count: the whole update, over micro-batches and ranks.

    Args:
        rows: rows with at least one trained token.
        tokens: trained tokens.
        microbatches: micro-batches over all ranks.
    """

    rows: int
    tokens: int
    microbatches: int


class Loss(Protocol):
    """Returns the micro-batch's share of the loss (shares add up) and its metrics as sums over tokens."""

    beta: float

    @property
    def reads_every_row(self) -> bool:
        """Whether a row whose advantages are all 0 still matters to the loss."""
        ...

    def __call__(self, inputs: LossInputs, size: UpdateSize) -> tuple[Tensor, dict[str, Tensor]]: ...
