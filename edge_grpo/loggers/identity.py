"""Who a run is to a tracker: its id, its group and tags, its config; and whether there is a key for W&B."""

import copy
import hashlib
import logging
import netrc
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from edge_grpo.command_line.compose import key_of, parse
from edge_grpo.errors import UserError

log = logging.getLogger(__name__)

RUN_ID = "run_id"
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
    """The run's id with every tracker, made once and kept in the run directory; W&B's agent gives its own.

    Raises:
        UserError: the directory is of another run than the agent's.
    """
    path, given = folder / RUN_ID, agents_run(folder)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(given or secrets.token_hex(4))
    known = path.read_text().strip()
    if given not in (None, known):
        raise UserError(
            f"{folder} is run {known}, and W&B's agent starts run {given}: give each its folder, "
            "hydra.run.dir=multirun/wandb/${oc.env:WANDB_SWEEP_ID}/${oc.env:WANDB_RUN_ID}"
        )
    return known


def agents_run(folder: Path) -> str | None:
    """The id of the run for which W&B's agent has started this process; None without an agent.

    Raises:
        UserError: the process runs several jobs, which W&B would take for one run.
    """
    if not os.environ.get("WANDB_SWEEP_ID"):
        return None
    if _sweep_at_work() is not None:
        raise UserError("W&B's agent starts one run at a time: leave out --multirun, the sweep's parameters vary it")
    return os.environ.get("WANDB_RUN_ID")


def agents_parameters() -> dict[str, Any]:
    """Dotted setting or group -> value that W&B's agent has chosen for this run; W&B has them in its config already."""
    path = Path(os.environ.get("WANDB_SWEEP_PARAM_PATH", ""))
    if not os.environ.get("WANDB_SWEEP_ID") or not path.is_file():
        return {}
    chosen = yaml.safe_load(path.read_text("utf-8")) or {}
    return {str(key): entry["value"] for key, entry in chosen.items() if isinstance(entry, dict)}


def config_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a logger keeps as the run's config: the settings at the top, so that `advantage.clamp` is found and grouped
    by under its own name, and beside them overrides, git commit, package versions and machine.
    """
    return {**about["config"], "overrides": list(about["overrides"]), **about["info"]}


def without(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The config but for these dotted keys. Of a group whose option is such a key the settings stay, each by its name.

    >>> without({"loss": {"beta": 0.0, "clip": 0.2}, "advantage": {"clamp": 4}, "seed": 0}, ["loss.beta", "advantage"])
    {'loss': {'clip': 0.2}, 'seed': 0, 'advantage.clamp': 4}
    """
    kept = copy.deepcopy(dict(config))
    for key in sorted(keys, key=lambda key: key.count("."), reverse=True):
        *parents, last = key.split(".")
        node: Any = kept
        for name in parents:
            node = node.get(name) if isinstance(node, dict) else None
        group = node.pop(last, None) if isinstance(node, dict) else None
        if isinstance(group, dict) and not parents:
            kept |= dict(dotted(group, f"{key}."))
    return kept


def dotted(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a nested config under its dotted key; a mapping without entries is one too.

    >>> dict(dotted({"a": {"b": 1, "c": {}}, "d": [2]}))
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def group_of(folder: Path, arm: str) -> str:
    """The arm and, in a sweep, what else is swept besides the seed: runs of one group differ in their seed alone.

    `edge_grpo` of `-m experiment=edge_grpo advantage.clamp=2,4 seed=0,1` becomes `edge_grpo, advantage.clamp=4`. What
    was swept is read from the `multirun.yaml` that Hydra's own sweeper writes, so a job that is resumed alone keeps
    its group, or W&B's agent says it. Other sweepers write none: their runs are grouped by arm.
    """
    sweep, record = sweep_of(folder), folder / ".hydra" / "overrides.yaml"
    varied = agents_parameters().keys() if sweep is None else _swept_keys(sweep)
    if not varied or not record.is_file():
        return _bounded(arm)
    swept = varied - {"seed", "experiment", "name"}
    typed = [str(text) for text in OmegaConf.load(record)]
    return _bounded(", ".join([arm, *(text for text in typed if key_of(text) in swept)]))


def _bounded(group: str) -> str:
    """Two groups that begin alike stay two."""
    if len(group) <= MAX_GROUP:
        return group
    digest = hashlib.sha256(group.encode()).hexdigest()[:8]
    return f"{group[: MAX_GROUP - len(digest) - 1]}-{digest}"


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


def shared_folder(folder: Path) -> Path:
    """Where the runs that are compared lie: the folder of the sweep that is at work or was, else the run's own."""
    return _sweep_at_work() or sweep_of(folder) or folder.absolute()


def _sweep_at_work() -> Path | None:
    """The folder of the sweep of which this process runs a job; optuna's sweeper leaves no `multirun.yaml` there."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).absolute()


def _swept_keys(sweep: Path) -> set[str]:
    record: Any = OmegaConf.load(sweep / "multirun.yaml")
    typed = parse([str(text) for text in OmegaConf.select(record, "hydra.overrides.task") or ()])
    params = OmegaConf.select(record, "hydra.sweeper.params") or {}
    return {o.key_or_group for o in typed if o.is_sweep_override()} | {str(key) for key in params}
