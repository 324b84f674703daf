"""The run directory: writable, and one run's alone.

Imported by the command line, so it must stay light: no torch.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_grpo.errors import UserError
from edge_grpo.runs.checkpoints import checkpoints
from edge_grpo.runs.settings import check_settings
from edge_grpo.runs.status import FILE as STATUS
from edge_grpo.runs.status import read_status

FILES_OF_A_RUN = (
    *("metrics.csv", "samples.jsonl", "rollouts*.jsonl", "bad_steps*.jsonl", "bad_rows.txt"),
    *("failed_references.jsonl", "summary.json"),
)
WRITTEN = (
    *FILES_OF_A_RUN,
    *("config.yaml", STATUS, "training.png", "model", "checkpoints", "evaluation", "tensorboard"),
)
"""what a run writes into its folder or deletes there, besides Hydra's and W&B's"""


def check_directory(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a run directory before anything is written into it.

    Raises:
        UserError: it cannot be written, another run is at work there, it holds files that are not a run's of ours but
            would be overwritten, or its run had other settings.
    """
    check_writable(folder)
    if is_first_rank():
        with alone_in(folder):
            check_ours(folder)
            found = checkpoints(folder / "checkpoints")
        resume = config.get("resume") or {}
        if found and not resume.get("start_over") and not resume.get("allow_changes"):
            check_settings(found[-1], config, allow_changes=False)


def check_ours(folder: Path) -> None:
    """Refuse a folder with files of somebody else's that a run would overwrite or delete.

    A run's own folder has the `status.json` that a run writes first. Other files may lie beside a run's.

    Raises:
        UserError: names them.
    """
    if read_status(folder).state != "unknown":
        return
    foreign = sorted(path.name for pattern in WRITTEN for path in folder.glob(pattern))
    if foreign:
        raise UserError(
            f"paths.run_dir={folder}: no run of edge-grpo-train or edge-grpo-sft ({STATUS} is not there), but it holds "
            f"{', '.join(foreign)}, which a run would overwrite: choose another folder (hydra.run.dir)"
        )


def empty(folder: Path) -> None:
    """Delete the files of an earlier run, but for its checkpoints and evaluations."""
    for path in (path for pattern in FILES_OF_A_RUN for path in folder.glob(pattern)):
        path.unlink()


def check_writable(folder: Path) -> None:
    """Make the folder, or say why not.

    Raises:
        UserError: it cannot be made, or nothing may be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error.strerror) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(folder, "not a directory that may be written")


def is_first_rank() -> bool:
    """Whether this process is the one of a run's that owns its directory, by what its launcher says."""
    ranks = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    return not ranks or ranks[0] == "0"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the run directory and hold it; the hold ends with the process at the latest, however that ends.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise _unwritable(folder, error.strerror) from error
    with file:
        try:
            _lock(file)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"paths.run_dir={folder}: another run is at work there ({file.read().strip() or 'just started'}): "
                "wait for it or choose another directory (hydra.run.dir)"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def _lock(file: Any, tries: int = 5) -> None:
    """Take the lock; one who looks at the folder's status holds it for an instant too."""
    for left in reversed(range(tries)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not left:
                raise
            time.sleep(0.05)


def _unwritable(folder: Path, why: str | None) -> UserError:
    return UserError(f"paths.run_dir={folder}: cannot write there ({why}): choose another one (hydra.run.dir)")
