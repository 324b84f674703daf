"""Which checkpoint a run goes on from, and whether its settings still are those of that run.

Imported by the command line, so it must stay light: no torch.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_grpo.checkpoints import checkpoints, damage, read_manifest, remove
from edge_grpo.errors import UserError, first_lines

log = logging.getLogger(__name__)

# Settings that change what is shown or kept of a run, how long it lasts or how fast it is, and no number of it. A
# schedule that depends on the number of iterations says so under scheduler.
FREE = (
    "name",
    "resume",
    "paths",
    "logger",
    "callbacks",
    "checkpoint",
    "allowed_targets",
    "trainer.max_iterations",
    "evaluation.every_n_iterations",
)
FREE_ENDINGS = (".workers", ".memory_limit_gb")


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


def check_settings(checkpoint: Path, config: Mapping[str, Any], *, allow_changes: bool) -> None:
    """Hold a config against the one the checkpoint was written under.

    Args:
        checkpoint: its folder; a damaged one says nothing.
        config: the resolved config, plain.
        allow_changes: only warn.

    Raises:
        UserError: a setting differs that changes the result.
    """
    try:
        before = read_manifest(checkpoint).get("config", {})
    except ValueError:
        return
    changed = {key: pair for key, pair in differences(before, config).items() if not is_free(key)}
    if not changed:
        return
    lines = changes(changed)
    if not allow_changes:
        raise UserError(
            f"{checkpoint} was written under other settings, which would change the result:\n{lines}\n"
            "undo the change, or go on all the same with resume.allow_changes=true"
        )
    log.warning("going on under other settings than before:\n%s", lines)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both; null stands for a key that is absent.

    >>> differences({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}, "d": {}})
    {'a.c.1': (2, 3)}
    """
    old, new = dict(_leaves(before)), dict(_leaves(now))
    pairs = {key: (old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys())}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and (a == a or b == b)}  # NaN is no change of NaN


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        items: Any = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    else:
        yield key, node
        return
    for name, child in items:
        yield from _leaves(child, f"{key}.{name}" if key else str(name))


def changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """The first of the changed settings, one an indented line."""
    return first_lines([f"{key}: {old} -> {new}" for key, (old, new) in changed.items()])


def is_free(key: str, free: Iterable[str] = FREE) -> bool:
    """Whether a dotted key is one of `free`, below one of them, or one of `FREE_ENDINGS`.

    >>> is_free("logger.csv.folder"), is_free("loss.beta"), is_free("loss.beta", ("loss",))
    (True, False, True)
    """
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in free) or key.endswith(FREE_ENDINGS)


def check_directory(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a run directory before anything is written into it.

    Raises:
        UserError: it cannot be written, another run is at work there, or its run had other settings.
    """
    check_writable(folder)
    if is_first_rank():
        with alone_in(folder):
            found = checkpoints(folder / "checkpoints")
        resume = config.get("resume") or {}
        if found and not resume.get("start_over") and not resume.get("allow_changes"):
            check_settings(found[-1], config, allow_changes=False)


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
