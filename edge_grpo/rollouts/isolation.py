"""What another library may do to this process, undone afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """Outside of autocast; afterwards global generators, threads and default dtype are as before."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    threads, set_threads, dtype = torch.get_num_threads(), torch.set_num_threads, torch.get_default_dtype()
    gpus = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=gpus), torch.autocast(device.type, enabled=False), torch.no_grad():
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
