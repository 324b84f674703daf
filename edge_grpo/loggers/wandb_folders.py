"""Where W&B puts what it has not uploaded yet: into the run's folder, for HOME may be read-only or small."""

import logging
import os
from pathlib import Path

import wandb

log = logging.getLogger(__name__)

FOLDERS = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache"}
"""environment variable -> folder under the run's `wandb/`; W&B takes these two from the environment alone. Its
configuration stays where `wandb login` has written it."""

_chosen: dict[str, str] = {}


def keep_in(folder: Path) -> None:
    """Let W&B's staging and cache lie under `folder`, except where the user has set another place.

    Args:
        folder: the run directory; what an earlier run of this process was given does not count as the user's.
    """
    before = dict(_chosen)
    for name, where in FOLDERS.items():
        if os.environ.get(name) in (None, _chosen.get(name)):
            _chosen[name] = os.environ[name] = str((folder / "wandb" / where).absolute())
    if before and before != _chosen:
        wandb.teardown()  # its service has the environment of the earlier run


def link_in_sweep(run: Path, sweep: Path) -> None:
    """Let a job's W&B folder be found among those of the other jobs, for `wandb leet` and `wandb sync` take one folder.

    Args:
        run: `<job>/wandb/<kind>-<time>-<id>`; an earlier one of the same run that is no more loses its link.
        sweep: whose `wandb` holds the links, relative ones, so that a sweep can be moved.
    """
    among = sweep / "wandb"
    try:
        among.mkdir(exist_ok=True)
        for old in among.glob(f"*-{run.name.rpartition('-')[2]}"):
            if old.is_symlink() and not old.exists():
                old.unlink()
        if not (among / run.name).is_symlink():
            (among / run.name).symlink_to(os.path.relpath(run, among), target_is_directory=True)
    except OSError as error:  # a file system without links
        log.warning("%s is not linked in %s: %s", run.name, among, error.strerror)
