"""What is evaluated: a run of ours, one of its checkpoints, or any model."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from edge_grpo.command_line.check import check_config, instantiate
from edge_grpo.data.base import PromptTemplate
from edge_grpo.errors import UserError
from edge_grpo.policy.base import Policy
from edge_grpo.policy.precision import cast_weights, check_precision
from edge_grpo.runs.checkpoints import MANIFEST, STATE, damage, iteration_of, read_manifest
from edge_grpo.runs.settings import check_frozen, portable

LOADER = "edge_grpo.policy.load.load_policy"
TRUSTED = {"model": ("edge_grpo.policy",), "template": ("edge_grpo.data.templates",)}
"""what a recorded config may build: its author may be a stranger"""


class Subject(NamedTuple):
    """A policy, ready to generate on its device, with the template of the prompts that it is asked with."""

    policy: Policy
    template: PromptTemplate


def identify(cfg: DictConfig) -> dict[str, Any]:
    """What `run` or `model` names, without loading it.

    Args:
        cfg: of the program: `run` and `model`.

    Returns:
        policy: what is loaded, for people; run: folder of the run that it comes from, or None; iteration: updates that
        it has had in that run; weights: SHA-256 of the files, None on the hub.

    Raises:
        UserError: neither or both are given, or there is no such run or model.
    """
    if (cfg.run is None) == (cfg.get("model") is None):
        found = "both are given" if cfg.run is not None else "neither is given"
        raise UserError(f"run=DIR evaluates a run, model=... another model, and {found}: set one of them")
    if cfg.run is None:
        path = cfg.model.get("path")
        known = {"policy": str(path or cfg.model._target_), "run": None, "iteration": None}
        return known | {"weights": _sha256(Path(path).expanduser()) if path else None}
    where = Path(cfg.run)
    if _is_checkpoint(where):
        if fault := damage(where):
            raise UserError(f"run={where}: the checkpoint is damaged ({fault})")
        run, iteration, weights = (
            _run_of(where),
            iteration_of(where),
            read_manifest(where)["files"][STATE]["sha256"],
        )
    else:
        _config_of_run(where)
        if not (where / "model" / "config.json").is_file():
            raise UserError(
                f"run={where}: no exported model ({where / 'model'}): name one of its checkpoints/iteration-*"
            )
        run, iteration, weights = where, _iterations(where), _sha256(where / "model")
    return {"policy": str(where), "run": str(run), "iteration": iteration, "weights": weights}


def reward_functions(run: Path) -> str | list[str] | None:
    """The functions that a run was rewarded by, as `reward.function` names them; None where it had none."""
    reward = _config_of_run(run).get("reward")
    return reward.get("function") if isinstance(reward, Mapping) else None


def load_subject(cfg: DictConfig, *, own_template: bool, precision: str) -> Subject:
    """Load what `identify` has found.

    Args:
        cfg: of the program: `run`, `model`, `data.template`, `accelerator`, `allowed_targets`.
        own_template: whether the user chose `data.template`; if not, a run keeps the template of its training.
        precision: of the weights, see `policy.precision`.

    Raises:
        UserError: it cannot be loaded, or the accelerator is not there.
    """
    template = instantiate(cfg.data.template)
    if cfg.run is None:
        return Subject(on_device(instantiate(cfg.model), cfg.accelerator, precision), template)
    where, allowed = Path(cfg.run), list(cfg.allowed_targets)
    config = _training_config(where)
    load = _checkpointed if _is_checkpoint(where) else _exported
    if not own_template:
        template = _built(config["data"], "template", allowed, where)
    return Subject(on_device(load(where, config, allowed), cfg.accelerator, precision), template)


def precision_of(cfg: DictConfig) -> str:
    """`precision` as it is given; null is the run's own, and 32-true for another model.

    Raises:
        UserError: there is no such precision.
    """
    given: str | None = cfg.precision
    if given is None:
        given = "32-true" if cfg.run is None else _training_config(Path(cfg.run))["trainer"]["precision"]
    check_precision("precision", given)
    return given


def _training_config(run: Path) -> Mapping[str, Any]:
    """Of a run, or of the run that a checkpoint is of."""
    return _config_of_run(_run_of(run) if _is_checkpoint(run) else run)


def _run_of(checkpoint: Path) -> Path:
    """Whose checkpoint it is; absolute, for a relative path may be the checkpoint's name alone."""
    return checkpoint.absolute().parents[1]


