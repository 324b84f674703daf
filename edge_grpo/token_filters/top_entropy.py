"""Only the tokens where the policy was least sure learn."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from edge_grpo.errors import UserError
from edge_grpo.token_filters.base import TokenFilterInputs
from edge_grpo.types.metric import StrategyMetric, StrategyMetrics


@dataclass(frozen=True)
class TopEntropy:
    """Factor 1 where H_t is at least the (1 - top_share) quantile of the entropies, else 0 (2506.01939).

    H_t is the entropy with which the token was sampled, the quantile is linearly interpolated. `over: update` takes it
    over all sampled and trained tokens of the update, on all ranks (TRL: of a micro-batch on all ranks);
    `over: response` over those of the token's own response (SIREN's baseline, 2509.25133), so that every response keeps
    the same share.
    A token with factor 0 stays in the loss's denominators, as in TRL, so the step shrinks with them, and it stays under
    the KL term. Assumes that the tokens that decide something are those of high entropy. A token that a correction
    wrote has no entropy: it is in no quantile and keeps factor 1.

    Degenerate case: where all entropies are equal, a response has one token (`over: response`), or `top_share: 1`,
    every token counts.

    Args:
        top_share: of the tokens that keep their advantage, above 0, at most 1; 0.2 in the paper.
        over: what the quantile is taken over: all tokens of the "update" and all ranks, or those of each "response".

    Raises:
        UserError: a value out of range.
    """

    top_share: float
    over: Literal["update", "response"]

    reads_advantages = False
    reads_recorded_entropy = True
    metrics: ClassVar[StrategyMetrics] = {
        "train/top_entropy/share": StrategyMetric("share", "trained tokens whose entropy is high enough to count")
    }

    def __post_init__(self) -> None:
        if not 0 < self.top_share <= 1:
            raise UserError(f"token_filter.top_share={self.top_share} must be above 0 and at most 1")

    def __call__(self, inputs: TokenFilterInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """[N, T] factors, 0 or 1; reports them."""
        recorded, known = inputs.entropy, inputs.trained & inputs.sampled
        if recorded is None:
            raise ValueError("TopEntropy needs the entropies of the rollout")
        if self.over == "response":
            entropy = recorded.masked_fill(~known, torch.nan)
            counted = entropy >= entropy.nanquantile(1 - self.top_share, dim=1, keepdim=True)
        else:
            entropies = inputs.over_ranks(recorded[known])
            # A rank without tokens asks for none either.
            counted = recorded >= quantile(entropies, 1 - self.top_share) if len(entropies) else known
        factors = (counted | ~known).to(recorded.dtype)
        return factors, {"train/top_entropy/share": factors}


def quantile(values: Tensor, q: float) -> Tensor:
    """[n] -> [], linearly interpolated. `torch.quantile` refuses more than 2^24 values, which an update can have.

    >>> quantile(torch.tensor([5.0, 1, 4, 2, 3]), 0.8)  # 0.8 * 4 = 3.2 places above the lowest: 4 + 0.2
    tensor(4.2000)
    """
    ordered = values.sort().values
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below)
