"""Weights & Biases, online with a key and offline without one."""

import netrc
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import wandb
from pytorch_lightning.loggers import WandbLogger

from edge_grpo.errors import UserError

Mode = Literal["auto", "online", "offline", "disabled"]


def build_wandb_logger(
    folder: str,
    project: str,
    entity: str | None,
    name: str | None,
    group: str | None,
    job_type: str | None,
    tags: Sequence[str],
    mode: Mode,
) -> WandbLogger:
    """A WandbLogger that never asks a question.

    Args:
        folder: the run directory; it remembers the run's id, so that a resumed run goes on in the same W&B run.
        project, entity, name, group, job_type, tags: as W&B's.
        mode: "auto" is WANDB_MODE if set, else online where there is a key, else offline.
    """
    chosen = resolve_mode(mode)
    return WandbLogger(
        save_dir=folder,
        project=project,
        entity=entity,
        name=name,
        group=group,
        job_type=job_type,
        tags=list(tags),
        id=_run_id(Path(folder)),
        resume=None if chosen == "offline" else "allow",
        mode=chosen,
        settings=wandb.Settings(silent=True, console="off"),
    )


def resolve_mode(mode: Mode) -> str:
    """The mode that W&B is started in."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return path.is_file() and host in netrc.netrc(path).hosts
    except netrc.NetrcParseError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}; mend it or set logger.wandb.mode=offline") from error


def _run_id(folder: Path) -> str:
    """The run's id, made once and kept in the run directory."""
    path = folder / "wandb_run_id"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()
