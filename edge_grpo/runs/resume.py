"""Which checkpoint a run goes on from, and whether its settings still are those of that run.

Imported by the command line, so it must stay light: no torch.
"""

import logging
import shutil
from pathlib import Path

from edge_grpo.errors import UserError
from edge_grpo.runs.checkpoints import checkpoints, damage, remove

log = logging.getLogger(__name__)


def find_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in the folder whose checksums agree; newer ones, which are damaged, are told of.

    Raises:
        UserError: there are checkpoints and all are damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        fault = damage(path)
        if fault is None:
            return path
        log.warning("%s is damaged (%s): trying the one before it", path, fault)
    if found:
        raise UserError(f"{folder}: every checkpoint is damaged; resume=never starts over")
    return None


def drop_later(folder: Path, resumed: Path | None) -> None:
    """Delete the checkpoints after the one that is resumed (all, if none is), and what a kill left half written."""
    found = checkpoints(folder)
    remove(found if resumed is None else found[found.index(resumed) + 1 :])
    for leftover in folder.glob(".iteration-*.tmp"):
        shutil.rmtree(leftover)
