"""Rollout through transformers' `generate`: the slow reference for any model that `generate` can decode."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from edge_grpo.policy.base import Policy
from edge_grpo.rollout.base import Sampling, choose
from edge_grpo.rollout.native import NativeRollout
from edge_grpo.types import FinishReason, Provenance, Response


class HFRollout(NativeRollout):
    """`generate` on left-padded prompts, every row decoded until the longest one ends.

    The tokens are drawn by the project's own sampler inside a logits processor (all mass goes to the drawn token),
    so that both engines share seeds and behaviour log-probs; budgets are enforced by cutting.

    Args: as `NativeRollout`.
    """

    def _decode(
        self,
        policy: Policy,
        prefixes: Sequence[Sequence[int]],
        budgets: Sequence[int],
        uniforms: Tensor,
        sampling: Sampling,
    ) -> list[Response]:
        """See `NativeRollout._decode`."""
        device = policy.model.device
        width = max(map(len, prefixes))
        ids = torch.tensor([[policy.pad_id] * (width - len(p)) + list(p) for p in prefixes], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prefixes], device=device)
        draw = _Draw(uniforms.to(device), sampling)
        out = policy.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(budgets),
            do_sample=False,
            logits_processor=LogitsProcessorList([draw]),
            eos_token_id=list(policy.eos_ids),
            pad_token_id=policy.pad_id,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=None,
        )
        tokens, logprobs = out[:, width:].cpu(), torch.stack(draw.logprobs, dim=1).cpu()
        return [_response(tokens[i], logprobs[i], budget, policy.eos_ids) for i, budget in enumerate(budgets)]


class _Draw(LogitsProcessor):
    """Replaces each row's logits by certainty of the token that our sampler draws, and records its log-prob."""

    def __init__(self, uniforms: Tensor, sampling: Sampling) -> None:
        self.uniforms, self.sampling = uniforms, sampling
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens, logprobs = choose(scores, self.uniforms[:, len(self.logprobs)], self.sampling)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def _response(tokens: Tensor, logprobs: Tensor, budget: int, eos_ids: tuple[int, ...]) -> Response:
    """Cut a row at its first EOS or at its budget."""
    ends = torch.isin(tokens[:budget], torch.tensor(eos_ids)).nonzero()
    length = int(ends[0]) + 1 if len(ends) else min(budget, len(tokens))
    reason: FinishReason = "stop" if len(ends) else "length"
    provenance = torch.full((length,), Provenance.SAMPLED, dtype=torch.int8)
    return Response(tokens[:length].clone(), logprobs[:length].clone(), provenance, reason)
