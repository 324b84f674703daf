"""The second half of a GRPO iteration: advantages, and optimiser steps on the rows of one rollout."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edge_grpo.advantages.base import Advantage, AdvantageInputs, Grading
from edge_grpo.algorithms.reports import Reports
from edge_grpo.algorithms.returned import Checked
from edge_grpo.importance_corrections.base import ImportanceCorrection, Mismatch
from edge_grpo.importance_corrections.uncorrected import Uncorrected
from edge_grpo.losses.base import Loss, LossInputs, UpdateSize
from edge_grpo.policy.forward import MicrobatchForward, hold_whole_groups
from edge_grpo.token_filters.base import TokenFilter, TokenFilterInputs
from edge_grpo.types.update import Step, UpdateBatch


class GRPOUpdate:
    """Works on one `UpdateBatch` of whole groups.

    Args:
        model: the policy; `reference`: frozen copy, or None where beta = 0.
        batch: rows of whole groups, on the model's device.
        rewards: [N], after correction.
        computed: [M] rows that are computed, in whole groups (see `rows.py`). The denominators count all rows.
        advantage, loss: the strategies; `num_generations`: G.
        forward: cuts micro-batches and computes log-probs and entropies.
        token_filter: what a token's advantage is multiplied by, None: 1; `recorded`: what it reads, without advantages.
        importance_correction: weighs tokens by what trainer and engine say of them; None: 1.
        grading: of the rows; training always gives it.
        minibatches: the rows of each optimiser step of an epoch, in whole groups, every row once; one may have none
            here and some on another rank. None: all rows in one step.
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
        minibatches: Sequence[Tensor] | None = None,
        token_filter: TokenFilter | None = None,
        recorded: TokenFilterInputs | None = None,
        importance_correction: ImportanceCorrection | None = None,
    ) -> None:
        self.model, self.reference, self.batch, self.rewards = model, reference, batch, rewards
        self.computed, self.advantage, self.loss, self.forward = computed, advantage, loss, forward
        self.num_generations, self.grading, self.recorded = num_generations, grading, recorded
        self.token_filter, self.importance_correction = token_filter, importance_correction or Uncorrected()
        # The padded width is a micro-batch's own, so what reads padding is taken there.
        needs = getattr(loss, "needs_whole_groups", False)
        whole = num_generations if needs or advantage.inside_update or advantage.reads_padding else None
        self.minibatches = minibatches or [torch.arange(batch.num_rows, device=computed.device)]
        parts = [computed[torch.isin(computed, rows)] for rows in self.minibatches]
        # Every rank takes part in every step: where nothing of its rows is computed here, a group stands in.
        self._stand_in = [len(part) == 0 for part in parts]
        parts = [part if len(part) else computed[:num_generations] for part in parts]
        self.steps = [forward.microbatches(batch, part, whole) for part in parts]
        self.microbatches = [rows for step in self.steps for rows in step]
        self.missing = [0] * len(parts)  # micro-batches that another rank has besides: see `MicrobatchForward.nothing`
        # Where micro-batches hold whole groups the update's own forward pass has the entropies that EDA needs. Not
        # with several steps an epoch, since the policy moves, nor with a token filter that waits for advantages.
        one = len(self.steps) == 1 and not (token_filter is not None and token_filter.reads_advantages)
        self.in_forward = advantage.inside_update or (
            advantage.reads_entropy and one and hold_whole_groups(self.microbatches, num_generations)
        )
        dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self.advantages = torch.zeros_like(batch.token_weights, dtype=dtype)
        self.factors, self.checked = torch.ones_like(self.advantages), Checked()  # of the token filter; of strategies
        # Of the policy before the update; filled by the first epoch before any step, or by `prepare`.
        self.old_logprobs, self.entropy = torch.zeros(2, *self.advantages.shape, dtype=dtype, device=rewards.device)
        self.ref_logprobs: Tensor | None = None
        self.of_advantage, self.of_loss, self.of_filter = (
            Reports(strategy, batch.num_rows) for strategy in (advantage, loss, token_filter)
        )

    def sizes(self) -> list[tuple[int, int, int]]:
        """This rank's trained rows, trained tokens and micro-batches of each step of an epoch (see `UpdateSize`)."""
        trained, steps = self.batch.trained, zip(self.minibatches, self.steps, strict=True)
        return [(int(trained[rows].any(1).sum()), int(trained[rows].sum()), len(step)) for rows, step in steps]

    def prepare(self) -> None:
        """Log-probs of the reference, what the update's own forward passes cannot give, and the token filter."""
        own = [rows for rows, other in zip(self.steps, self._stand_in, strict=True) if not other]
        microbatches = [rows for step in own for rows in step]
        if self.reference is not None:
            self.ref_logprobs = self.forward.over(self.reference, self.batch, microbatches).logprobs
        several, in_advance = len(self.steps) > 1, self.advantage.reads_entropy and not self.in_forward
        if several or self.advantage.reads_entropy:  # on every rank, since a sharded model is gathered for it
            before = self.forward.over(self.model, self.batch, microbatches if several or in_advance else [])
        if several:
            self.old_logprobs = (before.logprobs * self.batch.completion_mask).to(self.old_logprobs.dtype)
            self.entropy = before.entropy.to(self.entropy.dtype)
        if not self.advantage.reads_entropy:
            self._take_advantages(torch.arange(self.batch.num_rows, device=self.rewards.device), self.batch, None, None)
        elif in_advance:
            # An advantage that reads padding takes it as wide as in the micro-batch.
            whole = hold_whole_groups(microbatches, self.num_generations)
            for rows in microbatches if whole else [self.computed]:
                part = self.batch.select(rows)
                width = part.token_weights.shape[1]
                self._take_advantages(rows, part, before.entropy[rows][:, :width], before.logprobs[rows][:, :width])
        if self.token_filter is not None and self.recorded is not None:
            inputs = replace(self.recorded, advantages=self.advantages if self.token_filter.reads_advantages else None)
            self.factors, values = self.checked.factors(self.token_filter, inputs)
            self.of_filter.add(values, torch.arange(self.batch.num_rows), self.recorded.trained)

    def run(
        self, epochs: int, sizes: Sequence[UpdateSize], optimise: Callable[[Sequence[Callable[[], Tensor]]], Step]
    ) -> list[Step]:
        """mu times the optimiser steps of an epoch, in the same order.

        Args:
            epochs: mu.
            sizes: of each step of an epoch over all ranks.
            optimise: one optimiser step on the sum of the given micro-batch losses.

        Returns:
            The steps; `bad` counts within `microbatches`.
        """
        with self.forward.on(self.model, training=True):
            return [
                self._step(step, size, epoch, optimise) for epoch in range(epochs) for step, size in enumerate(sizes)
            ]

    def _step(
        self, step: int, size: UpdateSize, epoch: int, optimise: Callable[[Sequence[Callable[[], Tensor]]], Step]
    ) -> Step:
        if size.rows == 0:  # every group was dropped: Adam's momentum must not move the policy either
            optimise = _without_step
        loss = partial(self.microbatch_loss, size=size, step=step, epoch=epoch)
        nothing = partial(self.forward.nothing, self.model, self.batch, self.steps[step][0])
        done = optimise([partial(loss, rows) for rows in self.steps[step]] + [nothing] * self.missing[step])
        first, own = sum(map(len, self.steps[:step])), len(self.steps[step])
        return done if done.bad is None else done._replace(bad=tuple(first + i for i in done.bad if i < own))

    def microbatch_loss(self, rows: Tensor, *, size: UpdateSize, step: int, epoch: int) -> Tensor:
        """The loss of some rows, with graph; summed over micro-batches and ranks it is the step's."""
        if self._stand_in[step]:
            return self.forward.nothing(self.model, self.batch, rows)
        part, of_loss = self.batch.select(rows), getattr(self.loss, "differentiates_entropy", False)
        stats = self.forward(self.model, part, entropy_grad=of_loss or self.advantage.differentiates_entropy)
        width, mask = stats.logprobs.shape[1], part.completion_mask
        if epoch == 0 and len(self.steps) == 1:
            self.old_logprobs[rows, :width] = (stats.logprobs * mask).detach().to(self.old_logprobs.dtype)
            self.entropy[rows, :width] = stats.entropy.detach().to(self.entropy.dtype)
        old, advantages = self.old_logprobs[rows, :width], self.advantages[rows, :width]
        if self.in_forward and (epoch == 0 or self.advantage.inside_update):
            advantages = self._take_advantages(rows, part, stats.entropy, old)
        weights = self.checked.weighed(self.importance_correction, Mismatch.of(part, old)).weights
        inputs = LossInputs(
            logprobs=stats.logprobs,
            old_logprobs=torch.where(part.off_policy[:, None], part.sampling_logprobs.to(old.dtype), old),
            advantages=advantages * (self.factors[rows, :width] * weights),
            completion_mask=mask,
            token_weights=part.token_weights,
            entropy=stats.entropy if of_loss else stats.entropy.detach(),
            shaping=part.shaping,
            group_ids=part.problem_ids,
            correct=None if self.grading is None else self.grading.correct[rows],
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[rows, :width],
        )
        loss, values = self.checked.loss(self.loss, inputs, size)
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
        advantages, values = self.checked.advantages(self.advantage, inputs)
        advantages = part.with_own_advantages(advantages)
        self.advantages[rows, : advantages.shape[1]] = advantages.detach().to(self.advantages.dtype)
        self.of_advantage.add(values, rows, part.completion_mask)
        return advantages


@torch.no_grad()
def _without_step(microbatch_losses: Sequence[Callable[[], Tensor]]) -> Step:
    """The loss of an update that does not take place."""
    return Step(sum(float(microbatch_loss()) for microbatch_loss in microbatch_losses), 0.0)
