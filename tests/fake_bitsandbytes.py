"""A stand-in for the package bitsandbytes: its optimisers over torch's AdamW, and a linear layer of 4 bits."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch


def install(monkeypatch):
    """Let `import bitsandbytes` find it; its module of optimisers."""
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    functional = ModuleType("bitsandbytes.functional")
    functional.dequantize_4bit = dequantize_4bit
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
    package.__spec__ = ModuleSpec("bitsandbytes", None)
    package.optim = optim
    for name in ("AdamW8bit", "PagedAdamW8bit", "PagedAdamW32bit"):
        setattr(optim, name, type(name, (torch.optim.AdamW,), {}))
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    return optim


class State:
    """What scales the 4 bits of a weight: the largest number of each row."""

    def __init__(self, weight):
        self.absmax, self.dtype = weight.abs().amax(1), weight.dtype
        self.shape = weight.shape

    def as_dict(self, packed):
        return {"absmax": self.absmax}


class Params4bit(torch.nn.Parameter):
    """Two whole numbers from 0 to 15 a byte."""

    quant_state = None


def dequantize_4bit(data, state):
    """[out, in], k / 7.5 - 1 of the row's largest for a number k."""
    numbers = torch.cat([data // 16, data % 16], 1).view(state.shape)
    return ((numbers.to(state.dtype) / 7.5 - 1) * state.absmax[:, None]).contiguous()


class Linear4bit(torch.nn.Linear):
    """A linear layer that has its weight in 4 bits."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        state, weight = State(layer.weight.detach()), layer.weight.detach()
        numbers = ((weight / state.absmax[:, None] + 1) * 7.5).round().to(torch.uint8).view(-1, 2)
        self.weight = Params4bit((numbers[:, :1] * 16 + numbers[:, 1:]), requires_grad=False)
        self.weight.quant_state, self.bias, self.compute_dtype = state, layer.bias, None

    def forward(self, x):
        dtype = self.compute_dtype or x.dtype
        weight = dequantize_4bit(self.weight.data, self.weight.quant_state)
        bias = None if self.bias is None else self.bias.to(dtype)
        return torch.nn.functional.linear(x.to(dtype), weight.to(dtype), bias).to(x.dtype)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self.weight.quant_state.as_dict(packed=True).items():
            destination[f"{prefix}weight.{name}"] = value


def quantise(model):
    """Give every linear layer but the head such a weight."""
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if type(part) is torch.nn.Linear and part is not model.get_output_embeddings():
                setattr(module, name, Linear4bit(part))
