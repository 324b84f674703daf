"""Decoder layers of Llama and Qwen2 in fewer operators, for the time of a rollout on a CPU.

`fused_layers(model)` replaces the `forward` of these layers on the instance, and that of other linear layers by one on
packed weights. It copies weights, so it is entered after they have changed and left before they change again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from edge_grpo.policy.kv_cache import RowCache
from edge_grpo.policy.packed_attention import AttentionOptions, Layout
from edge_grpo.policy.packed_linear import is_packed, joined_map, linear_map


@contextmanager
def fused_layers(model: Any) -> Iterator[None]:
    """Inside, `model` runs on flat tokens [1, M] with a layout, without gradients, and faster.

    On another device than a CPU, and under autocast, which casts weights in every call, nothing changes.
    """
    if next(model.parameters()).device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        yield
        return
    changed = list(_faster(model))
    try:
        for module in changed:
            faster: Any = _FusedLayer(module) if _is_known(module) else linear_map(module.weight, module.bias)
            module.forward = faster
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def copied_bytes(model: nn.Module) -> int:
    """Bytes of the weights that `fused_layers` copies on a CPU."""
    parts = [part for module in _faster(model) for part in (_copied(module) if _is_known(module) else [module])]
    return sum(part.weight.numel() * part.weight.element_size() for part in parts)


def _faster(model: nn.Module) -> Iterator[Any]:
    """The modules that get another `forward`."""
    for module in model.children():
        if _is_known(module) or (type(module) is nn.Linear and _is_packed(module)):
            yield module
        else:
            yield from _faster(module)


def _copied(layer: Any) -> list[Any]:
    """The linear layers of a known one that are joined or packed."""
    attention, mlp = layer.self_attn, layer.mlp
    joined = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
    return joined + [part for part in (attention.o_proj, mlp.down_proj) if _is_packed(part)]


def _is_packed(layer: nn.Linear) -> bool:
    return is_packed(layer.weight.numel(), layer.weight.dtype)


def _is_known(layer: Any) -> bool:
    """Whether it is a layer of these two kinds as transformers makes it: no adapters, no hooks, SwiGLU."""
    if type(layer) not in (LlamaDecoderLayer, Qwen2DecoderLayer):
        return False
    parts = list(layer.modules())
    linear = [part for name, part in layer.named_modules() if name.endswith("_proj")]
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return (
        all(type(part) is nn.Linear for part in linear)
        and all(type(norm) in (LlamaRMSNorm, Qwen2RMSNorm) for norm in norms)
        and layer.self_attn.config.hidden_act == "silu"
        and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    )


class _FusedLayer:
    """What the layer's own forward does, with one product for queries, keys and values and one for gate and up."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index, self.head_dim = attention.layer_idx, attention.head_dim
        self.heads = [m.out_features // self.head_dim for m in (attention.q_proj, attention.k_proj)]
        self.options = AttentionOptions(attention.scaling, getattr(attention, "sliding_window", None), None, 0.0)
        self.before_attention, self.before_mlp = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = joined_map((attention.q_proj, attention.k_proj, attention.v_proj))
        self.output = linear_map(attention.o_proj.weight, attention.o_proj.bias)
        self.gate_up = joined_map((mlp.gate_proj, mlp.up_proj))
        self.down = linear_map(mlp.down_proj.weight, mlp.down_proj.bias)

    def __call__(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        layout: Layout,
        cache: RowCache | None = None,
        past_key_values: RowCache | None = None,  # what older releases of transformers call it
        **_: Any,
    ) -> Tensor:
        """[1, M, H] -> [1, M, H]"""
        x = hidden_states[0]
        qkv = self.qkv(self._norm(x, self.before_attention)).view(len(x), -1, self.head_dim)
        rotated = _rotated(qkv[:, : sum(self.heads)], *position_embeddings)
        query, key = (part.transpose(0, 1)[None] for part in rotated.split(self.heads, 1))
        value = qkv[:, sum(self.heads) :].transpose(0, 1)[None]
        kept = cache if past_key_values is None else past_key_values
        if kept is not None:
            key, value = kept.update(key, value, self.index)
        x = x + self.output(layout.attend(query, key, value, self.options).reshape(len(x), -1))
        gate, up = self.gate_up(self._norm(x, self.before_mlp)).chunk(2, -1)
        return x.add_(self.down(F.silu(gate).mul_(up)))[None]

    @staticmethod
    def _norm(x: Tensor, norm: Any) -> Tensor:
        return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[M, heads, D] turned by the angles of their positions, [1, M, D] each (rotary embedding, 2104.09864)."""
    cos, sin, half = cos[0][:, None], sin[0][:, None], x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out
