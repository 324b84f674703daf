"""One run, from a composed config to files on disk."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError

from edge_grpo.callbacks.iteration_checkpoint import saving_signal_ignored
from edge_grpo.command_line.check import instantiate, to_dict
from edge_grpo.data.bad_rows import report_bad_rows
from edge_grpo.errors import Stopped, UserError, message_of
from edge_grpo.evaluation.periodic import PeriodicEvaluation
from edge_grpo.loggers.csv import recorded
from edge_grpo.loggers.hooks import run_loggers
from edge_grpo.loggers.identity import WANDB_RUN_ID
from edge_grpo.policy.base import Policy
from edge_grpo.programs.context import check_context, warn_of_small_budget
from edge_grpo.rewards.boxed import last_boxed
from edge_grpo.runs.checkpoints import STATE, read_manifest
from edge_grpo.runs.directory import alone_in, check_ours, empty, is_first_rank
from edge_grpo.runs.provenance import run_info
from edge_grpo.runs.quiet import silence_expected_warnings
from edge_grpo.runs.resume import drop_later, find_checkpoint, finished_accuracy
from edge_grpo.runs.settings import check_data, check_settings
from edge_grpo.runs.status import write_status
from edge_grpo.runs.summary_table import show_summary
from edge_grpo.runs.training_figure import draw_training_figure
from edge_grpo.types import Problem

log = logging.getLogger(__name__)

STAGES = ("correction", "group_filter", "advantage", "loss")


def run_experiment(cfg: DictConfig) -> float:
    """Instantiate, train, evaluate, export.

    Returns:
        Held-out accuracy after training, for sweepers.

    Raises:
        UserError: anything the user can mend, before training starts.
    """
    silence_expected_warnings()
    folder = Path(cfg.paths.run_dir)
    # The other ranks of this run share its directory.
    with alone_in(folder) if is_first_rank() else nullcontext(), saving_signal_ignored():
        if is_first_rank():
            check_ours(folder)
        try:
            return _run(cfg, folder)
        except Exception as error:
            if is_first_rank() and not (folder / "metrics.csv").exists():  # a report lists what never began too
                write_status(folder, "failed", message_of(error))
                (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
            raise


def _run(cfg: DictConfig, folder: Path) -> float:
    resumed = None if cfg.resume.start_over else find_checkpoint(folder / "checkpoints")
    if resumed is not None:
        check_settings(resumed, to_dict(cfg), allow_changes=cfg.resume.allow_changes)
    if not cfg.resume.start_over:
        accuracy = finished_accuracy(folder, resumed, to_dict(cfg), cfg.trainer.max_iterations)
        if accuracy is not None:
            if is_first_rank():  # its process may have died after the summary was written
                write_status(folder, "finished")
            return accuracy
    if cfg.seed < 0:
        raise UserError(f"seed={cfg.seed} must be at least 0")
    pl.seed_everything(cfg.seed, verbose=False)
    # The cheap parts first: what is wrong with them should not wait for a model to load.
    data = instantiate(cfg.data)
    evaluation = instantiate(cfg.evaluation)
    callbacks = [instantiate(node) for node in cfg.callbacks.values() if node is not None]
    module = build_module(cfg)
    if evaluation.correct and not module.corrects:
        raise UserError("evaluation.correct=true, but this algorithm has no correction: set evaluation=greedy")
    _prepare(data, module, evaluation)
    if resumed is not None:
        check_data(resumed, data.fingerprints(), str(cfg.data.get("path", "")), allow_changes=cfg.resume.allow_changes)
    if is_first_rank():  # nothing of an earlier run is touched before all is checked
        _take_over(cfg, folder, resumed)
        _report_data(data, folder)
    with _status(folder):
        loggers = [instantiate(node) for node in cfg.logger.values() if node is not None]
        about = {**_about(cfg, folder), "data": data.fingerprints()}
        checkpointing = instantiate(cfg.checkpoint, about=about)
        trainer = instantiate(cfg.trainer, callbacks=[evaluation, *callbacks, checkpointing], loggers=loggers)
        failed = True
        try:
            for logger in loggers:
                logger.log_hyperparams(about)
            with checkpointing.answering_signals():
                trainer.fit(module, datamodule=data, ckpt_path=_state_of(resumed, about["info"]), weights_only=True)
            for logger in loggers:
                logger.save()
            summary = _finish(folder, cfg, module, evaluation)
            for logger in run_loggers(loggers):
                logger.log_artifacts(summary)
            failed = False
        finally:
            for logger in run_loggers(loggers):
                logger.close(failed=failed)
        return float(summary["accuracy"]["after"])


@contextmanager
def _status(folder: Path) -> Iterator[None]:
    """Say in the run's folder that it runs, and how it ends."""
    if not is_first_rank():
        yield
        return
    write_status(folder, "running")
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        write_status(folder, "stopped")
        raise
    except BaseException as error:
        write_status(folder, "failed", message_of(error))
        raise
    write_status(folder, "finished")


