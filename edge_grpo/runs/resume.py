"""Which checkpoint a run goes on from, and whether it has anything left to do.

Imported by the command line, so it must stay light: no torch.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from edge_grpo.errors import UserError
from edge_grpo.runs.checkpoints import checkpoints, damage, iteration_of, remove
from edge_grpo.runs.settings import refuse_changes

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


def finished_accuracy(
    folder: Path, resumed: Path | None, config: Mapping[str, Any], max_iterations: int
) -> float | None:
    """Held-out accuracy of a run that has nothing left to do; None where there is something.

    A finished run stays finished when its checkpoints are deleted to save the disk.

    Args:
        folder: of the run.
        resumed: its newest checkpoint.
        config: the resolved config, plain.
        max_iterations: how long the run shall be.

    Raises:
        UserError: the run is longer than that already; it has to go on and has nothing to go on from; or its
            evaluations are of weights that are gone.
    """
    known = _summary(folder)
    if resumed is None and not known:
        if (folder / "evaluation").exists():
            raise UserError(
                f"{folder / 'evaluation'} holds evaluations of an earlier run, whose checkpoints are gone: choose "
                "another folder (hydra.run.dir), or delete them with resume=never"
            )
        return None
    done = int(known["iterations"]) if resumed is None else iteration_of(resumed)
    if done > max_iterations:
        raise UserError(
            f"trainer.max_iterations={max_iterations}, but {resumed or folder} has done {done}: raise it, or "
            "resume=never"
        )
    if resumed is None:
        refuse_changes(folder, _recorded(folder), config)
        if done < max_iterations:
            raise UserError(
                f"{folder} finished after {done} iterations and its checkpoints are gone, so it cannot go on to "
                f"trainer.max_iterations={max_iterations}: choose another folder (hydra.run.dir), or start over with "
                "resume=never"
            )
    elif done < max_iterations or known.get("iterations") != done:
        return None
    log.info("%s is finished: nothing is left of trainer.max_iterations=%d", folder, done)
    return float(known["accuracy"]["after"])


def _summary(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself; nothing where it did not finish."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _recorded(folder: Path) -> Mapping[str, Any]:
    """The config that the run was started with."""
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def drop_later(folder: Path, resumed: Path | None) -> None:
    """Delete the checkpoints after the one that is resumed (all, if none is), and what a kill left half written."""
    found = checkpoints(folder)
    remove(found if resumed is None else found[found.index(resumed) + 1 :])
    for leftover in folder.glob(".iteration-*.tmp"):
        shutil.rmtree(leftover)
