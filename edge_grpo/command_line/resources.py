"""Cores and a GPU for each job of a sweep whose jobs run beside each other; before torch is imported, it reads them."""

import fcntl
import itertools
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
        share = 1 if jobs < 1 else cores // jobs
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


def take_gpus(launcher: Any, count: int) -> list[str]:
    """Leave this process so many GPUs of this machine, by CUDA_VISIBLE_DEVICES: those that fewest other jobs have.

    Jobs that want more than there are share them evenly. A process keeps its GPUs until it ends, so the workers of a
    launcher take theirs once for all their jobs. Slurm and Ray give their jobs GPUs themselves.

    Args:
        launcher: `hydra.launcher`.
        count: GPUs of the job.

    Returns:
        The GPUs, as CUDA_VISIBLE_DEVICES names them; none where there is no choice, or no longer one.
    """
    gpus = visible_gpus()
    chosen = str(launcher._target_).rpartition(".")[2] in ("JoblibLauncher", "LocalLauncher")
    if _held or not chosen or not 0 < count < len(gpus):
        return []
    taken = _freest(gpus, count, Path(tempfile.gettempdir()) / f"edge_grpo-gpus-{os.getuid()}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
    return taken


def _freest(gpus: Sequence[str], count: int, folder: Path) -> list[str]:
    """Hold the lock of a place on so many GPUs: of the first place on any of them, then the second, ..."""
    folder.mkdir(exist_ok=True)
    taken: list[str] = []
    for place in itertools.count():
        for gpu in gpus:
            if len(taken) < count and gpu not in taken and _locked(folder / f"{gpu}.{place}"):
                taken.append(gpu)
        if len(taken) == count:
            break
    return taken


def _locked(path: Path) -> bool:
    """Whether this process holds the lock from now on."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    _held.append(lock)
    return True
