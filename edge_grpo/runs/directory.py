"""The run directory: writable, and one run's alone.

Imported by the command line, so it must stay light: no torch.
"""

import fcntl
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_grpo.errors import UserError
from edge_grpo.runs.ownership import check_ours, check_results_ours
from edge_grpo.runs.resume import newest_checkpoint, what_is_left


def check_directory(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a run directory before anything is written into it.

    Raises:
        UserError: it holds files that are not a run's of ours but would be overwritten, it cannot be written, another
            run is at work there, or its run cannot go on as the config says (see `what_is_left`).
    """
    if not is_first_rank():
        check_writable(folder)
        return
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
