"""The plan of a config: printed by `edge-grpo-plan`, one line at the start of training."""

import logging
import math
from typing import Any

from omegaconf import DictConfig

from edge_grpo.command_line.check import instantiate
from edge_grpo.errors import UserError
from edge_grpo.planning.advice import lowered
from edge_grpo.planning.model_config import ModelConfig, read_config
from edge_grpo.planning.plan import Plan, device_memory, make_plan
from edge_grpo.planning.run_settings import computes_on_gpu, run_settings
from edge_grpo.planning.text import summary, table, verdict
from edge_grpo.runs.quiet import silence_expected_warnings

log = logging.getLogger(__name__)


def print_plan(cfg: DictConfig) -> float:
    """Plan for `plan.memory_gb`, or for the device at hand.

    Returns:
        The peak in GB.

    Raises:
        UserError: a model whose config cannot be read, or that does not run on flat tokens; no memory at all.
    """
    silence_expected_warnings()
    given = cfg.plan.memory_gb
    if given is not None and not 0 < given < math.inf:
        raise UserError(f"plan.memory_gb={given} must be above 0 and finite")
    read = _read(cfg.model) or ModelConfig(instantiate(cfg.model).model.config, "as its loader makes it")
    memory = device_memory(on_gpu=computes_on_gpu(cfg)) if given is None else int(given * 1e9)
    plan = make_plan(run_settings(cfg, read.config, memory))
    changes, smaller = ([], plan) if memory is None or plan.peak <= memory else lowered(plan, memory)
    print(table(plan, read.source), verdict(plan, memory, changes, smaller), sep="\n", flush=True)
    return plan.peak / 1e9


def tell_plan(cfg: DictConfig, config: Any | None = None) -> bool:
    """Log the plan in one line, as a warning where it is beyond the device at hand.

    Args:
        cfg: of a run.
        config: of its model; None reads it from where the model will be loaded.

    Returns:
        False where there is nothing to read it from, before the model is loaded.

    Raises:
        UserError: the weights alone do not fit on the GPU.
    """
    try:
        read = ModelConfig(config, "") if config is not None else _read(cfg.model)
        if read is None:
            return False
        memory = device_memory(on_gpu=computes_on_gpu(cfg))
        plan = make_plan(run_settings(cfg, read.config, memory))
    except Exception as error:  # a model of somebody else's code, which may well train all the same
        log.debug("no plan of the memory: %s", error)
        return config is not None
    _refuse_hopeless(plan, memory)
    if memory is None or plan.peak <= memory:
        log.info("%s", summary(plan, memory))
    else:
        changes, smaller = lowered(plan, memory)
        log.warning("%s\n%s", summary(plan, memory), verdict(plan, memory, changes, smaller))
    return True


def _refuse_hopeless(plan: Plan, memory: int | None) -> None:
    if plan.settings.on_gpu and memory is not None and plan.weights > memory:
        raise UserError(
            f"the weights alone take {plan.weights / 1e9:.1f} GB and the GPU has {memory / 1e9:.1f}: take a smaller "
            "model, model.dtype=bfloat16, or model.load_in_4bit=true with model.lora.r=16 (see edge-grpo-plan)"
        )


def _read(node: DictConfig) -> ModelConfig | None:
    """Of a model that is loaded from somewhere; None of one that its loader makes up."""
    if node.get("path") is None:
        return None
    return read_config(node.path, node.get("revision"), trust_remote_code=bool(node.get("trust_remote_code", False)))
