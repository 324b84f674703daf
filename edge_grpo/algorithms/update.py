"""The second half of a GRPO iteration: advantages and mu optimiser steps on the rows of one rollout."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edge_grpo.advantages.base import Advantage, AdvantageInputs
from edge_grpo.algorithms.metrics import advantage_metrics
from edge_grpo.losses.base import Loss, LossInputs, UpdateSize
from edge_grpo.policy.batching import group_microbatches, microbatches, packed_microbatches
from edge_grpo.policy.memory import out_of_memory
from edge_grpo.policy.packed_attention import packed_attention
from edge_grpo.policy.token_stats import TokenStats, token_stats
from edge_grpo.types import Step, UpdateBatch

_SETTINGS = ("algorithm.microbatch_tokens", "algorithm.chunk_tokens", "data.problems_per_iteration")


class GRPOUpdate:
    """Works on one `UpdateBatch` of whole groups.

    Rows that cannot move the policy are not computed: where the advantages of a collapsed group are 0 and no KL
    term reaches it, its gradient is exactly 0. The denominators of the loss count them all the same.

    Args:
        model: the policy; `reference`: frozen copy, or None where beta = 0.
        batch: rows of whole groups, on the model's device.
        rewards: [N], after correction.
        advantage, loss: the strategies.
        num_generations: G.
        temperature: of the rollout.
        microbatch_tokens: bound on the tokens of a micro-batch.
        chunk_tokens: bound on the tokens whose logits are in memory at once.
        packing: see `token_stats`; an advantage that reads padding gets padded rows.
    """

    def __init__(
        self,
        model: Any,
        reference: Any | None,
        batch: UpdateBatch,
        rewards: Tensor,
        advantage: Advantage,
        loss: Loss,
        num_generations: int,
        temperature: float,
        microbatch_tokens: int,
        chunk_tokens: int,
        packing: bool,
    ) -> None:
        self.model, self.reference, self.batch, self.rewards = model, reference, batch, rewards
        self.advantage, self.loss = advantage, loss
        self.num_generations, self.temperature, self.chunk_tokens = num_generations, temperature, chunk_tokens
        self.packing = packing and not advantage.reads_padding
        self.dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self.advantages = torch.zeros_like(batch.token_weights, dtype=self.dtype)
        self.extras: dict[str, Tensor] = {}
        self.active = self._active_rows()
        self.cuts, whole_groups = self._cuts(microbatch_tokens)
        # Where micro-batches hold whole groups the update's own forward pass has the entropies that EDA needs.
        self.in_forward = advantage.inside_update or (advantage.reads_entropy and whole_groups)
        self.ref_logprobs: Tensor | None = None
        # Of the policy before the update; filled by the first epoch, before any step.
        self.old_logprobs = self._empty_stats().logprobs
        # A micro-batch may be computed again, where a gradient that is not finite is looked for.
        self._counts: dict[str, dict[tuple[int, int], float]] = {}
        self.bad_rows: list[int] = []
        """rows of the batch in micro-batches whose loss or gradient was not finite"""

    @property
    def skipped_tokens(self) -> int:
        """Prompt and response tokens of the rows that are not computed."""
        lengths = self.batch.prompt_lengths + self.batch.response_lengths
        return int(lengths.sum() - lengths[self.active].sum())

    @property
    def computed_response_tokens(self) -> int:
        """Response tokens of the other rows."""
        return int(self.batch.response_lengths[self.active].sum())

    def prepare(self) -> None:
        """Log-probs of the reference, and advantages where the update's own forward passes cannot give them."""
        if self.reference is not None:
            self.ref_logprobs = self._stats(self.reference).logprobs
        if not self.advantage.reads_entropy:
            everything = torch.arange(self.batch.num_rows, device=self.rewards.device)
            self._take_advantages(everything, self.batch, None)
        elif not self.in_forward:
            entropy = self._stats(self.model).entropy[self.active]
            part = self.batch.select(self.active)
            self._take_advantages(self.active, part, entropy[:, : part.token_weights.shape[1]])

    def size(self) -> tuple[int, int, int]:
        """This rank's trained rows, trained tokens and micro-batches (see `UpdateSize`)."""
        trained = self.batch.completion_mask & (self.batch.token_weights > 0)
        return int(trained.any(1).sum()), int(trained.sum()), len(self.cuts)

    def run(
        self, epochs: int, size: UpdateSize, optimise: Callable[[Sequence[Callable[[], Tensor]]], Step]
    ) -> dict[str, float]:
        """mu optimiser steps.

        Args:
            epochs: mu.
            size: of the update over all ranks.
            optimise: one optimiser step on the sum of the given losses.
        """
        if size.rows == 0:  # every group was dropped: Adam's momentum must not move the policy either
            optimise = _without_step
        with packed_attention(self.model, self.packing), out_of_memory(*_SETTINGS):
            steps = [
                optimise([partial(self._share, cut, size, epoch=epoch) for cut in self.cuts]) for epoch in range(epochs)
            ]
        self.bad_rows = sorted({row for step in steps for i in step.bad or () for row in self.cuts[i].tolist()})
        metrics = {
            "train/loss": sum(step.loss for step in steps) / epochs,
            "train/grad_norm": sum(step.grad_norm for step in steps) / epochs,
            "train/skipped_steps": float(sum(step.bad is not None for step in steps)),
        }
        return metrics | self._metrics(epochs)

    def _active_rows(self) -> Tensor:
        """Rows to compute, ascending; at least one group, so that every rank takes part in the update."""
        n, g = self.batch.num_rows, self.num_generations
        inputs = AdvantageInputs(self.rewards, g, self.batch.completion_mask, self.batch.sampled_mask)
        idle = self.advantage.idle_groups(inputs)
        if self.loss.reads_every_row:
            idle = torch.zeros_like(idle)
        if idle.all():
            idle[0] = False
        return torch.arange(n, device=self.rewards.device).view(-1, g)[~idle].flatten()

    def _cuts(self, microbatch_tokens: int) -> tuple[list[Tensor], bool]:
        """Micro-batches of active rows, and whether each holds whole groups."""
        prompts, responses = (
            self.batch.prompt_lengths[self.active].cpu(),
            self.batch.response_lengths[self.active].cpu(),
        )
        if self.packing:
            problems = self.batch.problem_ids[self.active].tolist()
            groups = (prompts + responses).view(-1, self.num_generations)
            largest = int((groups.sum(1) - prompts.view_as(groups)[:, 1:].sum(1)).max())
            whole = largest <= microbatch_tokens
            if self.advantage.inside_update:
                microbatch_tokens = max(microbatch_tokens, largest)
            cuts = packed_microbatches(prompts.tolist(), responses.tolist(), problems, microbatch_tokens)
        elif self.advantage.inside_update:
            whole = True
            cuts = group_microbatches(prompts + responses, self.num_generations, microbatch_tokens)
        else:
            whole = False
            cuts = microbatches(prompts + responses, microbatch_tokens)
        return [self.active[cut.to(self.active.device)] for cut in cuts], whole

    def _share(self, cut: Tensor, size: UpdateSize, *, epoch: int) -> Tensor:
        """One micro-batch's share of the loss, with graph."""
        first = epoch == 0
        part = self.batch.select(cut)
        stats = self._token_stats(self.model, part, entropy_grad=self.advantage.differentiates_entropy)
        width, mask = stats.logprobs.shape[1], part.completion_mask
        if first:
            self.old_logprobs[cut, :width] = (stats.logprobs * mask).detach()
        if self.in_forward and (first or self.advantage.inside_update):
            advantages = self._take_advantages(cut, part, stats.entropy)
        else:
            advantages = self.advantages[cut, :width]
        inputs = LossInputs(
            logprobs=stats.logprobs,
            old_logprobs=self.old_logprobs[cut, :width],
            advantages=advantages,
            completion_mask=mask,
            token_weights=part.token_weights,
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[cut, :width],
        )
        loss, counts = self.loss(inputs, size)
        for name, value in counts.items():
            self._counts.setdefault(name, {})[epoch, int(cut[0])] = float(value)
        return loss

    def _take_advantages(self, rows: Tensor, part: UpdateBatch, entropy: Tensor | None) -> Tensor:
        """Advantages [B, T] of whole groups; they and the strategy's metrics are kept."""
        inputs = AdvantageInputs(
            rewards=self.rewards[rows],
            num_generations=self.num_generations,
            entropy=entropy,
            completion_mask=part.completion_mask,
            sampled_mask=part.sampled_mask,
        )
        advantages, extras = self.advantage(inputs)
        advantages = advantages if advantages.ndim == 2 else advantages[:, None]
        advantages = advantages.expand(part.token_weights.shape)
        self.advantages[rows, : advantages.shape[1]] = advantages.detach().to(self.advantages.dtype)
        for name, values in extras.items():
            kept = self.extras.setdefault(name, torch.full_like(self.advantages[:, 0], torch.nan))
            kept[rows] = values.detach().to(kept.dtype)
        return advantages

    @torch.no_grad()
    def _stats(self, model: Any) -> TokenStats:
        """Token statistics of the active rows, without graph."""
        stats = self._empty_stats()
        with packed_attention(model, self.packing), out_of_memory(*_SETTINGS):
            for cut in self.cuts:
                part = self._token_stats(model, self.batch.select(cut))
                stats.logprobs[cut, : part.logprobs.shape[1]] = part.logprobs
                stats.entropy[cut, : part.entropy.shape[1]] = part.entropy
        return stats

    def _token_stats(self, model: Any, part: UpdateBatch, *, entropy_grad: bool = False) -> TokenStats:
        return token_stats(
            model,
            part,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            packing=self.packing,
            entropy_grad=entropy_grad,
            every_position=self.advantage.reads_padding,
        )

    def _empty_stats(self) -> TokenStats:
        zeros = torch.zeros_like(self.batch.token_weights, dtype=self.dtype)
        return TokenStats(zeros, zeros.clone())

    def _metrics(self, epochs: int) -> dict[str, float]:
        low, high = (self._shares(name, epochs) for name in ("clip_low", "clip_high"))
        low_mean, high_mean = sum(low) / epochs, sum(high) / epochs
        metrics = {
            "train/clip_ratio/low_mean": low_mean,
            "train/clip_ratio/low_min": min(low),
            "train/clip_ratio/high_mean": high_mean,
            "train/clip_ratio/high_max": max(high),
            "train/clip_ratio/region_mean": low_mean + high_mean,
            "perf/skipped_tokens": float(self.skipped_tokens),
        }
        if "kl" in self._counts:
            metrics["train/kl"] = sum(self._shares("kl", epochs)) / epochs
        return metrics | advantage_metrics(self.advantages, self.batch.completion_mask, self.extras)

    def _shares(self, name: str, epochs: int) -> list[float]:
        """A sum over tokens that the loss counted, over the trained tokens, of each update epoch."""
        tokens = max(self.size()[1], 1)
        sums = [0.0] * epochs
        for (epoch, _), value in self._counts[name].items():
            sums[epoch] += value
        return [value / tokens for value in sums]


@torch.no_grad()
def _without_step(shares: Sequence[Callable[[], Tensor]]) -> Step:
    """The loss of an update that does not take place."""
    return Step(sum(float(share()) for share in shares), 0.0)
