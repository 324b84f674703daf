"""Logs now and then how much of the gradient comes from sampled, injected and reference tokens."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from edge_grpo.algorithms.provenance import gradient_norms, shares
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.errors import UserError
from edge_grpo.losses.base import UpdateSize
from edge_grpo.types.rollouts import Rollout


class GradientShares(pl.Callback):
    """Logs `gradient/*` of every n-th iteration, from the first one on.

    Off unless `callbacks=gradient_shares`. Training stays the same bit for bit; an iteration that is probed costs three
    more forward and backward passes over the update's rows, whose time is `timing_s/probe`.

    Args:
        every_n_iterations: from one probe to the next, at least 1.

    Raises:
        UserError: a value below 1; an algorithm that samples nothing.
    """

    def __init__(self, every_n_iterations: int) -> None:
        if every_n_iterations < 1:
            raise UserError(f"callbacks.gradient_shares.every_n_iterations={every_n_iterations} must be at least 1")
        self.every_n_iterations = every_n_iterations

    def check_module(self, module: Any) -> None:
        """Refuse an algorithm whose tokens are all of one writer, before a run."""
        if not hasattr(module, "probes"):
            raise UserError(
                f"callbacks.gradient_shares: {type(module).__name__} trains on references alone: set it to null"
            )

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        def probe(update: GRPOUpdate, rollout: Rollout, sizes: Sequence[UpdateSize]) -> dict[str, float]:
            if trainer.current_epoch % self.every_n_iterations:
                return {}
            return shares(gradient_norms(update, rollout, sizes, summed))

        def summed(values: Tensor) -> Tensor:
            return values if trainer.world_size == 1 else trainer.strategy.reduce(values, reduce_op="sum")

        pl_module.probes.append(probe)
