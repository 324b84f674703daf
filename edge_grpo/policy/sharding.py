"""A model whose weights are spread over the ranks by FSDP2: whole for a while, or gathered layer by layer.

FSDP2 gathers weights in hooks of a module's own call, and the head and the decoder of a causal model share the root's
weights. So whatever reads them with a gradient runs inside one call of the root (`through_root`); whatever runs without
one, as often as each rank likes (a rollout, the reference's log-probs), runs while every rank holds all weights
(`whole`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from edge_grpo.errors import UserError

_whole: "WeakSet[Any]" = WeakSet()
"""models that are whole at this moment"""
_times: "WeakKeyDictionary[Any, int]" = WeakKeyDictionary()


def shard(model: Any, mesh: Any) -> None:
    """Leave each rank its part of every weight, layer by layer; the model stays the same object.

    Args:
        model: a causal model of transformers, in its final precision.
        mesh: one-dimensional, of all ranks.

    Raises:
        UserError: transformers does not say which of its modules are layers.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(f"trainer.strategy=fsdp2: {type(model).__name__} does not name its layers; use trainer=ddp")
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: Any) -> bool:
    """Whether `shard` was called on it."""
    return isinstance(model, FSDPModule)


@contextmanager
def whole(model: Any) -> Iterator[None]:
    """Inside, every rank holds all weights as plain tensors, for passes without a gradient; all ranks enter together.

    Nothing happens where the model is not sharded, or is whole already.
    """
    if not is_sharded(model) or model in _whole:
        yield
        return
    through_root(model, tuple)  # a root must be called before its layers
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    _whole.add(model)
    _times[model] = _times.get(model, 0) + 1
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    finally:
        _whole.discard(model)
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def is_whole(model: Any) -> bool:
    """Whether plain tensors can be read off it."""
    return not is_sharded(model) or model in _whole


def times_whole(model: Any) -> int:
    """How often it was gathered: torch's count of writes to its whole tensors knows none of those to its parts."""
    return _times.get(model, 0)


def whole_state(model: Any) -> dict[str, torch.Tensor]:
    """The state dict of a sharded model that is whole: its own is of this rank's parts, and takes it apart again."""
    assert model in _whole
    buffers = {
        f"{prefix}.{name}".lstrip("."): buffer
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }
    return {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)} | buffers


def through_root(model: Any, compute: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """`compute()`, run inside a call of the model, with the root's weights gathered and a graph through FSDP2's hooks.

    Every rank has to call it equally often.
    """
    own = model.forward

    def forward() -> tuple[torch.Tensor, ...]:
        model.forward = own  # `compute` may call the model itself
        return compute()

    model.forward = forward
    try:
        return model()
    finally:
        model.forward = own


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor of which each rank holds a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
