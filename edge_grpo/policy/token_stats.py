"""Log-probability and entropy of response tokens from one forward pass.

The head runs over chunks of response tokens only: no position of a prompt or of padding is projected to the
vocabulary, and a chunk's [chunk, V] logits are recomputed in the backward pass rather than kept.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edge_grpo.errors import UserError
from edge_grpo.types import UpdateBatch

CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class TokenStats:
    """Statistics of the response tokens under the policy at the rollout temperature.

    Args:
        logprobs: [N, T] float32, log pi(token | prefix); 0 outside the response.
        entropy: [N, T] float32, full-vocabulary entropy in nats of the distribution that the token came from
            (not minus the mean log-prob); 0 outside the response.
    """

    logprobs: Tensor
    entropy: Tensor


def token_stats(
    model: Any, batch: UpdateBatch, *, temperature: float, entropy_grad: bool = False, every_position: bool = False
) -> TokenStats:
    """Forward `batch` once and return its `TokenStats`.

    Args:
        model: causal language model.
        batch: rows on the model's device.
        temperature: of the rollout; logits are divided by it (as TRL does), so that the importance ratio is
            between the distributions that were sampled from.
        entropy_grad: keep a graph through the entropy (only the official EDA wants it).
        every_position: also fill the [N, T] positions past a response's end, whose tokens are padding (only
            the official EDA reads them).
    """
    hidden = model.get_decoder()(
        input_ids=batch.tokens, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
    wanted = torch.ones_like(batch.completion_mask) if every_position else batch.completion_mask
    source = batch.predicting_positions.clamp(max=hidden.shape[1] - 1)  # [N, T]
    rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None].expand_as(source)
    selected = hidden[rows[wanted], source[wanted]]  # [M, H]
    targets = batch.response_tokens[wanted]  # [M]
    head = _Head(model, temperature)
    logprobs, entropies = [], []
    for states, ids in zip(selected.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True):
        if torch.is_grad_enabled():
            logprob, entropy = checkpoint(head, states, ids, entropy_grad, use_reentrant=False)
        else:
            logprob, entropy = head(states, ids, entropy_grad)
        logprobs.append(logprob)
        entropies.append(entropy)
    return TokenStats(_scatter(logprobs, wanted), _scatter(entropies, wanted))


def _scatter(chunks: list[Tensor], wanted: Tensor) -> Tensor:
    out = torch.zeros(wanted.shape, dtype=torch.float32, device=wanted.device)
    if not chunks:
        return out
    values = torch.cat(chunks)
    return out.to(values.dtype).masked_scatter(wanted, values)


class _Head:
    """hidden states [M, H] and token ids [M] -> log-probs [M], entropies [M], in float32 or wider."""

    def __init__(self, model: Any, temperature: float) -> None:
        self.project = model.get_output_embeddings()
        if self.project is None:
            raise UserError(f"{type(model).__name__} has no causal language-model head")
        text_config = model.config.get_text_config()
        if getattr(text_config, "logit_scale", None) not in (None, 1.0):
            raise UserError(f"{type(model).__name__} scales its logits (logit_scale), which is not supported")
        self.softcap = getattr(text_config, "final_logit_softcapping", None)
        self.temperature = temperature

    def __call__(self, states: Tensor, ids: Tensor, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        logits = self.project(states)
        logits = logits.float() if logits.dtype != torch.float64 else logits
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        logp = torch.log_softmax(logits / self.temperature, dim=-1)
        chosen = logp.gather(-1, ids[:, None]).squeeze(-1)
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropy = -(logp.exp() * logp).sum(-1)
        return chosen, entropy
