"""The second half of a GRPO iteration: advantages and mu optimiser steps on the rows of one rollout."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edge_grpo.advantages.base import Advantage, AdvantageInputs
from edge_grpo.losses.base import Loss, LossInputs, UpdateSize
from edge_grpo.metrics import advantage_metrics
from edge_grpo.policy.batching import group_microbatches, microbatches
from edge_grpo.policy.token_stats import TokenStats, token_stats
from edge_grpo.types import UpdateBatch


class GRPOUpdate:
    """Works on one `UpdateBatch` of whole groups.

    Args:
        model: the policy; `reference`: frozen copy, or None where beta = 0.
        batch: rows of whole groups, on the model's device.
        rewards: [N], after correction.
        advantage, loss: the strategies.
        num_generations: G.
        temperature: of the rollout.
        microbatch_tokens: bound on padded tokens of a micro-batch.
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
    ) -> None:
        self.model, self.reference, self.batch, self.rewards = model, reference, batch, rewards
        self.advantage, self.loss = advantage, loss
        self.num_generations, self.temperature = num_generations, temperature
        lengths = (batch.prompt_lengths + batch.response_lengths).cpu()
        if advantage.inside_update:
            cuts = group_microbatches(lengths, num_generations, microbatch_tokens)
        else:
            cuts = microbatches(lengths, microbatch_tokens)
        self.cuts = [cut.to(batch.tokens.device) for cut in cuts]
        self.advantages: Tensor | None = None
        self.ref_logprobs: Tensor | None = None
        # Of the policy before the update; filled by the first epoch, before any step.
        self.before = self._empty_stats()
        self._counts: dict[str, Tensor] = {}
        self._advantage_metrics: list[dict[str, float]] = []

    def prepare(self) -> None:
        """Log-probs of the reference, and advantages where they do not depend on the update's own forward passes."""
        if self.reference is not None:
            self.ref_logprobs = self._stats(self.reference).logprobs
        if self.advantage.inside_update:
            return
        entropy = self._stats(self.model).entropy if self.advantage.reads_entropy else None
        self.advantages = self._take_advantages(self.batch, self.rewards, entropy)

    def size(self) -> tuple[int, int, int]:
        """This rank's trained rows, trained tokens and micro-batches (see `UpdateSize`)."""
        trained = self.batch.completion_mask & (self.batch.token_weights > 0)
        return int(trained.any(1).sum()), int(trained.sum()), len(self.cuts)

    def run(
        self, epochs: int, size: UpdateSize, optimise: Callable[[Sequence[Callable[[], Tensor]]], tuple[float, float]]
    ) -> dict[str, float]:
        """mu optimiser steps.

        Args:
            epochs: mu.
            size: of the update over all ranks.
            optimise: one optimiser step on the sum of the given losses; returns loss and gradient norm.
        """
        if size.rows == 0:  # every group was dropped: Adam's momentum must not move the policy either
            optimise = _without_step
        steps = [
            optimise([partial(self._share, cut, size, first=epoch == 0) for cut in self.cuts])
            for epoch in range(epochs)
        ]
        losses, norms = zip(*steps, strict=True)
        return self._metrics() | {"train/loss": sum(losses) / epochs, "train/grad_norm": sum(norms) / epochs}

    def _share(self, cut: Tensor, size: UpdateSize, *, first: bool) -> Tensor:
        """One micro-batch's share of the loss, with graph."""
        part = self.batch.select(cut)
        stats = token_stats(
            self.model,
            part,
            temperature=self.temperature,
            entropy_grad=self.advantage.differentiates_entropy,
            every_position=self.advantage.reads_padding,
        )
        width, mask = stats.logprobs.shape[1], part.completion_mask
        if first:
            self.before.logprobs[cut, :width] = (stats.logprobs * mask).detach()
            self.before.entropy[cut, :width] = (stats.entropy * mask).detach()
        if self.advantages is None:
            advantages = self._take_advantages(part, self.rewards[cut], stats.entropy)
        else:
            advantages = self.advantages[cut, :width]
        inputs = LossInputs(
            logprobs=stats.logprobs,
            old_logprobs=self.before.logprobs[cut, :width],
            advantages=advantages,
            completion_mask=mask,
            token_weights=part.token_weights,
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[cut, :width],
        )
        loss, counts = self.loss(inputs, size)
        for name, value in counts.items():
            self._counts[name] = self._counts.get(name, torch.zeros((), dtype=torch.float64)) + value.cpu()
        return loss

    def _take_advantages(self, part: UpdateBatch, rewards: Tensor, entropy: Tensor | None) -> Tensor:
        """Advantages [B, T] of whole groups; their metrics are kept."""
        inputs = AdvantageInputs(
            rewards=rewards,
            num_generations=self.num_generations,
            entropy=entropy,
            completion_mask=part.completion_mask,
            sampled_mask=part.sampled_mask,
        )
        advantages, extra = self.advantage(inputs)
        advantages = advantages if advantages.ndim == 2 else advantages[:, None]
        advantages = advantages.expand(part.token_weights.shape)
        self._advantage_metrics.append(advantage_metrics(advantages.detach(), part.completion_mask, extra))
        return advantages

    @torch.no_grad()
    def _stats(self, model: Any) -> TokenStats:
        """Token statistics of the whole batch, without graph."""
        stats = self._empty_stats()
        for cut in self.cuts:
            part = token_stats(
                model,
                self.batch.select(cut),
                temperature=self.temperature,
                every_position=self.advantage.reads_padding,
            )
            stats.logprobs[cut, : part.logprobs.shape[1]] = part.logprobs
            stats.entropy[cut, : part.entropy.shape[1]] = part.entropy
        return stats

    def _empty_stats(self) -> TokenStats:
        dtype = torch.promote_types(next(self.model.parameters()).dtype, torch.float32)
        zeros = torch.zeros_like(self.batch.token_weights, dtype=dtype)
        return TokenStats(zeros, zeros.clone())

    def _metrics(self) -> dict[str, float]:
        tokens = max(float(self._counts["tokens"]), 1.0)
        mask, sampled, entropy = self.batch.completion_mask, self.batch.sampled_mask, self.before.entropy
        metrics = {
            "train/entropy": float(entropy.sum() / mask.sum()),
            "train/entropy_sampled": float((entropy * sampled).sum() / sampled.sum().clamp(min=1)),
            "train/clip_ratio/low_mean": float(self._counts["clip_low"]) / tokens,
            "train/clip_ratio/high_mean": float(self._counts["clip_high"]) / tokens,
        }
        if "kl" in self._counts:
            metrics["train/kl"] = float(self._counts["kl"]) / tokens
        return metrics | _mean_over(self._advantage_metrics)


@torch.no_grad()
def _without_step(shares: Sequence[Callable[[], Tensor]]) -> tuple[float, float]:
    """Loss and gradient norm of an update that does not take place."""
    return sum(float(share()) for share in shares), 0.0


def _mean_over(dicts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(d[name] for d in dicts) / len(dicts) for name in dicts[0]}
