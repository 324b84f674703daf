"""How much memory there is, and running out of it, said in words that help."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edge_grpo.errors import UserError

GIB = 2**30


def device_memory(device: torch.device) -> int:
    """Bytes of a GPU, or of this machine's RAM."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def out_of_memory(*settings: str) -> Iterator[None]:
    """Turn an out-of-memory error, on a GPU or in RAM, into one that names the settings that lower the use.

    Raises:
        UserError: instead of the allocator's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory: lower {', '.join(settings)}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator raised it: torch.OutOfMemoryError on a GPU, a plain RuntimeError on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
