"""One run, from a composed config to files on disk."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from edge_grpo.callbacks.iteration_checkpoint import IterationCheckpoint, saving_signal_ignored
from edge_grpo.callbacks.step_rows import cut_back as cut_rows_back
from edge_grpo.command_line.check import find_allowed, instantiate, to_dict
from edge_grpo.errors import UserError, message_of
from edge_grpo.evaluation.periodic import PeriodicEvaluation
from edge_grpo.loggers.csv import cut_back
from edge_grpo.loggers.hooks import run_loggers
from edge_grpo.loggers.identity import RUN_ID
from edge_grpo.policy.sharding import whole
from edge_grpo.programs.context import check_base_weights, check_context, check_sharding, warn_of_small_budget
from edge_grpo.programs.optimiser import check_optimiser
from edge_grpo.programs.plan_run import tell_plan
from edge_grpo.programs.train_reports import report_data, write_results
from edge_grpo.ranks.group import Ranks
from edge_grpo.ranks.lead import log_to, on_ranks, ranks_asked, share_node
from edge_grpo.runs.checkpoints import STATE, iteration_of, read_manifest
from edge_grpo.runs.directory import alone_in, check_shared, holder
from edge_grpo.runs.ownership import CONFIG, SUMMARY, check_ours, empty
from edge_grpo.runs.provenance import installed, run_info
from edge_grpo.runs.quiet import silence_expected_warnings
from edge_grpo.runs.resume import drop_later, what_is_left
from edge_grpo.runs.rollout_files import rollout_files
from edge_grpo.runs.settings import FROZEN, RANKS, check_data, check_frozen, check_ranks, portable
from edge_grpo.runs.status import saying_status, write_status, write_whole
from edge_grpo.runs.stopping import check_budget, ended_by, generated_tokens
from edge_grpo.runs.trainer import check_trainer

log = logging.getLogger(__name__)

STAGES = ("allocation", "correction", "group_filter", "advantage", "loss", "token_filter", "importance_correction")


def run_experiment(cfg: DictConfig) -> float:
    """Instantiate, train, evaluate, export.

    Returns:
        Held-out accuracy after training, for sweepers.

    Raises:
        UserError: anything the user can mend, before training starts.
    """
    silence_expected_warnings()
    folder = Path(cfg.paths.run_dir)
    check_ours(folder)  # before the lock, which is a file too
    with alone_in(folder), saving_signal_ignored():
        try:
            return _run(cfg, folder)
        except Exception as error:
            begun = any((folder / name).exists() for name in ("metrics.csv", "checkpoints", SUMMARY))
            if not begun:  # a report lists what never began too
                write_status(folder, "failed", message_of(error))
                write_whole(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
            raise


def follow_experiment(job: Mapping[str, Any], ranks: Ranks) -> None:
    """Take part in a run as one of its ranks besides the first.

    Args:
        job: of rank 0, see `_run`.
        ranks: of the run.

    Raises:
        UserError: this rank has not what rank 0 has; rank 0 tells of it.
    """
    silence_expected_warnings()
    cfg = OmegaConf.create(job["config"])
    assert isinstance(cfg, DictConfig)
    find_allowed(cfg)
    folder, checkpoint = Path(cfg.paths.run_dir), job["checkpoint"] and Path(job["checkpoint"])
    check_shared(folder, job["holder"], checkpoint)
    log_to(folder, ranks.rank)
    share_node(job["devices"])
    with saving_signal_ignored():
        _train(cfg, folder, checkpoint, ranks, _parts(cfg, ranks.world))


def _run(cfg: DictConfig, folder: Path) -> float:
    """Train where something is left to do; the accuracy afterwards."""
    left = what_is_left(folder, to_dict(cfg))
    if left.changes:
        log.warning("going on under other settings than before:\n%s", left.changes)
    if left.accuracy is not None:
        log.info("%s is finished: nothing is left of %s", folder, left.ended_by)
        write_status(folder, "finished")  # its process may have died after the summary was written
        return left.accuracy
    settings = cfg.trainer
    check_trainer(
        settings.max_iterations,
        settings.max_generated_tokens,
        settings.accelerator,
        settings.strategy,
        settings.precision,
    )
    checkpoint, asked = left.checkpoint, ranks_asked(settings)
    check_base_weights(cfg)
    check_sharding(cfg, asked.world)
    if checkpoint is not None:
        check_ranks(checkpoint, asked.world, allow_changes=cfg.resume.allow_changes)
    parts = _parts(cfg, asked.world)
    job = {
        "config": OmegaConf.to_yaml(cfg, resolve=True),
        "holder": holder(folder),
        "checkpoint": None if checkpoint is None else str(checkpoint),
    }
    with on_ranks(asked, job, on_loss=partial(write_status, folder, "failed")) as ranks:
        return _train(cfg, folder, checkpoint, ranks, parts)


def _train(cfg: DictConfig, folder: Path, checkpoint: Path | None, ranks: Ranks, parts: "_Parts") -> float:
    """Check everything on every rank, and train; the accuracy afterwards."""
    data, evaluation, _, _, module = parts
    told = ranks.is_first and tell_plan(cfg)
    module.adopt(instantiate(cfg.model))
    if ranks.is_first and not told:  # the loader makes the model up
        tell_plan(cfg, module.policy.model.config)
    _prepare(data, module, evaluation)
    behind = {
        "problems": {**data.fingerprints(), **evaluation.fingerprints()},
        FROZEN: module.policy.frozen_digest(),
        RANKS: ranks.world,
    }
    if checkpoint is not None:
        check_data(checkpoint, behind["problems"], to_dict(cfg), allow_changes=cfg.resume.allow_changes)
        check_frozen(checkpoint, behind[FROZEN], allow_changes=cfg.resume.allow_changes)
    ranks.agree({**behind, **installed()})
    if not ranks.is_first:
        return _fit(cfg, folder, parts, checkpoint, behind, ranks)
    _take_over(cfg, folder, checkpoint)  # nothing of an earlier run is touched before all is checked
    report_data(data, folder)
    with saying_status(folder):
        return _fit(cfg, folder, parts, checkpoint, behind, ranks)


class _Parts(NamedTuple):
    """What a run is made of, besides its model."""

    data: Any
    evaluation: PeriodicEvaluation
    callbacks: Sequence[pl.Callback]
    checkpointing: IterationCheckpoint
    module: Any


def _parts(cfg: DictConfig, ranks: int) -> _Parts:
    """All but the model, with whatever can be refused without one: that should not wait for a model to load."""
    if cfg.seed < 0:
        raise UserError(f"seed={cfg.seed} must be at least 0")
    check_optimiser(cfg)
    pl.seed_everything(cfg.seed, verbose=False)
    parts = _Parts(
        data=instantiate(cfg.data),
        evaluation=instantiate(cfg.evaluation),
        callbacks=[instantiate(node) for node in cfg.callbacks.values() if node is not None],
        checkpointing=instantiate(cfg.checkpoint),
        module=build_algorithm(cfg),
    )
    check_budget(cfg.trainer.max_generated_tokens, parts.module)
    for part in (parts.evaluation, *parts.callbacks):
        if hasattr(part, "check_module"):
            part.check_module(parts.module)
    parts.module.check_ranks(ranks)
    parts.data.check_ranks(ranks)
    parts.evaluation.read()
    parts.data.check_fields(parts.module.required_fields)
    return parts


def _fit(
    cfg: DictConfig,
    folder: Path,
    parts: _Parts,
    resumed: Path | None,
    behind: Mapping[str, Any],
    ranks: Ranks,
) -> float:
    """Train from `resumed` on and write the results, with loggers that are closed however it ends.

    Rank 0 has all loggers: what is logged is gathered there.

    `behind` goes into the manifests: the digests of what the settings only name.
    """
    data, evaluation, callbacks, checkpointing, module = parts
    loggers = [instantiate(node) for node in cfg.logger.values() if node is not None and ranks.is_first]
    about = {**_about(cfg, folder), **behind}  # after the loggers: a tracker's gives the run its id
    checkpointing.about = about
    callbacks = [evaluation, *callbacks, checkpointing]
    trainer = instantiate(cfg.trainer, callbacks=callbacks, loggers=loggers, plugins=ranks.plugins)
    failed = True
    try:
        for logger in loggers:
            logger.log_hyperparams(about)
        with checkpointing.answering_signals():
            trainer.fit(module, datamodule=data, ckpt_path=_state_of(resumed, about["info"]), weights_only=True)
        for logger in loggers:
            logger.save()
        accuracy = {"before": evaluation.accuracy_before, "after": evaluation.accuracy_after}
        done = {"name": cfg.name, "seed": cfg.seed, "accuracy": accuracy, "iterations": trainer.current_epoch}
        done |= {"ended_by": portable(ended_by(trainer)), "generated_tokens": generated_tokens(module)}
        done |= {"metrics_last": module.metrics, **about["info"]}
        ways_to_look = {label: way for logger in run_loggers(loggers) for label, way in logger.ways_to_look().items()}
        with whole(module.model):
            summary = write_results(folder, module.policy, done, ways_to_look, here=ranks.is_first)
        for logger in run_loggers(loggers):
            logger.log_artifacts(summary)
        failed = False
    finally:
        for logger in run_loggers(loggers):
            logger.close(failed=failed)
    return float(summary["accuracy"]["after"])


def build_module(cfg: DictConfig) -> Any:
    """The LightningModule with its stages and its model."""
    module = build_algorithm(cfg)
    module.adopt(instantiate(cfg.model))
    return module


def build_algorithm(cfg: DictConfig) -> Any:
    """The LightningModule with its stages; those that the algorithm does not have are absent from the config."""
    stages = {name: instantiate(cfg[name]) for name in STAGES if cfg.get(name) is not None}
    shared = {
        "rollout": instantiate(cfg.rollout),
        "rewards": instantiate(cfg.reward),
        "optimizer": instantiate(cfg.optimizer),
        "scheduler": instantiate(cfg.scheduler),
    }
    module = instantiate(cfg.algorithm, **shared, **stages)
    for remark in module.remarks():
        log.info("%s", remark)
    return module


def _take_over(cfg: DictConfig, folder: Path, resumed: Path | None) -> None:
    """Make the directory this run's: drop what it does not go on from, write its config."""
    identity, config = folder / RUN_ID, folder / CONFIG
    written = OmegaConf.to_yaml(cfg, resolve=True)
    write_status(folder, "running")  # before any other file: it says whose folder this is
    if resumed is None:
        empty(folder)
        if cfg.resume.start_over:  # evaluations of weights that are no more
            shutil.rmtree(folder / "evaluation", ignore_errors=True)
        # A run that was killed before its first checkpoint begins again as the same run of its trackers.
        if cfg.resume.start_over or not config.exists() or config.read_text("utf-8") != written:
            identity.unlink(missing_ok=True)
    else:
        # Where no iteration is left nobody else drops what was logged behind the checkpoint.
        cut_back(folder, iteration_of(resumed))
        for path in folder.glob("bad_steps*.jsonl"):
            cut_rows_back(path, iteration_of(resumed))
        for step, _, path in rollout_files(folder):
            if step >= iteration_of(resumed):
                path.unlink()
        if not identity.exists() and (known := read_manifest(resumed).get(RUN_ID)):
            identity.write_text(known)
    drop_later(folder / "checkpoints", resumed)
    write_whole(config, written)


