"""How a run stands, for those who look at its folder from outside.

Imported by programs that read many runs, so it must stay light: no torch.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from edge_grpo.errors import Stopped, message_of

FILE, LOCK = "status.json", ".lock"

State = Literal["running", "finished", "failed", "stopped", "killed", "unknown"]
WRITTEN: tuple[State, ...] = ("running", "finished", "failed", "stopped")
"""states that a run says of itself; the others are seen from outside"""


class RunStatus(NamedTuple):
    """The state, and the error of a run that failed."""

    state: State
    error: str | None = None


def write_status(folder: Path, state: State, error: str | None = None) -> None:
    """Say how the run stands; where the disk is full it stays as it was."""
    with suppress(OSError):
        write_whole(folder / FILE, json.dumps({"state": state, "error": error}) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Under another name first: a reader or a kill never meets half a file.

    Raises:
        OSError: the disk is full; the file is as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_status(folder: Path) -> RunStatus:
    """How the run stands: "killed" if it says that it is running and no process holds its folder."""
    try:
        written = json.loads((folder / FILE).read_text())
        state, error = written["state"], written["error"]
    except (OSError, ValueError, KeyError, TypeError):
        return RunStatus("unknown")
    if state not in WRITTEN:  # of another program
        return RunStatus("unknown")
    return RunStatus("killed" if state == "running" and not _held(folder) else state, error)


@contextmanager
def saying_status(folder: Path) -> Iterator[None]:
    """Say in the run's folder that it runs, and how it ends."""
    write_status(folder, "running")
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        write_status(folder, "stopped")
        raise
    except BaseException as error:
        write_status(folder, "failed", message_of(error))
        raise
    write_status(folder, "finished")


def _held(folder: Path) -> bool:
    """Whether a process holds the lock of the folder (see `directory.alone_in`), or may: some disks give no locks."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