def _iterations(run: Path) -> int:
    """Updates that the exported model has had."""
    try:
        return int(json.loads((run / "summary.json").read_text())["iterations"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"run={run}: not finished ({run / 'summary.json'} cannot be read): name a checkpoint"
        ) from error


def _is_checkpoint(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def _sha256(folder: Path) -> str | None:
    """Of the weights in a folder; None if it is none."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if files else None


def on_device(policy: Policy, accelerator: str, precision: str) -> Policy:
    """The policy, moved to where it shall generate, with the weights of this precision.

    Args:
        accelerator: cpu, gpu, or auto, which takes the GPU where there is one.
        precision: see `policy.precision`.

    Raises:
        UserError: an unknown or absent accelerator.
    """
    if accelerator not in ("auto", "cpu", "gpu"):
        raise UserError(f"accelerator={accelerator} is none of auto, cpu, gpu")
    there = torch.cuda.is_available()
    if accelerator == "gpu" and not there:
        raise UserError("accelerator=gpu but torch sees no GPU: set accelerator=cpu or accelerator=auto")
    cast_weights(policy, precision)
    policy.model.to("cuda" if accelerator != "cpu" and there else "cpu")
    return policy


def _config_of_run(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"run={folder}: no run there ({path} does not exist)")
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"run={folder}: {path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict) or "model" not in config or "data" not in config:
        raise UserError(f"run={folder}: {path} is no config of a training run")
    return {str(key): value for key, value in config.items()}


def _exported(folder: Path, config: Mapping[str, Any], allowed: list[str]) -> Policy:
    """The exported model, loaded with the settings of the run's own model where it has any."""
    trained = config["model"]
    own = trained if trained.get("_target_") == LOADER else {}
    node = {
        "_target_": LOADER,
        "dtype": "float32",
        "attn_implementation": "sdpa",
        **own,
        "trust_remote_code": False,  # not for a recorded word: model=hf model.path=... model.trust_remote_code=true
        "path": str((folder / "model").absolute()),
        "gradient_checkpointing": False,
        "revision": None,
        "lora": None,  # merged
    }
    return _built({"model": node}, "model", allowed, folder)


def _checkpointed(checkpoint: Path, config: Mapping[str, Any], allowed: list[str]) -> Policy:
    """The run's initial model with the checkpoint's weights."""
    node = dict(read_manifest(checkpoint).get("config", config)["model"])
    node |= {"trust_remote_code": False} if "trust_remote_code" in node else {}
    policy = _built({"model": node}, "model", allowed, checkpoint)
    state = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)["state_dict"]
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    check_frozen(checkpoint, policy.frozen_digest())
    try:
        policy.load_trained(weights)
    except RuntimeError as error:
        raise UserError(
            f"run={checkpoint}: of another model than its config says ({str(error).split(':')[0]})"
        ) from error
    return policy


def _built(config: Mapping[str, Any], key: str, allowed: list[str], source: Path) -> Any:
    """One node of a recorded config, checked as a typed one is."""
    # Assets are this checkout's: the one of the run may be gone.
    cfg = OmegaConf.create({key: portable(config[key]), "allowed_targets": allowed})
    try:
        check_config(cfg, trusted=TRUSTED[key])
        return instantiate(cfg[key])
    except UserError as error:
        raise UserError(f"run={source}: {error}") from error