def _about(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """What checkpoints and loggers keep of the run itself."""
    identity = folder / RUN_ID
    known = {RUN_ID: identity.read_text()} if identity.exists() else {}
    return {"config": portable(to_dict(cfg)), "overrides": _overrides(), "info": run_info(), **known}


def _prepare(data: Any, module: Any, evaluation: PeriodicEvaluation) -> None:
    """Load, check and encode the problems."""
    data.load_prepared(
        module.policy.tokenizer,
        required_fields=module.required_fields,
        grade=module.grade,
        ungradable=module.ungradable,
    )
    problems = data.train_problems
    bound = getattr(module.rollout, "max_model_len", None)
    check_context(problems, module.policy, module.longest_responses(problems), module.shorter_responses, bound)
    warn_of_small_budget(data, module.rollout.max_new_tokens)
    evaluation.prepare(module.policy, data.template, data.held_out_problems)


def _state_of(checkpoint: Path | None, info: Mapping[str, Any]) -> Path | None:
    """What Lightning restores; a package that has changed since is told of."""
    if checkpoint is None:
        return None
    log.info("resuming from %s", checkpoint)
    written = read_manifest(checkpoint).get("info", {}).get("packages", {})
    for name, version in info["packages"].items():
        if written.get(name) != version:
            log.warning("the checkpoint was written with %s %s, this is %s", name, written.get(name), version)
    return checkpoint / STATE


def _overrides() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
