"""What stands for attention and the head while memory is counted: they keep and make what the real ones do.

The real ones read lengths out of tensors, which a tensor without data cannot tell, and their kernels keep for the
backward pass what the plain operators behind them would not.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edge_grpo.planning.live_memory import LiveMemory
from edge_grpo.policy.packed_attention import AttentionOptions


@dataclass(frozen=True)
class Microbatch:
    """Groups of equal lengths: the micro-batch that takes the most memory.

    Args:
        rows: responses.
        prompts: prompts, each shared by rows / prompts responses.
        prompt_tokens: S of each prompt; `response_tokens`: T of each response.
        on_gpu: where attention copies keys and values for every query head that reads them.
    """

    rows: int
    prompts: int
    prompt_tokens: int
    response_tokens: int
    on_gpu: bool

    @property
    def tokens(self) -> int:
        """M: all tokens of the forward pass."""
        return self.prompts * self.prompt_tokens + self.rows * self.response_tokens

    @property
    def keys(self) -> int:
        """Keys that queries attend to: those of the prompts, and for each response its prompt's and its own."""
        return self.prompts * self.prompt_tokens + self.rows * (self.prompt_tokens + self.response_tokens)

    def mask_bytes(self, element_size: int) -> int:
        """The additive masks, made once for all layers.

        [S, S] of the prompts, [T, S + T] of the responses: one for all where prompts are equally long, which only those
        of one group surely are.
        """
        s, t = self.prompt_tokens, self.response_tokens
        return element_size * (s * s + (1 if self.prompts == 1 else self.rows) * t * (s + t))


class CountedLayout:
    """Stands for `TreesLayout`, and records how large keys and values are.

    Args:
        microbatch: who attends to whom; None where nothing is kept (a pass without gradient).
    """

    def __init__(self, microbatch: Microbatch | None) -> None:
        self.microbatch = microbatch
        self.kv_bytes = 0
        """of one token in all layers that have attended so far, in the types that a cache would hold"""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """See `Layout.attend`."""
        self.kv_bytes += sum(x.shape[1] * x.shape[3] * x.element_size() for x in (key, value))
        out: Tensor = _Attention.apply(query, key, value, self.microbatch)
        return out


class _Attention(torch.autograd.Function):
    """A fused kernel: of its scores it keeps one number a query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, microbatch: Microbatch | None) -> Tensor:
        dtype = _autocast_dtype(query)
        _, heads, tokens, _ = query.shape
        keys, copies = tokens, key.shape[1]
        if microbatch is not None:
            keys, copies = microbatch.keys, heads if microbatch.on_gpu else copies
        asked = query.to(dtype)
        of_rows = [x.new_empty(keys, copies, x.shape[3], dtype=dtype) for x in (key, value)]
        out = query.new_empty(tokens, heads, value.shape[3], dtype=dtype)
        normaliser = query.new_empty(tokens, heads, dtype=torch.float32)
        ctx.save_for_backward(asked, *of_rows, out, normaliser)
        ctx.like = [(x.shape, x.dtype) for x in (query, key, value)]
        return out.clone()  # in the order of the flat tokens again

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        kept = ctx.saved_tensors
        of_kernel = [torch.empty_like(x) for x in kept[:3]]
        gradients = [grad.new_empty(shape, dtype=dtype) for shape, dtype in ctx.like]
        del of_kernel
        return (*gradients, None)


def _autocast_dtype(tensor: Tensor) -> torch.dtype:
    """In which the tensor enters attention."""
    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device)


_BLOCK = 1 << 20
"""entries of logits that `Head` works on at once, with three results of that size"""


class CountedHead(torch.autograd.Function):
    """Stands for `policy.head.Head`: [R, H] states -> [R] log-probs; its logits count as `memory.apart()`."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, settings: "HeadSettings") -> Tensor:
        with settings.memory.apart():
            _logits(states, weight, settings.chunk_tokens)
        ctx.save_for_backward(states, weight)
        ctx.settings = settings
        return states.new_empty(len(states), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        states, weight = ctx.saved_tensors
        settings, wide = ctx.settings, _wide(weight)
        for_states, made = torch.empty_like(states), None
        there = weight.grad is not None and weight.grad.dtype == wide and settings.in_place
        if ctx.needs_input_grad[1] and not there:
            made = weight.new_empty(weight.shape, dtype=wide)
        with settings.memory.apart():
            logits = _logits(states, weight, settings.chunk_tokens)
            if settings.on_gpu and states.dtype != wide:  # products of half precision have results of their own
                _ = logits.to(states.dtype), weight.new_empty(weight.shape, dtype=wide)
            del logits
        return for_states, None if made is None else made.to(weight.dtype), None


@dataclass(frozen=True)
class HeadSettings:
    """How the head goes through its states.

    Args:
        chunk_tokens, in_place: see `Head`.
        on_gpu: where it computes.
        memory: that counts.
    """

    chunk_tokens: int
    in_place: bool
    on_gpu: bool
    memory: LiveMemory


def _logits(states: Tensor, weight: Tensor, chunk: int) -> Tensor:
    """The buffer of one chunk, after the blocks have been worked on."""
    logits = states.new_empty(min(chunk, len(states)), len(weight), dtype=_wide(weight))
    logits.new_empty(3, min(_BLOCK, logits.numel()))
    return logits


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
