"""Linear maps on weights in the order in which the processor reads them, for the time of a rollout on a CPU."""

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Float32 weights of fewer elements are left as they are: they stay in the processor's cache, and oneDNN's call costs
# more than the order saves (docs/performance.md).
_FEWEST = 500_000

LinearMap = Callable[[Tensor], Tensor]
"""[.., in] -> [.., out]"""


def is_packed(elements: int, dtype: torch.dtype) -> bool:
    """Whether packing a weight of so many elements makes its products faster on this processor."""
    return _wins(dtype) and (elements >= _FEWEST or dtype is torch.bfloat16)


@cache
def _wins(dtype: torch.dtype) -> bool:
    """Only where it was measured: with AVX-512 in float32, and in bfloat16 with AMX, at every size there.

    Without AMX a product in bfloat16 takes the same time on packed weights.
    """
    wide = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if dtype is torch.bfloat16:
        return wide and torch.cpu._is_amx_tile_supported() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return wide and dtype is torch.float32


def linear_map(weight: Tensor, bias: Tensor | None) -> LinearMap:
    """What `F.linear` with this weight [out, in] and bias [out] does, up to rounding; not differentiable.

    The packed weight is a copy: later changes of `weight` are not seen.
    """
    if not is_packed(weight.numel(), weight.dtype):
        return partial(F.linear, weight=weight, bias=bias)
    packed = _pack(weight.detach())
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def joined_map(layers: Sequence[nn.Linear]) -> LinearMap:
    """Several linear layers of one input as one map: [.., in] -> [.., sum of out], in order."""
    biases = [layer.bias for layer in layers]
    bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
    return linear_map(torch.cat([layer.weight.detach() for layer in layers]), bias)
