"""Randomness without state: every draw follows from (seed, stage, rank, iteration).

Because no generator lives longer than one stage of one iteration, a resumed run draws what the uninterrupted
run would have drawn, and no stage can disturb another by drawing more or less.
"""

import hashlib
import random

import numpy as np
import torch


def stage_seed(seed: int, stage: str, *, iteration: int = 0, rank: int = 0, call: int = 0) -> int:
    """A 63-bit seed for one stage of one iteration on one rank.

    Args:
        call: number of the draw, where a stage draws several times in an iteration.

    >>> stage_seed(0, "rollout", iteration=1) == stage_seed(0, "rollout", iteration=1)
    True
    >>> stage_seed(0, "rollout", iteration=1) == stage_seed(0, "correction", iteration=1)
    False
    >>> stage_seed(0, "reflection", call=0) == stage_seed(0, "reflection", call=1)
    False
    """
    key = "/".join(map(str, (seed, stage, iteration, rank, *([call] if call else []))))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def stage_generator(seed: int, stage: str, *, iteration: int = 0, rank: int = 0, call: int = 0) -> torch.Generator:
    """A CPU generator seeded by `stage_seed`; draw on the CPU and move, so that devices agree."""
    return torch.Generator().manual_seed(stage_seed(seed, stage, iteration=iteration, rank=rank, call=call))


def seed_globals(seed: int, *, iteration: int, rank: int) -> None:
    """Seed the generators of Python, numpy and torch for one iteration on one rank.

    They serve what does not ask for a generator of its own, such as dropout or a user's strategy.
    """
    number = stage_seed(seed, "globals", iteration=iteration, rank=rank)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)
