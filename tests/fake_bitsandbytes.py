"""A stand-in for the package bitsandbytes: its optimisers' names and arguments, over torch's AdamW."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch


def install(monkeypatch):
    """Let `import bitsandbytes` find it; its module of optimisers."""
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    package.__spec__ = ModuleSpec("bitsandbytes", None)
    package.optim = optim
    for name in ("AdamW8bit", "PagedAdamW8bit", "PagedAdamW32bit"):
        setattr(optim, name, type(name, (torch.optim.AdamW,), {}))
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    return optim
