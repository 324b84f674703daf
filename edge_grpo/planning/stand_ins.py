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
        on_gpu: where attention in half precision needs no masks (`VarlenLayout`), and any other copies keys and values
            for every query head that reads them.
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

    def mask_bytes(self, element_size: int, *, softcap: bool) -> int:
        """The additive masks, made once for all layers; none where `VarlenLayout` needs none.

        [S, S] of the prompts, [T, S + T] of the responses: one for all where prompts are equally long, which only those
        of one group surely are.
        """
        if self.on_gpu and element_size == 2 and not softcap:
            return 0
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
        out: Tensor = _Attention.apply(query, key, value, self.microbatch, options.softcap is not None)
        return out


class _Attention(torch.autograd.Function):
    """A fused kernel: of its scores it keeps one number a query and head."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, microbatch: Microbatch | None, softcap: bool
    ) -> Tensor:
        dtype = _autocast_dtype(query)
        _, heads, tokens, _ = query.shape
        keys, copies = tokens, key.shape[1]
        if microbatch is not None:
            copied = microbatch.on_gpu and (dtype.itemsize != 2 or softcap)
            keys, copies = microbatch.keys, heads if copied else copies
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
        return (*gradients, None, None)


def _autocast_dtype(tensor: Tensor) -> torch.dtype:
    """In which the tensor enters attention."""
    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device)


_BLOCK = 1 << 20
"""entries of logits that `Head` works on at once on the CPU, with three results of that size; a whole chunk on a GPU"""


class CountedHead(torch.autograd.Function):
    """Stands for `policy.head.Head`: [R, H] states -> [R] log-probs; its logits count as `memory.apart()`."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, settings: "HeadSettings") -> Tensor:
        with settings.memory.apart():
            cast = settings.cast(states, weight)
            _logits(states, weight, settings)
            del cast
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
            cast = settings.cast(states, weight)
            logits = _logits(states, weight, settings)
            if settings.half:  # products of half precision have results of their own
                _ = logits.new_empty(logits.shape, dtype=torch.bfloat16), weight.new_empty(weight.shape, dtype=wide)
            del logits, cast
        return for_states, None if made is None else made.to(weight.dtype), None


@dataclass(frozen=True)
class HeadSettings:
    """How the head goes through its states.

    Args:
        chunk_tokens, in_place: see `Head`.
        on_gpu: where it computes; `half`: there with operands of half precision.
        memory: that counts.
    """

    chunk_tokens: int
    in_place: bool
    on_gpu: bool
    half: bool
    memory: LiveMemory

    def cast(self, *tensors: Tensor) -> list[Tensor]:
        """The operands that are not of half precision, in it."""
        wide = [x for x in tensors if self.half and x.dtype.itemsize != 2]
        return [x.new_empty(x.shape, dtype=torch.bfloat16) for x in wide]


def _logits(states: Tensor, weight: Tensor, settings: HeadSettings) -> Tensor:
    """The buffer of one chunk, after the blocks have been worked on."""
    logits = states.new_empty(min(settings.chunk_tokens, len(states)), len(weight), dtype=_wide(weight))
    logits.new_empty(3, logits.numel() if settings.on_gpu else min(_BLOCK, logits.numel()))
    return logits


def _wide(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