def build_module(cfg: DictConfig) -> Any:
    """The LightningModule with its stages; those that the algorithm does not have are absent from the config."""
    stages = {name: instantiate(cfg[name]) for name in STAGES if cfg.get(name) is not None}
    shared = {
        "rollout": instantiate(cfg.rollout),
        "rewards": instantiate(cfg.reward),
        "optimizer": instantiate(cfg.optimizer),
        "scheduler": instantiate(cfg.scheduler),
    }
    module = instantiate(cfg.algorithm, policy=instantiate(cfg.model), **shared, **stages)
    if getattr(module, "update_epochs", None) == 1:
        log.info("update_epochs=1: the importance ratio is exactly 1, so loss.epsilon_low and epsilon_high do nothing")
    return module


def _take_over(cfg: DictConfig, folder: Path, resumed: Path | None) -> None:
    """Make the directory this run's: drop what it does not go on from, write its config."""
    identity, config = folder / WANDB_RUN_ID, folder / "config.yaml"
    written = OmegaConf.to_yaml(cfg, resolve=True)
    write_status(folder, "running")  # before any other file: it says whose folder this is
    if resumed is None:
        empty(folder)
        if cfg.resume.start_over:  # evaluations of weights that are no more
            shutil.rmtree(folder / "evaluation", ignore_errors=True)
        # A run that was killed before its first checkpoint begins again as the same W&B run.
        if cfg.resume.start_over or not config.exists() or config.read_text() != written:
            identity.unlink(missing_ok=True)
    elif not identity.exists() and (known := read_manifest(resumed).get(WANDB_RUN_ID)):
        identity.write_text(known)
    drop_later(folder / "checkpoints", resumed)
    config.write_text(written)


def _about(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """What checkpoints and loggers keep of the run itself."""
    identity = folder / WANDB_RUN_ID
    known = {WANDB_RUN_ID: identity.read_text()} if identity.exists() else {}
    return {"config": to_dict(cfg), "overrides": _overrides(), "info": run_info(), **known}


def _prepare(data: Any, module: Any, evaluation: PeriodicEvaluation) -> None:
    """Load, check and encode the problems."""
    data.load_prepared(
        module.policy.tokenizer,
        required_fields=module.required_fields,
        grade=module.grade,
        ungradable=module.ungradable,
    )
    problems = data.train_problems
    check_context(problems, module.policy, module.longest_responses(problems), module.shorter_responses)
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


def _report_data(data: Any, folder: Path) -> None:
    log.info("%d training problems, %d held out", len(data.train_problems), len(data.held_out_problems))
    report_bad_rows(data.bad_rows, folder)
    if data.failed_references:
        path = folder / "failed_references.jsonl"
        path.write_text("".join(json.dumps(_failure(p)) + "\n" for p in data.failed_references))
        count = len(data.failed_references)
        log.warning("%d reference solutions fail their own grading and are never trained on: %s", count, path)


def _failure(problem: Problem) -> dict[str, Any]:
    """A line of failed_references.jsonl."""
    boxed, gold = last_boxed(problem.solution or ""), " or ".join(problem.answers)
    reason = "no \\boxed{...}" if boxed is None else f"the last \\boxed{{...}} holds {boxed}, the gold answer is {gold}"
    return {"id": problem.id, "origin": problem.origin, "answers": problem.answers, "reason": reason}


def _finish(folder: Path, cfg: DictConfig, module: Any, evaluation: PeriodicEvaluation) -> dict[str, Any]:
    """Export the model, draw the figure, write and print the summary."""
    summary: dict[str, Any] = {
        "name": cfg.name,
        "seed": cfg.seed,
        "accuracy": {"before": evaluation.accuracy_before, "after": evaluation.accuracy_after},
        "iterations": module.trainer.current_epoch,
        "seconds": round(_seconds(folder), 1),
        "model": str(folder / "model"),
        "figure": str(folder / "training.png"),
        "metrics": str(folder / "metrics.csv"),
        "metrics_last": module.metrics,
        **run_info(),
    }
    if module.trainer.is_global_zero:
        _export(module.policy, folder / "model")
        draw_training_figure(folder / "metrics.csv", folder / "training.png", title=str(cfg.name))
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        show_summary(summary, folder)
    return summary


def _export(policy: Policy, folder: Path) -> None:
    try:
        policy.save(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the model cannot be written ({str(error).splitlines()[0]}): make room and run the command "
            "again, which goes on from the last checkpoint"
        ) from error


def _seconds(folder: Path) -> float:
    """Training and evaluation, of all sessions of a run that was resumed."""
    rows = recorded(folder).values()
    return sum(row.get(name, 0.0) for row in rows for name in ("timing_s/total", "timing_s/evaluation"))


def _overrides() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
