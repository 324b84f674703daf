"""Policy entropy of finished responses."""

from dataclasses import dataclass

import pandas as pd
import torch

from edge_grpo.corrections.base import UNIFORM_WEIGHT
from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy, eval_mode
from edge_grpo.policy.batching import microbatches, packed_microbatches, to_update_batch
from edge_grpo.policy.memory import out_of_memory
from edge_grpo.policy.packed_attention import packed_attention
from edge_grpo.policy.support import check_head, check_packed
from edge_grpo.policy.token_stats import token_stats
from edge_grpo.types import Rollout


@dataclass(frozen=True)
class ResponseEntropy:
    """P_i = mean over the response's tokens of the full-vocabulary entropy in nats (2507.21848, eq. 3).

    Of the distribution at temperature 1, whatever the responses were sampled at: at a low temperature every entropy
    is near 0 and tells nothing. One forward pass over the finished responses.

    Args:
        microbatch_tokens: bound on the tokens of one forward pass.
        chunk_tokens: tokens whose logits are in memory at once.
        packing: see `PolicyModule`.

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

    @torch.no_grad()
    def __call__(self, policy: Policy, rollout: Rollout) -> pd.Series:
        """[N] nats a token; NaN for a response without tokens."""
        rows = [row for row, response in enumerate(rollout.responses) if len(response)]
        entropies = torch.full((rollout.num_rows,), torch.nan, dtype=torch.float32)
        if not rows:
            return pd.Series(entropies.numpy())
        device = policy.model.device
        batch = to_update_batch(rollout, rows, token_weight=UNIFORM_WEIGHT, pad_id=policy.pad_id, device=device)
        memory = out_of_memory("entropy.microbatch_tokens", "entropy.chunk_tokens")
        with eval_mode(policy.model), packed_attention(policy.model, self.packing), memory:
            for cut in self._cuts(rollout, rows):
                part = batch.select(cut.to(device))
                stats = token_stats(
                    policy.model, part, temperature=1.0, chunk_tokens=self.chunk_tokens, packing=self.packing
                )
                means = stats.entropy.sum(1) / part.response_lengths
                entropies[[rows[i] for i in cut.tolist()]] = means.float().cpu()
        return pd.Series(entropies.numpy())

    def _cuts(self, rollout: Rollout, rows: list[int]) -> list[torch.Tensor]:
        prompts = [len(rollout.problem_of(row).prompt_ids) for row in rows]
        responses = [len(rollout.responses[row]) for row in rows]
        if not self.packing:
            return microbatches(torch.tensor(prompts) + torch.tensor(responses), self.microbatch_tokens)
        problems = [row // rollout.num_generations for row in rows]
        return packed_microbatches(prompts, responses, problems, self.microbatch_tokens)
