"""Rollout through transformers' `generate`: the slow reference for any model that `generate` can decode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from edge_grpo.policy.base import Policy, causal_head
from edge_grpo.policy.finite import check_finite
from edge_grpo.rollouts.base import Drawn, Ends, Rows, Sampling, SamplingEngine, choose, sampled_response
from edge_grpo.types.responses import Response


class HFRollout(SamplingEngine):
    """`generate` on left-padded prompts, every row decoded until the longest one ends.

    The tokens are drawn by the project's own sampler inside a logits processor (all mass goes to the drawn token),
    so that both engines share seeds and sampling log-probs; budgets and stop strings are enforced by cutting.

    Args: as `SamplingEngine`.
    """

    def _decode(self, policy: Policy, rows: Rows) -> list[Response]:
        """See `SamplingEngine._decode`."""
        causal_head(policy.model)
        size = self._places(policy.model, rows)
        responses: list[Response] = []
        for start in range(0, len(rows.prefixes), size):
            some = slice(start, start + size)
            responses += self._batch(
                policy, Rows(rows.prefixes[some], rows.budgets[some], rows.uniforms[some], rows.sampling)
            )
        return responses

    def _batch(self, policy: Policy, rows: Rows) -> list[Response]:
        prefixes, budgets = rows.prefixes, rows.budgets
        device = policy.model.device
        width = max(map(len, prefixes))
        ids = torch.tensor([[policy.pad_id] * (width - len(p)) + list(p) for p in prefixes], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prefixes], device=device)
        draw = _Draw(rows.uniforms.to(device), rows.sampling)
        with _own_settings(policy, max(budgets)) as settings:
            out = policy.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList([draw]),
                synced_gpus=False,  # ranks decode for themselves, a sharded model too: it is whole then
                **self._stopping(policy),
            )
        tokens = out[:, width:].cpu()
        logprobs, entropies = (torch.stack(x, dim=1).cpu() for x in (draw.logprobs, draw.entropies))
        ends = Ends(policy, self.stop_strings)
        responses = []
        for row, budget in enumerate(budgets):
            length, stopped = _first_end(tokens, row, min(budget, tokens.shape[1]), ends)
            responses.append(
                sampled_response(tokens[row, :length], logprobs[row, :length], entropies[row, :length], stopped=stopped)
            )
        return responses

    def _stopping(self, policy: Policy) -> dict[str, Any]:
        if not self.stop_strings:
            return {}
        return {"stop_strings": list(self.stop_strings), "tokenizer": policy.tokenizer}


@contextmanager
def _own_settings(policy: Policy, budget: int) -> Iterator[GenerationConfig]:
    """Inside, the model's generation config is ours: `generate` fills from it what it is not told (beams, say)."""
    model = policy.model
    before = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=budget, do_sample=False, eos_token_id=list(policy.eos_ids), pad_token_id=policy.pad_id
    )
    try:
        yield model.generation_config
    finally:
        model.generation_config = before


class _Draw(LogitsProcessor):
    """Replaces each row's logits by certainty of the token that our sampler draws, and records what it drew from."""

    def __init__(self, uniforms: Tensor, sampling: Sampling) -> None:
        self.uniforms, self.sampling = uniforms, sampling
        self.logprobs: list[Tensor] = []
        self.entropies: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn: Drawn = choose(scores, self.uniforms[:, len(self.logprobs)], self.sampling)
        check_finite(drawn.top)
        self.logprobs.append(drawn.logprobs)
        self.entropies.append(drawn.entropies)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn.tokens[:, None], 0.0)


def _first_end(tokens: Tensor, row: int, budget: int, ends: Ends) -> tuple[int, bool]:
    """Length of a row up to its end or its budget, and whether it ended."""
    counts = torch.arange(1, budget + 1)
    ended = ends(tokens, torch.full_like(counts, row), counts).nonzero()
    return (int(ended[0]) + 1, True) if len(ended) else (budget, False)
