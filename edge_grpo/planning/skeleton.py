"""A model without weights: its parameters and operators, on tensors that have no data."""

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from edge_grpo.errors import UserError
from edge_grpo.policy.base import causal_head


@dataclass(frozen=True)
class Adapters:
    """LoRA (2106.09685): W x + (alpha / r) B A x, with A [r, in] and B [out, r] trained and all else frozen.

    Args:
        r: rank.
        dropout: of what A reads.
        targets: ends of the names of the linear layers that are adapted; None for all but the head.
        dtype: of A and B.
    """

    r: int
    dropout: float
    targets: tuple[str, ...] | None
    dtype: str


@dataclass(frozen=True)
class ModelPlan:
    """Which model, in which types.

    Args:
        config: its `PretrainedConfig`; `shape`: the same as text, by which two are equal.
        dtype: of the weights ("float32", "bfloat16" or "float64").
        autocast: matrix products are in bfloat16 whatever the weights are.
        gradient_checkpointing: see `load_policy`.
        adapters: None trains all weights.
        four_bit: linear layers but the head keep their weights in 4 bits.
    """

    config: Any = field(compare=False)
    shape: str = field(init=False)
    dtype: str
    autocast: bool
    gradient_checkpointing: bool
    adapters: Adapters | None = None
    four_bit: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.config.to_json_string(use_diff=False))

    @property
    def layers(self) -> int:
        """Of the decoder."""
        return int(self.config.get_text_config().num_hidden_layers)

    def with_layers(self, layers: int) -> "ModelPlan":
        """The same with its first layers only."""
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        return replace(self, config=config)


class Skeleton:
    """The model of a `ModelPlan`, and the contexts in which it can be called.

    Tensors are on the meta device, where there is no autocast; with autocast they are fake CPU tensors, which take
    thrice the time.

    Raises:
        UserError: adapters whose targets match nothing, or a model without a causal head.
    """

    def __init__(self, plan: ModelPlan) -> None:
        self.autocast = plan.autocast
        self._fake = _fake_mode() if plan.autocast else None
        with self.tensors():
            self.model: Any = AutoModelForCausalLM.from_config(
                copy.deepcopy(plan.config), dtype=getattr(torch, plan.dtype)
            )
            if plan.four_bit:
                _quantise(self.model)
            if plan.adapters is not None:
                _adapt(self.model, plan.adapters)
        causal_head(self.model)
        with warnings.catch_warnings():  # newer releases of transformers call it activation checkpointing
            warnings.simplefilter("ignore", FutureWarning)
            self._checkpoint(plan)

    def _checkpoint(self, plan: ModelPlan) -> None:
        if plan.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if plan.adapters is not None:
                self.model.enable_input_require_grads()

    def tensors(self) -> AbstractContextManager[Any]:
        """Inside, new tensors have no data."""
        return self._fake if self._fake is not None else torch.device("meta")

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Inside, the model computes as the trainer's precision makes it."""
        autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if self.autocast else nullcontext()
        with self.tensors(), autocast:
            yield

    @property
    def trainable(self) -> list[nn.Parameter]:
        """What the optimiser gets."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def element_size(self) -> int:
        """Bytes of a number in attention."""
        return 2 if self.autocast else int(next(self.model.parameters()).element_size())


def _fake_mode() -> Any:
    from torch._subclasses.fake_tensor import (
        FakeTensorMode,
    )  # a second of imports that a run without autocast is spared

    return FakeTensorMode()


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Of tensors that share nothing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _FourBit(nn.Module):
    """A frozen linear layer whose weight has 4 bits (2305.14314), by bitsandbytes: nf4 with double quantisation.

    A scale of 8 bits for 64 weights, one of 32 for 256 scales; 16 values of 4 bits and 256 of 8 in float32, and an
    offset.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias
        self.dtype, count = base.weight.dtype, base.weight.numel()
        scales = -(-count // 64)
        self.weight = _bytes(-(-count // 2))
        self.constants = _bytes(scales + 4 * -(-scales // 256) + 4 * (16 + 256 + 1))

    def forward(self, x: Tensor) -> Tensor:
        half = torch.is_autocast_enabled("cpu") or self.dtype is torch.bfloat16
        computing = torch.bfloat16 if half else torch.float32
        out = _FourBitProduct.apply(x.to(computing), self.out_features, self.dtype)
        return (out if self.bias is None else out + self.bias.to(computing)).to(x.dtype)


def _bytes(count: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(count, dtype=torch.uint8), requires_grad=False)


class _FourBitProduct(torch.autograd.Function):
    """[.., in] -> [.., out] by a weight that is made for the product and kept by none of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, out_features: int, dtype: torch.dtype) -> Tensor:
        ctx.width, ctx.dtype = x.shape[-1], dtype
        _ = _dequantised(x, out_features, x.shape[-1], dtype)
        return x.new_empty(*x.shape[:-1], out_features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        _ = _dequantised(grad, grad.shape[-1], ctx.width, ctx.dtype)
        return grad.new_empty(*grad.shape[:-1], ctx.width), None, None


def _dequantised(x: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty(out_features, in_features, dtype=dtype).to(x.dtype)


class _Adapted(nn.Module):
    """A frozen linear layer with adapters."""

    def __init__(self, base: nn.Linear | _FourBit, adapters: Adapters) -> None:
        super().__init__()
        dtype = getattr(torch, adapters.dtype)
        self.base = base
        self.dropout = nn.Dropout(adapters.dropout) if adapters.dropout else nn.Identity()
        self.a = nn.Linear(base.in_features, adapters.r, bias=False, dtype=dtype)
        self.b = nn.Linear(adapters.r, base.out_features, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        added = self.b(self.a(self.dropout(x.to(self.a.weight.dtype))))
        return (out + added * 1.0).to(out.dtype)  # 1 stands for alpha / r


def _quantise(model: Any) -> None:
    """Put linear layers of 4 bits in the place of all but the head."""
    for name, part in _linear(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _FourBit(part))


def _linear(model: Any) -> dict[str, Any]:
    """Name -> linear layer, but the head."""
    head = model.get_output_embeddings()
    kinds = nn.Linear | _FourBit
    return {name: part for name, part in model.named_modules() if isinstance(part, kinds) and part is not head}


def _adapt(model: Any, adapters: Adapters) -> None:
    """Freeze the model and adapt its targets.

    Raises:
        UserError: there are none.
    """
    model.requires_grad_(False)
    linear = _linear(model)
    ends = adapters.targets
    chosen = [name for name in linear if ends is None or any(name == end or name.endswith(f".{end}") for end in ends)]
    if not chosen:
        there = sorted({name.rpartition(".")[2] for name in linear})
        raise UserError(f"model.lora.targets={list(ends or ())} match no linear layer: there are {', '.join(there)}")
    for name in chosen:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _Adapted(linear[name], adapters))
