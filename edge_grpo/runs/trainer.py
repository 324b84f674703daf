"""The Lightning trainer of a run: one Lightning epoch is one iteration."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from edge_grpo.errors import UserError
from edge_grpo.runs.stopping import TokenBudget

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
# Not 16-mixed: its loss scaling hides a gradient that is not finite, and clipping would see scaled ones.
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")


def build_trainer(
    max_iterations: int,
    max_generated_tokens: int | None,
    accelerator: str,
    devices: int | str,
    num_nodes: int,
    strategy: str,
    precision: str,
    deterministic: bool,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Any],
) -> pl.Trainer:
    """A Trainer whose epochs are iterations.

    An epoch holds exactly one batch, so every checkpoint lies on an iteration boundary and Lightning's own resume
    needs no position inside a dataloader.

    Args:
        max_iterations: iterations in all, at most.
        max_generated_tokens: see `TokenBudget`.
        accelerator: "auto" takes the GPU where there is one.
        precision: one of `PRECISIONS`.
        devices, num_nodes, strategy, deterministic: as Lightning's.

    Raises:
        UserError: see `check_trainer`.
    """
    check_trainer(max_iterations, max_generated_tokens, accelerator, precision)
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        deterministic=deterministic,
        max_epochs=max_iterations,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[TokenBudget(max_generated_tokens), *callbacks],
        logger=list(loggers),
        log_every_n_steps=1,
    )


def check_trainer(max_iterations: int, max_generated_tokens: int | None, accelerator: str, precision: str) -> None:
    """Refuse what no trainer can be built of; asked before a model is loaded too.

    Raises:
        UserError: an unknown or absent accelerator, another precision, or fewer than one iteration or token.
    """
    if max_iterations < 1:
        raise UserError(f"trainer.max_iterations={max_iterations} must be at least 1")
    if accelerator not in ACCELERATORS:
        raise UserError(f"trainer.accelerator={accelerator} is none of {', '.join(ACCELERATORS)}")
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision={precision} is none of {', '.join(PRECISIONS)}")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={accelerator} but torch sees no GPU: set trainer=cpu or trainer=auto")
    TokenBudget(max_generated_tokens)


def known_ranks(devices: int | str, num_nodes: int) -> int | None:
    """How many ranks there will be; None where Lightning decides.

    >>> known_ranks(2, 2), known_ranks("2", 1), known_ranks("auto", 1), known_ranks(-1, 1)
    (4, 2, None, None)
    """
    count = int(devices) if isinstance(devices, int) or devices.isdecimal() else 0
    return count * num_nodes if count > 0 else None
