"""The second half of a GRPO iteration: advantages, and mu optimiser steps on the rows of one rollout."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edge_grpo.advantages.base import Advantage, AdvantageInputs, Grading
from edge_grpo.algorithms.reports import Reports
from edge_grpo.losses.base import Loss, LossInputs, UpdateSize
from edge_grpo.policy.forward import MicrobatchForward, hold_whole_groups
from edge_grpo.types import Step, UpdateBatch


class GRPOUpdate:
    """Works on one `UpdateBatch` of whole groups.

    Args:
        model: the policy; `reference`: frozen copy, or None where beta = 0.
        batch: rows of whole groups, on the model's device.
        rewards: [N], after correction.
        computed: [M] rows that are computed, in whole groups (see `rows.py`). The denominators count all rows.
        advantage, loss: the strategies.
        num_generations: G.
        forward: cuts micro-batches and computes log-probs and entropies.
        grading: of the rows; None where the advantage reads none.
    """

    def __init__(
        self,
        model: Any,
        reference: Any | None,
        batch: UpdateBatch,
        rewards: Tensor,
        computed: Tensor,
        advantage: Advantage,
        loss: Loss,
        num_generations: int,
        forward: MicrobatchForward,
        grading: Grading | None = None,
    ) -> None:
        self.model, self.reference, self.batch, self.rewards = model, reference, batch, rewards
        self.computed, self.advantage, self.loss = computed, advantage, loss
        self.num_generations, self.forward, self.grading = num_generations, forward, grading
        # The padded width is a micro-batch's own, so what reads padding is taken there.
        whole = num_generations if advantage.inside_update or advantage.reads_padding else None
        self.microbatches = forward.microbatches(batch, computed, whole)
        # Where micro-batches hold whole groups the update's own forward pass has the entropies that EDA needs.
        self.in_forward = advantage.inside_update or (
            advantage.reads_entropy and hold_whole_groups(self.microbatches, num_generations)
        )
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self.advantages = torch.zeros_like(batch.token_weights, dtype=dtype)
        # Of the policy before the update; filled by the first epoch, before any step.
        self.old_logprobs = torch.zeros_like(self.advantages)
        self.ref_logprobs: Tensor | None = None
        self.of_advantage, self.of_loss = Reports(advantage, batch.num_rows), Reports(loss, batch.num_rows)

    def size(self) -> tuple[int, int, int]:
        """This rank's trained rows, trained tokens and micro-batches (see `UpdateSize`)."""
        trained = self.batch.completion_mask & (self.batch.token_weights > 0)
        return int(trained.any(1).sum()), int(trained.sum()), len(self.microbatches)

    def prepare(self) -> None:
        """Log-probs of the reference, and advantages where the update's own forward passes cannot give them."""
        if self.reference is not None:
            self.ref_logprobs = self.forward.over(self.reference, self.batch, self.microbatches).logprobs
        if not self.advantage.reads_entropy:
            everything = torch.arange(self.batch.num_rows, device=self.rewards.device)
            self._take_advantages(everything, self.batch, None, None)
        elif not self.in_forward:
            stats = self.forward.over(self.model, self.batch, self.microbatches)
            part = self.batch.select(self.computed)
            width = part.token_weights.shape[1]
            entropy, logprobs = stats.entropy[self.computed, :width], stats.logprobs[self.computed, :width]
            self._take_advantages(self.computed, part, entropy, logprobs)

    def run(
        self, epochs: int, size: UpdateSize, optimise: Callable[[Sequence[Callable[[], Tensor]]], Step]
    ) -> list[Step]:
        """mu optimiser steps.

        Args:
            epochs: mu.
            size: of the update over all ranks.
            optimise: one optimiser step on the sum of the given micro-batch losses.
        """
        if size.rows == 0:  # every group was dropped: Adam's momentum must not move the policy either
            optimise = _without_step
        with self.forward.on(self.model):
            return [
                optimise([partial(self._microbatch_loss, rows, size, epoch=epoch) for rows in self.microbatches])
                for epoch in range(epochs)
            ]

    def _microbatch_loss(self, rows: Tensor, size: UpdateSize, *, epoch: int) -> Tensor:
        """The loss of some rows, with graph; summed over micro-batches and ranks it is the update's."""
        part = self.batch.select(rows)
        stats = self.forward(self.model, part, entropy_grad=self.advantage.differentiates_entropy)
        width, mask = stats.logprobs.shape[1], part.completion_mask
        if epoch == 0:
            self.old_logprobs[rows, :width] = (stats.logprobs * mask).detach().to(self.old_logprobs.dtype)
        if self.in_forward and (epoch == 0 or self.advantage.inside_update):
            advantages = self._take_advantages(rows, part, stats.entropy, self.old_logprobs[rows, :width])
        else:
            advantages = self.advantages[rows, :width]
        inputs = LossInputs(
            logprobs=stats.logprobs,
            old_logprobs=self.old_logprobs[rows, :width],
            advantages=advantages,
            completion_mask=mask,
            token_weights=part.token_weights,
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[rows, :width],
        )
        loss, values = self.loss(inputs, size)
        self.of_loss.add(values, rows, inputs.trained, epoch)
        return loss

    def _take_advantages(
        self, rows: Tensor, part: UpdateBatch, entropy: Tensor | None, logprobs: Tensor | None
    ) -> Tensor:
        """Advantages [B, T] of whole groups; they and what the strategy reports are kept."""
        inputs = AdvantageInputs(
            rewards=self.rewards[rows],
            num_generations=self.num_generations,
            entropy=entropy,
            completion_mask=part.completion_mask,
            sampled_mask=part.sampled_mask,
            grading=None if self.grading is None else self.grading.select(rows),
            logprobs=logprobs,
        )
        advantages, values = self.advantage(inputs)
        advantages = advantages if advantages.ndim == 2 else advantages[:, None]
        advantages = advantages.expand(part.token_weights.shape)
        self.advantages[rows, : advantages.shape[1]] = advantages.detach().to(self.advantages.dtype)
        self.of_advantage.add(values, rows, part.completion_mask)
        return advantages


@torch.no_grad()
def _without_step(microbatch_losses: Sequence[Callable[[], Tensor]]) -> Step:
    """The loss of an update that does not take place."""
    return Step(sum(float(microbatch_loss()) for microbatch_loss in microbatch_losses), 0.0)
