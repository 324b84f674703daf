"""How a run stands, for those who look at its folder from outside.

Imported by programs that read many runs, so it must stay light: no torch.
"""

import fcntl
import json
from pathlib import Path
from typing import Literal, NamedTuple

FILE = "status.json"

State = Literal["running", "finished", "failed", "stopped", "killed", "unknown"]


class RunStatus(NamedTuple):
    """The state, and the error of a run that failed."""

    state: State
    error: str | None = None


def write_status(folder: Path, state: State, error: str | None = None) -> None:
    """Say how the run stands; where the disk is full it stays as it was."""
    temporary = folder / f"{FILE}.tmp"
    try:
        temporary.write_text(json.dumps({"state": state, "error": error}) + "\n")
        temporary.replace(folder / FILE)
    except OSError:
        temporary.unlink(missing_ok=True)


def read_status(folder: Path) -> RunStatus:
    """How the run stands: "killed" if it says that it is running and no process holds its folder."""
    try:
        written = json.loads((folder / FILE).read_text())
        state = written["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return RunStatus("unknown")
    return RunStatus("killed" if state == "running" and not _held(folder) else state, written.get("error"))


def _held(folder: Path) -> bool:
    """Whether a process holds the lock of the folder (see `resume.alone_in`)."""
    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
