"""Who a run is to W&B: its id, its group and tags, and whether there is a key."""

import logging
import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from edge_grpo.command_line.compose import key_of, parse
from edge_grpo.errors import UserError

log = logging.getLogger(__name__)

WANDB_RUN_ID = "wandb_run_id"
"""the file in the run directory that keeps the id"""
MAX_TAG, MAX_GROUP = 64, 128
"""characters that W&B takes"""

Mode = Literal["auto", "online", "offline", "disabled"]


def resolve_mode(mode: Mode) -> str:
    """The mode that W&B is started in."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")


def has_key() -> bool:
    """Whether W&B has a key for its server.

    Raises:
        UserError: the netrc file cannot be read.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    path = Path(os.path.expanduser(os.environ.get("NETRC", "~/.netrc")))  # Path's own fails without a HOME
    try:
        return path.is_file() and host in netrc.netrc(path).hosts
    except netrc.NetrcParseError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}; mend it or set logger.wandb.mode=offline") from error
    except OSError as error:
        log.warning("%s cannot be read (%s): without a key W&B stays offline", path, error.strerror)
        return False


def run_id(folder: Path) -> str:
    """The run's id, made once and kept in the run directory."""
    path = folder / WANDB_RUN_ID
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def config_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a logger keeps as the run's config: the settings at the top, so that `advantage.clamp` is found and grouped
    by under its own name, and beside them overrides, git commit, package versions and machine.
    """
    return {**about["config"], "overrides": list(about["overrides"]), **about["info"]}


def group_of(folder: Path, arm: str) -> str:
    """The arm and, in a sweep, what else is swept besides the seed: runs of one group differ in their seed alone.

    `edge_grpo` of `-m experiment=edge_grpo advantage.clamp=2,4 seed=0,1` becomes `edge_grpo, advantage.clamp=4`. What
    was swept is read from the `multirun.yaml` that Hydra's own sweeper writes, so a job that is resumed alone keeps
    its group. Other sweepers write none: their runs are grouped by arm.
    """
    sweep, record = sweep_of(folder), folder / ".hydra" / "overrides.yaml"
    if sweep is None or not record.is_file():
        return arm[:MAX_GROUP]
    swept = _swept_keys(sweep) - {"seed", "experiment", "name"}
    typed = [str(text) for text in OmegaConf.load(record)]
    return ", ".join([arm, *(text for text in typed if key_of(text) in swept)])[:MAX_GROUP]


def tags_of(folder: Path) -> list[str]:
    """The experiment that was chosen and the folder of the sweep, where there are such."""
    record, sweep = folder / ".hydra" / "hydra.yaml", sweep_of(folder)
    experiment = None
    if record.is_file():
        experiment = OmegaConf.select(OmegaConf.load(record), "hydra.runtime.choices.experiment")
    return [text[:MAX_TAG] for text in (experiment, sweep and sweep.name) if text]


def sweep_of(folder: Path) -> Path | None:
    """The folder of the sweep that a run is a job of."""
    return next((parent for parent in folder.resolve().parents if (parent / "multirun.yaml").is_file()), None)


def _swept_keys(sweep: Path) -> set[str]:
    record: Any = OmegaConf.load(sweep / "multirun.yaml")
    typed = parse([str(text) for text in OmegaConf.select(record, "hydra.overrides.task") or ()])
    params = OmegaConf.select(record, "hydra.sweeper.params") or {}
    return {o.key_or_group for o in typed if o.is_sweep_override()} | {str(key) for key in params}
