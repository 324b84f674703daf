"""Prompts with their responses through torch's varlen flash attention: no padding, no mask, no copy of KV heads.

Written from torch's documentation and source, and compared on the CPU through a loop in place of the kernel; it has
run on no GPU yet.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from edge_grpo.policy.packed_attention import AttentionOptions, Layout, TreesLayout

TYPES = (torch.bfloat16, torch.float16)
"""of the numbers that the kernel takes"""
_LARGEST_HEAD = 256
_NEEDED = {"scale", "window_size", "enable_gqa"}


def trees_layout(
    prompt_lengths: Sequence[int], response_lengths: Sequence[int], prompt_of: Sequence[int], device: torch.device
) -> Layout:
    """The fastest layout of these trees on the device; arguments as `TreesLayout`'s."""
    if kernel(device) is None:
        return TreesLayout(prompt_lengths, response_lengths, prompt_of, device)
    return VarlenLayout(prompt_lengths, response_lengths, prompt_of, device)


def kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """`varlen_attn`; None off CUDA, on cards before Ampere, and in versions of torch that know less of it."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    return _varlen_attn()


@lru_cache(maxsize=1)
def _varlen_attn() -> Callable[..., Tensor] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    found: Any = varlen_attn
    return found if inspect.signature(varlen_attn).parameters.keys() >= _NEEDED else None


class VarlenLayout:
    """As `TreesLayout`, by a kernel that knows where sequences begin and end.

    The keys of a response are its prompt's and its own, gathered by index: G * S * K * D entries, a layer at a time.
    The kernel aligns the causal mask to the last key, which is what a response that continues its prompt wants.
    Layers that it does not know (soft caps, dropout, odd heads, float32 outside autocast) go through a `TreesLayout`.

    Args: as `TreesLayout`. All that is asked of lengths is asked on the CPU.
    """

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        response_lengths: Sequence[int],
        prompt_of: Sequence[int],
        device: torch.device,
    ) -> None:
        self._arguments = prompt_lengths, response_lengths, prompt_of, device
        self._trees: TreesLayout | None = None
        lengths = [*prompt_lengths, *response_lengths]
        ends = list(accumulate(lengths))
        runs = [torch.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        first = len(prompt_lengths)
        seen = runs[:first] + [
            torch.cat([runs[prompt], own]) for prompt, own in zip(prompt_of, runs[first:], strict=True)
        ]
        self._longest = max(lengths), max(map(len, seen))
        key_ends = list(accumulate(map(len, seen)))
        self._bounds = tuple(
            torch.tensor([0, *some], dtype=torch.int32).to(device, non_blocking=True) for some in (ends, key_ends)
        )
        # Prompts alone are where they are: no keys are gathered.
        self._keys = torch.cat(seen).to(device, non_blocking=True) if response_lengths else None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """See `Layout`."""
        run, dtype = kernel(query.device), _computed_in(value)
        if run is None or not fits(query, value, dtype, options):
            self._trees = self._trees or TreesLayout(*self._arguments)
            return self._trees.attend(query, key, value, options)
        q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
        if self._keys is not None:
            k, v = k.index_select(0, self._keys), v.index_select(0, self._keys)
        return run(
            q,
            k,
            v,
            *self._bounds,
            *self._longest,
            scale=options.scale,
            window_size=(-1 if options.window is None else options.window - 1, 0),
            enable_gqa=q.shape[1] != k.shape[1],
        )


def fits(query: Tensor, value: Tensor, dtype: torch.dtype, options: AttentionOptions) -> bool:
    """Whether the kernel knows what a layer asks: [1, H, M, D] queries, and values, computed in `dtype`."""
    head = query.shape[-1]
    plain = options.softcap is None and not options.dropout
    return plain and dtype in TYPES and head == value.shape[-1] and head % 8 == 0 and head <= _LARGEST_HEAD


def _computed_in(value: Tensor) -> torch.dtype:
    """Under autocast its type, as torch's own attention has it."""
    device = value.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
