"""The run directory: writable, and one run's alone.

Imported by the command line, so it must stay light: no torch.
"""

import fcntl
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from edge_grpo.errors import UserError
from edge_grpo.runs.checkpoints import read_manifest
from edge_grpo.runs.ownership import check_ours, check_results_ours
from edge_grpo.runs.resume import newest_checkpoint, what_is_left
from edge_grpo.runs.status import LOCK

log = logging.getLogger(__name__)


def check_directory(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a run directory before anything is written into it.

    Raises:
        UserError: it holds files that are not a run's of ours but would be overwritten, it cannot be written, another
            run is at work there, or its run cannot go on as the config says (see `what_is_left`).
    """
    check_ours(folder)  # before the lock, which is a file too
    check_writable(folder)
    with alone_in(folder):
        what_is_left(folder, config, find=newest_checkpoint)


def check_tool_directory(folder: Path, program: str, written: Collection[str]) -> None:
    """Refuse a directory of a program besides training before anything is written into it.

    Args:
        folder, program, written: see `check_results_ours`.

    Raises:
        UserError: it holds files of others that would be overwritten, or it cannot be written.
    """
    check_results_ours(folder, program, written)
    check_writable(folder)


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


def holder(folder: Path) -> str:
    """What the process that holds the folder has written of itself; empty where there is none."""
    try:
        return (folder / LOCK).read_text()
    except OSError:
        return ""


def check_shared(folder: Path, held: str, checkpoint: Path | None, patience_s: float = 10.0) -> None:
    """Refuse a run directory that is not the one that rank 0 holds, on a rank besides it.

    Args:
        folder: of the run.
        held: rank 0's `holder`.
        checkpoint: that rank 0 goes on from.
        patience_s: a network disk shows a new file late.

    Raises:
        UserError: this machine has another folder of that name or none, or not all of the checkpoint.
    """
    deadline = time.monotonic() + patience_s
    while holder(folder) != held:
        if time.monotonic() > deadline:
            raise UserError(
                f"paths.run_dir={folder} is not the folder that rank 0 ({held.strip()}) has under this name: choose "
                "one on a disk that all nodes share (hydra.run.dir)"
            )
        time.sleep(0.1)
    for name, expected in {} if checkpoint is None else read_manifest(checkpoint)["files"].items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            raise UserError(f"{path} is not there as rank 0 sees it: all ranks read the checkpoint from a shared disk")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make the run directory and hold it; the hold ends with the process at the latest, however that ends.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
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
        except OSError as error:
            log.warning(
                "%s: its disk gives no locks (%s), so nothing keeps a second run out of it: start none there, or mount "
                "it with flock",
                folder,
                error.strerror,
            )
        file.truncate(0)
        # The time makes it the only one: see `check_shared`.
        file.write(f"process {os.getpid()} on {os.uname().nodename} since {datetime.now()}\n")
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
