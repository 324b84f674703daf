"""Cores and a GPU for each job of a sweep whose jobs run beside each other; before torch is imported, it reads them."""

import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DRIVER = Path("/proc/driver/nvidia/gpus")
_held: list[int] = []  # descriptors, open until the process ends


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES lists, or else all GPUs of the machine, by number."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    return [str(i) for i, _ in enumerate(DRIVER.iterdir())] if DRIVER.is_dir() else []


def take_cores(launcher: Any) -> int | None:
    """Set OMP_NUM_THREADS to the cores that a job has, if it is not lower already; None where that is not known.

    Two jobs that share a thread are several times slower than one.

    Args:
        launcher: `hydra.launcher`.
    """
    name = str(launcher._target_).rpartition(".")[2]
    if name == "JoblibLauncher":
        jobs, cores = int(launcher.n_jobs), len(os.sched_getaffinity(0))
        share = 1 if jobs < 1 else max(1, cores // jobs)
    elif name == "LocalLauncher":  # starts all jobs at once
        share = launcher.cpus_per_task or 1
    elif name == "SlurmLauncher":
        share = launcher.cpus_per_task
    elif name == "RayLauncher":
        share = launcher.ray.remote.get("num_cpus") or 1
    else:
        share = None
    if share is None:
        return None
    threads = max(1, min(int(share), int(os.environ.get("OMP_NUM_THREADS") or share)))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return threads


def take_gpu(launcher: Any) -> str | None:
    """Leave this process one GPU of this machine, by CUDA_VISIBLE_DEVICES, that fewest other jobs of this user have.

    Jobs that are more than the GPUs share them evenly. A process keeps its GPU until it ends, so the workers of a
    launcher take one each for all their jobs. Slurm and Ray give their jobs GPUs themselves.

    Args:
        launcher: `hydra.launcher`.

    Returns:
        The GPU, as CUDA_VISIBLE_DEVICES names it; None where there is no choice.
    """
    gpus = visible_gpus()
    if len(gpus) < 2 or str(launcher._target_).rpartition(".")[2] not in ("JoblibLauncher", "LocalLauncher"):
        return None
    gpu = _first_free(gpus, Path(tempfile.gettempdir()) / f"edge_grpo-gpus-{os.getuid()}")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    return gpu


def _first_free(gpus: Sequence[str], folder: Path) -> str:
    """Hold the lock of a place on a GPU: of the first, the second, ... place on any of them."""
    folder.mkdir(exist_ok=True)
    place = 0
    while True:
        for gpu in gpus:
            lock = os.open(folder / f"{gpu}.{place}".replace("/", "-"), os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            _held.append(lock)
            return gpu
        place += 1
