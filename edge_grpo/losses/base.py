"""The loss stage: log-probs and advantages of a micro-batch in, the micro-batch's loss out."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class LossInputs:
    """One micro-batch of B rows. A row is whole, a group need not be.

    Args:
        logprobs: [B, T] with graph.
        old_logprobs: [B, T] of the policy before the update, equal to `logprobs` at its first optimiser step; of
            off-policy rows those with which they were sampled.
        advantages: [B, T].
        completion_mask: [B, T] bool.
        token_weights: [B, T], loss weight by provenance; a token of weight 0 also leaves the denominators.
        entropy: [B, T] nats, of the distribution that each token was drawn from, now; without graph, unless the loss
            differentiates it.
        ref_logprobs: [B, T] of the frozen reference model, or None where beta = 0.
        shaping: [B] gamma of the ratio of off-policy rows, 0 for all others (see `Response.shaping`); None for 0.
        group_ids: [B] int64, the group of a row.
        correct: [B] bool, by the accuracy reward alone, after correction.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    completion_mask: Tensor
    token_weights: Tensor
    entropy: Tensor
    ref_logprobs: Tensor | None = None
    shaping: Tensor | None = None
    group_ids: Tensor | None = None
    correct: Tensor | None = None

    def __post_init__(self) -> None:
        names = ("logprobs", "old_logprobs", "advantages", "completion_mask", "token_weights", "entropy")
        shapes = {tuple(getattr(self, name).shape) for name in names}
        if len(shapes) != 1:
            raise ValueError(f"loss inputs must share one shape [B, T], got {sorted(shapes)}")

    @property
    def trained(self) -> Tensor:
        """[B, T] bool, the tokens that the loss is over."""
        return self.completion_mask & (self.token_weights > 0)


@dataclass(frozen=True)
class UpdateSize:
    """What the denominators count: all rows of an optimiser step, over micro-batches and ranks.

    Args:
        rows: rows with at least one trained token.
        tokens: trained tokens.
        microbatches: micro-batches over all ranks.
    """

    rows: int
    tokens: int
    microbatches: int


class Loss(Protocol):
    """Loss strategy: returns the micro-batch's loss and what it reports.

    The losses of all micro-batches and ranks add up to the optimiser step's. What it reports is name -> [B] of rows or
    [B, T] of tokens; an attribute `metrics` says how each is logged (see `StrategyMetric`), and may be absent where
    there is nothing. An attribute `idle_at_ratio_one` may say which of its settings have no effect while the importance
    ratio is 1, as the end of a sentence: "loss.epsilon_low and loss.epsilon_high do nothing". With an attribute
    `needs_whole_groups` that is true, micro-batches hold whole groups, however many tokens they have; with
    `differentiates_entropy`, `LossInputs.entropy` carries a graph. `reads_advantages`, true where it is absent, says
    whether the advantages (and the token filter) matter to it. `observe` is called as that of an `Advantage`.
    """

    beta: float

    @property
    def reads_every_row(self) -> bool:
        """Whether a row whose advantages are all 0 still matters to the loss."""
        ...

    def __call__(self, inputs: LossInputs, size: UpdateSize) -> tuple[Tensor, dict[str, Tensor]]: ...
