"""Whether a run has anything left to do, and which checkpoint it goes on from.

Imported by the command line, so it must stay light: no torch.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from edge_grpo.errors import UserError
from edge_grpo.runs.checkpoints import checkpoints, damage, iteration_of, read_manifest, remove
from edge_grpo.runs.ownership import CONFIG, SUMMARY
from edge_grpo.runs.settings import MAX_GENERATED_TOKENS, portable, refuse_changes
from edge_grpo.runs.status import FILE as STATUS
from edge_grpo.runs.status import read_status

log = logging.getLogger(__name__)

WAYS_OUT = "choose another folder (hydra.run.dir), or start over with resume=never"


class Left(NamedTuple):
    """What a run goes on with.

    Args:
        checkpoint: what it goes on from; None begins.
        accuracy: held-out accuracy of a run that has nothing left to do, else None.
        ended_by: the setting that ended such a run, `key=value`.
        changes: settings that differ from those of before and may, a line each.
    """

    checkpoint: Path | None = None
    accuracy: float | None = None
    ended_by: str = ""
    changes: str = ""


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


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in the folder, whatever its checksums, which take long to compute."""
    return next(reversed(checkpoints(folder)), None)


def what_is_left(
    folder: Path, config: Mapping[str, Any], find: Callable[[Path], Path | None] = find_checkpoint
) -> Left:
    """What the run in `folder` goes on with; `resume=never` begins, whatever is there.

    A finished run stays finished without its checkpoints, which people delete to save the disk: the summary is asked
    first.

    Args:
        folder: of the run.
        config: the resolved config, plain.
        find: folder of checkpoints -> the one to go on from.

    Raises:
        UserError: the run is longer already than it shall be; a setting differs that changes the result; or it would
            have to begin again over results that somebody has of it.
    """
    resume, shall = config["resume"], config["trainer"]["max_iterations"]
    if resume["start_over"]:
        return Left()
    summary, newest = _summary(folder), newest_checkpoint(folder / "checkpoints")
    finished = summary.get("iterations", 0)
    _refuse_fewer_tokens(folder, summary, config)
    if _still_ended(summary, config) and (newest is None or iteration_of(newest) <= finished):
        changes = refuse_changes(*_earlier(folder, newest), config, allow_changes=resume["allow_changes"])
        (told,) = (key if isinstance(value, dict) else f"{key}={value}" for key, value in summary["ended_by"].items())
        return Left(accuracy=float(summary["accuracy"]["after"]), ended_by=told, changes=changes)
    checkpoint = find(folder / "checkpoints")
    done = finished if checkpoint is None else iteration_of(checkpoint)
    if done > shall:
        raise UserError(
            f"trainer.max_iterations={shall}, but {checkpoint or folder} has done {done}: raise it, or resume=never"
        )
    if checkpoint is None:
        _refuse_to_begin_again(folder, finished, shall)
        return Left()
    changes = refuse_changes(*_earlier(folder, checkpoint), config, allow_changes=resume["allow_changes"])
    return Left(checkpoint, changes=changes)


def _still_ended(summary: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether the setting that ended a run stands as it was, and the run is no longer than it shall be."""
    if not summary or summary["iterations"] > config["trainer"]["max_iterations"]:
        return False
    return all(_at(portable(config), key) == value for key, value in summary["ended_by"].items())


def _at(node: Any, key: str) -> Any:
    """The value under a dotted key, None where there is none."""
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _refuse_fewer_tokens(folder: Path, summary: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """A finished run is not longer than its budget of tokens now, unless that is what ended it."""
    budget = config["trainer"].get("max_generated_tokens")
    if budget is None or not summary or summary["ended_by"].get(MAX_GENERATED_TOKENS) == budget:
        return
    if (generated := summary["generated_tokens"]) >= budget:
        raise UserError(
            f"{MAX_GENERATED_TOKENS}={budget}, but {folder} has generated {generated}: raise it, or resume=never"
        )


def _refuse_to_begin_again(folder: Path, finished: int, shall: int) -> None:
    """A run without checkpoints begins again, unless somebody has results of it."""
    if finished:
        raise UserError(
            f"{folder} finished after {finished} iterations and its checkpoints are gone, so it cannot go on to "
            f"trainer.max_iterations={shall}: {WAYS_OUT}"
        )
    if read_status(folder).state == "finished":
        raise UserError(
            f"{folder} is finished as {STATUS} says, but {SUMMARY} cannot be read and its checkpoints are gone: "
            f"{WAYS_OUT}"
        )
    if any((folder / "evaluation").glob("*")):
        raise UserError(
            f"{folder / 'evaluation'} holds evaluations of an earlier run, whose checkpoints are gone: {WAYS_OUT}, "
            "which deletes them"
        )


def _summary(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself; nothing where it did not finish, or where that cannot be read."""
    try:
        found = json.loads((folder / SUMMARY).read_text())
        return {
            "iterations": int(found["iterations"]),
            "accuracy": {"after": float(found["accuracy"]["after"])},
            "ended_by": dict(found["ended_by"]),
            "generated_tokens": int(found["generated_tokens"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _earlier(folder: Path, checkpoint: Path | None) -> tuple[Path, Mapping[str, Any]]:
    """What was written under earlier settings, and these: a checkpoint's, or the run's where it has none.

    Raises:
        UserError: the run's config cannot be read.
    """
    try:
        if checkpoint is not None:
            return checkpoint, read_manifest(checkpoint)["config"]
    except (ValueError, KeyError):  # damaged
        pass
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{folder / CONFIG} cannot be read ({str(error).splitlines()[0]}): {WAYS_OUT}") from error
    assert isinstance(config, dict)
    return folder, {str(key): value for key, value in config.items()}


def drop_later(folder: Path, resumed: Path | None) -> None:
    """Delete the checkpoints after the one that is resumed (all, if none is), and what a kill left half written."""
    found = checkpoints(folder)
    remove(found if resumed is None else found[found.index(resumed) + 1 :])
    for leftover in folder.glob(".iteration-*.tmp"):
        shutil.rmtree(leftover)
