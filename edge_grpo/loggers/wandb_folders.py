"""Where W&B puts what it has not uploaded yet: into the run's folder, for HOME may be read-only or small."""

import os
from pathlib import Path

import wandb

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
