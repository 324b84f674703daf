"""Settings of the optimiser and its schedule that no training could use, refused before any work."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig

from edge_grpo.command_line.check import instantiate, to_dict
from edge_grpo.errors import UserError

log = logging.getLogger(__name__)

RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda x: 0 <= x < math.inf, "at least 0 and finite"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "at least 0 and finite"),
    "eps": (lambda x: 0 <= x < math.inf, "at least 0 and finite"),
    "momentum": (lambda x: 0 <= x < math.inf, "at least 0 and finite"),
    "betas": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
    "num_warmup_steps": (lambda x: x >= 0, "at least 0"),
    "num_training_steps": (lambda x: x >= 1, "at least 1"),
}


def check_optimiser(cfg: DictConfig) -> None:
    """Refuse settings that the optimiser, or its schedule, refuses or cannot use; tell of a warm-up without an end.

    Raises:
        UserError: names the key, or the group with what its constructor says of one parameter.
    """
    for group in ("optimizer", "scheduler"):
        for name, value in to_dict(cfg[group]).items():
            for number in value if isinstance(value, list) else [value]:
                if name in RANGES and isinstance(number, int | float) and not RANGES[name][0](number):
                    raise UserError(f"{group}.{name}={value} must be {RANGES[name][1]}")
    parameters = [torch.nn.Parameter(torch.zeros(1, 1))]
    ours = not str(cfg.optimizer._target_).startswith("torch.")  # which may want a package, a GPU, much memory
    made = torch.optim.SGD(parameters, lr=1.0) if ours else _tried("optimizer", instantiate(cfg.optimizer), parameters)
    _tried("scheduler", instantiate(cfg.scheduler), made)
    warmup, iterations = cfg.scheduler.get("num_warmup_steps") or 0, cfg.trainer.max_iterations
    if isinstance(warmup, int) and warmup >= iterations:
        log.warning(
            "scheduler.num_warmup_steps=%d is not below trainer.max_iterations=%d (a step is an iteration): the "
            "learning rate rises to the end and never reaches optimizer.lr",
            warmup,
            iterations,
        )


def _tried(group: str, make: Callable[[Any], Any], on: Any) -> Any:
    try:
        return make(on)
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{group}: {told}") from error
