"""Policy entropy of finished responses."""

from dataclasses import dataclass

import pandas as pd
import torch

from edge_grpo.corrections.base import UNIFORM_WEIGHT
from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy, eval_mode
from edge_grpo.policy.batching import to_update_batch
from edge_grpo.policy.forward import MicrobatchForward
from edge_grpo.policy.support import check_head, check_packed
from edge_grpo.types.rollouts import Rollout


@dataclass(frozen=True)
class ResponseEntropy:
    """P_i = mean over the response's tokens of the full-vocabulary entropy in nats (2507.21848, eq. 3).

    The distribution is taken at temperature 1, whatever the responses were sampled at: at a low temperature every
    entropy is near 0 and tells nothing. It takes one forward pass over the finished responses.

    Args:
        microbatch_tokens: bound on the tokens of one forward pass.
        chunk_tokens: tokens whose logits are in memory at once.
        packing: compute a prompt once for all its responses and no padding, as `algorithm.packing`.

    Raises:
        UserError: a value below 1.
    """

    microbatch_tokens: int
    chunk_tokens: int
    packing: bool

    def __post_init__(self) -> None:
        if self.microbatch_tokens < 1 or self.chunk_tokens < 1:
            raise UserError(
                f"entropy.microbatch_tokens={self.microbatch_tokens} and entropy.chunk_tokens={self.chunk_tokens} "
                "must be at least 1"
            )

    def check(self, policy: Policy) -> None:
        """Refuse a model that this cannot compute, before any work."""
        check_head(policy.model, self.chunk_tokens)
        if self.packing:
            check_packed(policy.model)

    def __call__(self, policy: Policy, rollout: Rollout) -> pd.Series:
        """[N] nats a token; NaN for a response without tokens."""
        rows = [row for row, response in enumerate(rollout.responses) if len(response)]
        entropies = torch.full((rollout.num_rows,), torch.nan, dtype=torch.float32)
        if not rows:
            return pd.Series(entropies.numpy())
        device = policy.model.device
        batch = to_update_batch(rollout, rows, token_weight=UNIFORM_WEIGHT, pad_id=policy.pad_id, device=device)
        forward = MicrobatchForward(
            temperature=1.0,
            microbatch_tokens=self.microbatch_tokens,
            chunk_tokens=self.chunk_tokens,
            packing=self.packing,
            settings=("entropy.microbatch_tokens", "entropy.chunk_tokens"),
        )
        microbatches = forward.microbatches(batch, torch.arange(len(rows), device=device))
        with eval_mode(policy.model):
            sums = forward.over(policy.model, batch, microbatches).entropy.sum(1)
        entropies[rows] = (sums / batch.response_lengths).float().cpu()
        return pd.Series(entropies.numpy())
