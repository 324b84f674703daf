"""A model whose weights are spread over the ranks by FSDP2: whole for a while, or gathered layer by layer.

FSDP2 gathers weights in hooks of a module's own call, and the head and the decoder of a causal model share the root's
weights. So whatever reads them with a gradient runs inside one call of the root (`through_root`); whatever runs without
one, as often as each rank likes (a rollout, the reference's log-probs), runs while every rank holds all weights
(`whole`). An engine with weights of its own gets them tensor by tensor (`full`), so that a rank never holds all of them
beside the engine's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from edge_grpo.errors import UserError

_whole: "WeakSet[Any]" = WeakSet()
"""models that are whole at this moment"""
_parts: "WeakKeyDictionary[Any, tuple[DTensor, ...]]" = WeakKeyDictionary()
"""this rank's parts of a model's weights, which do not hang on it while they are gathered"""
_steps: "WeakKeyDictionary[Any, int]" = WeakKeyDictionary()
"""of all optimisers since the model was sharded"""


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
    _parts[model], _steps[model] = tuple(model.parameters()), 0


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


def take_apart(model: Any) -> None:
    """Leave each rank its parts again: a call without a gradient gathers the root's weights and keeps them.

    Nothing happens inside `whole`, and where the model is not sharded.
    """
    if is_sharded(model) and model not in _whole:
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def is_whole(model: Any) -> bool:
    """Whether plain tensors can be read off it."""
    return not is_sharded(model) or model in _whole


def written(model: Any) -> tuple[int, ...]:
    """Another value after every write to a model's weights that torch counts, and after no gathering of them."""
    if not is_sharded(model):
        return tuple(number for p in model.parameters() for number in (p.data_ptr(), p._version))
    # A write counts on the DTensor, one that goes past it on the tensor inside, and one of `foreach` on neither.
    counts = (number for part in _parts[model] for number in (part._version, part.to_local()._version))
    return (_steps[model], *counts)


def _count_step(*_: Any) -> None:
    for model in _steps:
        _steps[model] += 1


register_optimizer_step_post_hook(_count_step)


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
    """The whole of a tensor of which each rank holds a part; all ranks call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
