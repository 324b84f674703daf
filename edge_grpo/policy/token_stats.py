"""Log-probability and entropy of response tokens from one forward pass.

The head runs on the hidden states that predict response tokens only: no position of a prompt or of padding is
projected to the vocabulary, and logits exist for one chunk of tokens at a time.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_grpo.policy.base import decoder
from edge_grpo.policy.head import Head
from edge_grpo.policy.varlen_attention import trees_layout
from edge_grpo.types.update import UpdateBatch


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
    model: Any,
    batch: UpdateBatch,
    *,
    temperature: float,
    chunk_tokens: int,
    packing: bool,
    entropy_grad: bool = False,
    every_position: bool = False,
) -> TokenStats:
    """Forward `batch` once and return its `TokenStats`.

    Args:
        model: causal language model; with `packing`, inside `packed_attention(model)`.
        batch: rows on the model's device.
        temperature: of the rollout; logits are divided by it (as TRL does), so that the importance ratio is
            between the distributions that were sampled from.
        chunk_tokens: tokens whose logits are in memory at once.
        packing: compute a prompt once for all its rows, and no padding. False runs padded rows through the model's
            own attention.
        entropy_grad: keep a graph through the entropy (only the official EDA wants it).
        every_position: also fill the [N, T] positions past a response's end, whose tokens are padding (only
            the official EDA reads them); not with `packing`.
    """
    if packing and every_position:
        raise ValueError("a packed forward has no positions past a response's end")
    wanted = torch.ones_like(batch.completion_mask) if every_position else batch.completion_mask
    hidden, source = _packed(model, batch) if packing else _padded(model, _widened(batch) if every_position else batch)
    states = hidden.index_select(0, source[wanted])  # [M, H]
    head = Head.of(model, temperature, chunk_tokens)
    # Under DDP the gradient has to pass the reducer's hooks, so it is returned.
    logprobs, entropies = head(
        states,
        batch.response_tokens[wanted],
        entropy_grad=entropy_grad,
        in_place=head.weight.is_leaf and not torch.distributed.is_initialized(),
    )
    return TokenStats(_scatter(logprobs, wanted), _scatter(entropies, wanted))


def _widened(batch: UpdateBatch) -> UpdateBatch:
    """With padding enough that every row, the one with the longest prompt too, has T positions behind its prompt."""
    width = int(batch.prompt_lengths.max()) + batch.token_weights.shape[1]
    missing = max(width - batch.tokens.shape[1], 0)
    return replace(batch, tokens=F.pad(batch.tokens, (0, missing), value=batch.pad_id))


def _padded(model: Any, batch: UpdateBatch) -> tuple[Tensor, Tensor]:
    """Hidden states [N * W, H], and the position [N, T] that predicts each response token."""
    hidden = decoder(model)(
        input_ids=batch.tokens, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
    n, width = batch.tokens.shape
    rows = torch.arange(n, device=hidden.device)[:, None] * width
    return hidden.flatten(0, 1), rows + batch.predicting_positions.clamp(max=width - 1)


def _packed(model: Any, batch: UpdateBatch) -> tuple[Tensor, Tensor]:
    """The same from one flat sequence: each prompt once, then each response without its last token."""
    device = batch.tokens.device
    prompt_lengths, response_lengths, keys = torch.stack(
        [batch.prompt_lengths, batch.response_lengths, batch.prompt_keys]
    ).tolist()
    order = sorted(range(batch.num_rows), key=lambda row: -response_lengths[row])
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    prompts = sorted(first, key=lambda key: -prompt_lengths[first[key]])
    inputs = [row for row in order if response_lengths[row] > 1]
    pieces = [batch.tokens[first[p], : prompt_lengths[first[p]]] for p in prompts]
    pieces += [batch.tokens[row, prompt_lengths[row] :][: response_lengths[row] - 1] for row in inputs]
    starts = [0, *torch.tensor([len(piece) for piece in pieces]).cumsum(0).tolist()]
    last_of = {p: starts[i + 1] - 1 for i, p in enumerate(prompts)}
    own = dict(zip(inputs, starts[len(prompts) :], strict=False))
    layout = trees_layout(
        [prompt_lengths[first[p]] for p in prompts],
        [response_lengths[row] - 1 for row in inputs],
        [prompts.index(keys[row]) for row in inputs],
        device,
    )
    offsets = [prompt_lengths[row] for row in inputs]
    position = [torch.arange(len(piece)) for piece in pieces]
    position = position[: len(prompts)] + [
        p + offset for p, offset in zip(position[len(prompts) :], offsets, strict=True)
    ]
    hidden = decoder(model)(
        input_ids=torch.cat(pieces)[None],
        position_ids=torch.cat(position)[None].to(device),
        use_cache=False,
        layout=layout,
    ).last_hidden_state[0]
    before = torch.tensor([own.get(row, 0) - 1 for row in range(batch.num_rows)])
    source = before[:, None] + torch.arange(batch.token_weights.shape[1])
    source[:, 0] = torch.tensor([last_of[key] for key in keys])
    return hidden, source.to(device)


def _scatter(values: Tensor, wanted: Tensor) -> Tensor:
    out = torch.zeros(wanted.shape, dtype=values.dtype, device=wanted.device)
    return out.masked_scatter(wanted, values)
