"""The token-filter stage: how much each response token counts in the gradient, without a change of denominators."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenFilterInputs:
    """N rows of an update on this rank, as the rollout recorded them.

    Args:
        entropy: [N, T] nats, see `Response.entropies`; 0 for tokens that the policy did not sample. None where the
            engine recorded none: a filter that needs them says so by `reads_recorded_entropy = True`, and is refused.
        sampling_logprobs: [N, T], see `Response`.
        trained: [N, T] bool, the tokens that the loss is over.
        sampled: [N, T] bool, the tokens that the policy itself sampled: the others have neither entropy nor log-prob.
        advantages: [N, T] where the filter's `reads_advantages` is true, else None.
        over_ranks: one rank's values [n] -> those of all ranks [n'], in their order; every rank calls it as often.
        generator: makes the CPU generator of this stage, iteration and rank.
    """

    entropy: Tensor | None
    sampling_logprobs: Tensor
    trained: Tensor
    sampled: Tensor
    advantages: Tensor | None
    over_ranks: Callable[[Tensor], Tensor]
    generator: Callable[[], torch.Generator]


class TokenFilter(Protocol):
    """Token-filter strategy: returns [N, T] factors of the advantages, at least 0, and what it reports.

    It is taken once, before the update: so it does not depend on how the update is cut into micro-batches, and holds
    for all its epochs. A token with factor 0 stays in the loss's denominators and under its KL term. What it reports
    and `metrics` are as those of an `Advantage`.
    """

    @property
    def reads_advantages(self) -> bool:
        """Whether `TokenFilterInputs.advantages` must be filled: a forward pass more where they need entropies."""
        ...

    def __call__(self, inputs: TokenFilterInputs) -> tuple[Tensor, dict[str, Tensor]]: ...
