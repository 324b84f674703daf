"""Everything runs offline, on one thread (a busy neighbour slows a 2-thread decode tenfold) and in float32.

torch is imported by what needs it and not here: the process that hands the tests to workers needs none.
"""

import functools
import gc
import importlib.metadata
import os
import sys

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", TOKENIZERS_PARALLELISM="false")

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from edge_grpo.policy.base import Policy

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: to look through it for garbage is a third of the time of collecting."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _quick_hydra() -> Iterator[None]:
    from quick_hydra import quick_hydra

    with quick_hydra():
        yield


@pytest.fixture(scope="session", autouse=True)
def _installed_packages() -> Iterator[None]:
    """What is installed stays: a run asks for versions, and Lightning goes through every package for each trainer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "version", functools.cache(importlib.metadata.version))
        if lightning := sys.modules.get("lightning_fabric.utilities.registry"):
            patch.setattr(lightning, "entry_points", functools.cache(lightning.entry_points))
        yield


@pytest.fixture(scope="session", autouse=True)
def _trackio_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """trackio keeps the data of one folder a process."""
    os.environ["TRACKIO_DIR"] = str(tmp_path_factory.mktemp("trackio"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"real data are not there: {SHARED}")
    return SHARED


@pytest.fixture
def policy() -> "Policy":
    """An untrained policy, small enough to decode in milliseconds."""
    from edge_grpo.policy.tiny import random_tiny_policy

    return random_tiny_policy(seed=0, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=64)
