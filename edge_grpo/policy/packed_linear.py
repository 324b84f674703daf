"""Linear maps on weights in the order in which the processor reads them, for the time of a rollout on a CPU."""

import platform
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Float32 weights of fewer elements are left as they are: they stay in the processor's cache, and oneDNN's call costs more
# than the order saves. In bfloat16 the order saves at every size, because torch makes it again in each call.
_FEWEST = 500_000

LinearMap = Callable[[Tensor], Tensor]
"""[.., in] -> [.., out]"""


def can_pack(device: torch.device) -> bool:
    """Whether weights there can be packed: oneDNN on x86, where it was measured to win."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def is_packed(elements: int, dtype: torch.dtype) -> bool:
    """Whether packing a weight of so many elements makes it faster."""
    return dtype is torch.bfloat16 or (dtype is torch.float32 and elements >= _FEWEST)


def linear_map(weight: Tensor, bias: Tensor | None) -> LinearMap:
    """What `F.linear` with this weight [out, in] and bias [out] does, up to rounding; not differentiable.

    The packed weight is a copy: later changes of `weight` are not seen.
    """
    if not is_packed(weight.numel(), weight.dtype):
        return partial(F.linear, weight=weight, bias=bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def joined_map(layers: Sequence[nn.Linear]) -> LinearMap:
    """Several linear layers of one input as one map: [.., in] -> [.., sum of out], in order."""
    biases = [layer.bias for layer in layers]
    bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
    return linear_map(torch.cat([layer.weight.detach() for layer in layers]), bias)
