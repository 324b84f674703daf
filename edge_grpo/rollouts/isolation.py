"""What another library may do to this process, undone afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch


@contextmanager
def untouched(device: torch.device, *, eager: bool) -> Iterator[None]:
    """Outside of autocast; afterwards global generators, threads and default dtype are as before.

    Args:
        device: whose generators and autocast.
        eager: inside, torch.compile compiles nothing: vLLM on the CPU compiles single functions by a C++ compiler even
            where its model is eager.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    threads, set_threads, dtype = torch.get_num_threads(), torch.set_num_threads, torch.get_default_dtype()
    gpus = [device] if device.type == "cuda" else []
    stance: Any = torch.compiler.set_stance("force_eager") if eager else nullcontext()
    try:
        with stance, torch.random.fork_rng(devices=gpus), torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_num_threads = set_threads  # vLLM on the CPU puts one there that does nothing
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def seed_everything(seed: int) -> None:
    """The global generators from which an engine without seeds of rows draws; `untouched` puts them back."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
