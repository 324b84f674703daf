"""Attention for a model that sees one flat sequence of tokens [1, M]; a layout says what each may attend to.

Registered with transformers' `AttentionInterface`, it lets any decoder run through its own forward without padding:
a prompt is computed once for all its responses (training and prefill), and a decoding step reads each row's own
part of a preallocated cache. It is in force only inside `packed_attention(model)`, and refuses a call without a
layout: under a custom name transformers builds no mask, so a padded forward would silently not be causal.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from edge_grpo.errors import UserError

NAME = "edge_grpo_packed"
# Keywords that models hand to every attention function and that change nothing here.
_IGNORED = {
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "is_causal",
    "output_router_logits",
}


@dataclass(frozen=True)
class AttentionOptions:
    """What a layer asks of its attention.

    Args:
        scale: of the scores; None for 1 / sqrt(head size).
        window: a token sees itself and the window - 1 tokens before it; None for all.
        softcap: scores x become softcap * tanh(x / softcap); None for none (Gemma 2).
        dropout: of the probabilities.
    """

    scale: float | None
    window: int | None
    softcap: float | None
    dropout: float


class Layout(Protocol):
    """Who attends to whom in a flat sequence of M tokens."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """[1, H, M, D] queries, and keys and values as the cache returned them -> [M, H, D]."""
        ...


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Called by the layers of the model in place of sdpa."""
    unknown = sorted(name for name, value in others.items() if value is not None and name not in _IGNORED)
    if layout is None or unknown:
        raise UserError(
            f"{type(module).__name__} {f'hands {unknown} to' if unknown else 'keeps the layout from'} its attention: "
            "use rollout=hf algorithm.packing=false for this model"
        )
    options = AttentionOptions(scaling, sliding_window, softcap, dropout)
    return layout.attend(query, key, value, options)[None], None


AttentionInterface.register(NAME, _attention)


@contextmanager
def packed_attention(model: Any, enabled: bool = True) -> Iterator[None]:
    """Inside, `model` attends by the `layout` that its forward is given; afterwards as before.

    Gradient checkpointing runs layers again in the backward pass, which therefore belongs inside too.
    """
    if not enabled:
        yield
        return
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: AttentionOptions,
    *,
    causal: bool = False,
) -> Tensor:
    """Grouped-query attention, [B, H, T, D] on [B, K, L, D] -> [B, H, T, D]; `mask` is additive or None for all.

    `causal`, without a mask, is the causal one of L = T; kernels then pass over what nobody sees. Soft caps want masks.
    """
    if options.softcap is not None:
        return _softcapped(query, key, value, mask, options)
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:  # with a mask, CUDA's fused kernels do not know grouped queries
        repeats = query.shape[1] // key.shape[1]
        key, value, grouped = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), False
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal,
        scale=options.scale,
        dropout_p=options.dropout,
        enable_gqa=grouped,
    )


def _products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None) -> Tensor:
    """The same for few queries a row, [n, K, T, D] on [n, K, L, D], with a mask [n, 1, 1, L].

    Two products that read keys and values where they lie; sdpa's kernel reads them in blocks that it copies first.
    """
    rows, heads, queries, dim = query.shape
    scale = dim**-0.5 if scale is None else scale
    k, v = key.flatten(0, 1), value.flatten(0, 1)
    bias = mask[:, 0].expand(rows, heads, -1).reshape(rows * heads, 1, -1)
    scores = torch.baddbmm(bias, query.reshape(rows * heads, queries, dim), k.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), v).view(rows, heads, queries, v.shape[-1])


def _softcapped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: AttentionOptions) -> Tensor:
    assert options.softcap is not None
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scale = options.scale or query.shape[-1] ** -0.5
    scores = options.softcap * torch.tanh(query @ key.transpose(-1, -2) * scale / options.softcap)
    scores = scores if mask is None else scores + mask
    probabilities = F.dropout(torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype), options.dropout)
    return probabilities @ value


class RowsLayout:
    """One new token a row on a cache [n, K, L, D] of the rows: decoding.

    Args:
        lengths: [n] tokens of each row in the cache, the new one included; row i's token is its last.
        width: L, the longest of them.
    """

    def __init__(self, lengths: Tensor, width: int) -> None:
        self.lengths, self.width = lengths, width
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """See `Layout`. The query heads of a KV head are folded into the sequence axis: no KV head is copied."""
        n, heads, dim = query.shape[2], query.shape[1], query.shape[3]
        folded = query[0].transpose(0, 1).reshape(n, key.shape[1], heads // key.shape[1], dim)
        mask = self._mask(options.window, query.dtype)
        if options.softcap is None and not options.dropout and key.stride(-1) != 1:
            out = _products(folded, key, value, mask, options.scale)
        else:
            out = attend(folded, key, value, mask, options)
        return out.reshape(n, heads, value.shape[-1])

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[n, 1, 1, L], additive; made once for all layers of a kind."""
        if window not in self._masks:
            position = torch.arange(self.width, device=self.lengths.device)
            seen = position < self.lengths[:, None]
            if window is not None:
                seen &= position >= self.lengths[:, None] - window
            self._masks[window] = _additive(seen, dtype)[:, None, None]
        return self._masks[window]


# Rows of a bucket are padded to its longest: one that is shorter than this share of it opens the next bucket.
_SHORTEST_OF_BUCKET = 0.7


class TreesLayout:
    """Prompts, each with the responses that continue it: training, and prefill (without responses).

    The flat sequence holds all prompts, then all responses. A prompt's tokens see the prompt, a response's see the
    prompt and the response, causally. Only attention pads, within buckets of similar lengths; all other layers see
    exactly the M tokens.

    Args:
        prompt_lengths: of the prompts, in flat order, each at least 1.
        response_lengths: of the responses, in flat order, each at least 1.
        prompt_of: the prompt of each response.
        device: of the tokens.
    """

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        response_lengths: Sequence[int],
        prompt_of: Sequence[int],
        device: torch.device,
    ) -> None:
        self.num_prompt_tokens = sum(prompt_lengths)
        self._prompts = [
            _Segments(prompt_lengths[start:stop], sum(prompt_lengths[:start]), device)
            for start, stop in _buckets(prompt_lengths)
        ]
        starts = [0, *torch.tensor(prompt_lengths).cumsum(0).tolist()]
        self._responses = []
        for start, stop in _buckets(response_lengths):
            used = list(dict.fromkeys(prompt_of[start:stop]))
            self._responses.append(
                _Responses(
                    own=_Segments(
                        response_lengths[start:stop], self.num_prompt_tokens + sum(response_lengths[:start]), device
                    ),
                    prompts=_Segments([prompt_lengths[p] for p in used], 0, device, starts=[starts[p] for p in used]),
                    prompt_of=torch.tensor([used.index(p) for p in prompt_of[start:stop]], device=device),
                )
            )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """See `Layout`."""
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        pieces = [prompts.attend(q, k, v, options) for prompts in self._prompts]
        pieces += [responses.attend(q, k, v, options) for responses in self._responses]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _buckets(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs [start, stop) of neighbours of similar lengths."""
    start = 0
    for i, length in enumerate(lengths):
        run = lengths[start:i]
        if run and min(length, *run) < _SHORTEST_OF_BUCKET * max(length, *run):
            yield start, i
            start = i
    if lengths:
        yield start, len(lengths)


class _Segments:
    """B runs of the flat sequence as a padded batch [B, T] and back."""

    def __init__(
        self, lengths: Sequence[int], start: int, device: torch.device, starts: Sequence[int] | None = None
    ) -> None:
        self.size, self.width = len(lengths), max(lengths)
        # All that is asked of lengths is asked on the CPU.
        length = torch.tensor(lengths)
        begin = torch.tensor(starts) if starts else start + length.cumsum(0) - length
        t = torch.arange(self.width)
        valid = t < length[:, None]
        self.even = min(lengths) == self.width
        # A run of equal lengths that lies in one piece needs no index at all.
        whole = self.even and bool((begin == begin[0] + torch.arange(self.size) * self.width).all())
        self.piece = slice(int(begin[0]), int(begin[0]) + self.size * self.width) if whole else None
        self.index = torch.where(valid, begin[:, None] + t, begin[:, None]).flatten().to(device)
        self.unpad = valid.flatten().nonzero().flatten().to(device)
        self.lengths = length.to(device)
        self._masks: dict[int | None, Tensor] = {}

    def padded(self, x: Tensor) -> Tensor:
        """[M, H, D] -> [B, T, H, D]; what stands in the padding is some token of the row."""
        taken = x[self.piece] if self.piece is not None else x.index_select(0, self.index)
        return taken.view(self.size, self.width, *x.shape[1:])

    def flat(self, x: Tensor) -> Tensor:
        """[B, H, T, D] -> [tokens, H, D]"""
        rows = x.transpose(1, 2).reshape(self.size * self.width, x.shape[1], x.shape[3])
        return rows if self.even else rows.index_select(0, self.unpad)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        """Causal within each run; the padding lies behind every token that is kept."""
        q, k, v = (self.padded(x).transpose(1, 2) for x in (q, k, v))
        if options.softcap is None and (options.window is None or options.window >= self.width):
            return self.flat(attend(q, k, v, None, options, causal=True))
        if options.window not in self._masks:
            t = torch.arange(self.width, device=q.device)
            self._masks[options.window] = _additive(_causal(t, t, options.window), q.dtype)
        return self.flat(attend(q, k, v, self._masks[options.window], options))


class _Responses:
    """A bucket of responses, each on its prompt.

    Args:
        own: the responses' tokens.
        prompts: those of their prompts.
        prompt_of: [B], which of `prompts`.
    """

    def __init__(self, own: _Segments, prompts: _Segments, prompt_of: Tensor) -> None:
        self.own, self.prompts, self.prompt_of = own, prompts, prompt_of
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        """Each token on the prompt and on the response up to itself."""
        k, v = (
            torch.cat([self.prompts.padded(x).index_select(0, self.prompt_of), self.own.padded(x)], 1).transpose(1, 2)
            for x in (k, v)
        )
        query = self.own.padded(q).transpose(1, 2)
        return self.own.flat(attend(query, k, v, self._mask(options.window, q.dtype), options))

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[B or 1, 1, T, S + T], additive."""
        if window not in self._masks:
            lengths = self.prompts.lengths[self.prompt_of]
            lengths = lengths[:1] if self.prompts.even else lengths
            t = torch.arange(self.own.width, device=lengths.device)
            s = torch.arange(self.prompts.width, device=lengths.device)
            here = lengths[:, None] + t  # [B, T], positions of the response's tokens
            prompt = (s < lengths[:, None])[:, None] & _causal(here, s.expand(len(lengths), -1), window)
            response = _causal(here, here, window)
            self._masks[window] = _additive(torch.cat([prompt, response], -1), dtype)[:, None]
        return self._masks[window]


def _causal(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Positions [.., T] and [.., L] -> [.., T, L] bool, who sees whom."""
    distance = query[..., :, None] - key[..., None, :]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
