"""GRPO with pluggable stages: this file knows their order, and nothing else does."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edge_grpo.advantages.base import Advantage, AdvantageInputs
from edge_grpo.corrections.base import Corrected, Correction, CorrectionTools
from edge_grpo.errors import UserError
from edge_grpo.group_filters.base import GroupFilter
from edge_grpo.losses.base import Loss, LossInputs, UpdateSize
from edge_grpo.metrics import (
    advantage_metrics,
    collapse_metrics,
    correction_metrics,
    multiplier_metrics,
    reward_metrics,
)
from edge_grpo.policy.batching import group_microbatches, microbatches, to_update_batch
from edge_grpo.policy.token_stats import TokenStats, token_stats
from edge_grpo.policy_module import PolicyModule
from edge_grpo.seeding import stage_generator
from edge_grpo.types import Problem, Provenance, Response, Rollout, ScoredRollout, UpdateBatch


class GRPOModule(PolicyModule):
    """One training step is one GRPO iteration:

        rollout -> rewards -> correction -> rewards (changed rows) -> log-probs + entropy -> group filter
                -> advantage -> loss -> update

    Args:
        correction, group_filter, advantage, loss: the strategies.
        num_generations: G, responses a problem.
        update_epochs: mu, optimiser steps a rollout. At 1 the importance ratio is exactly 1 and every clip idle.
        shared: arguments of `PolicyModule`.

    Raises:
        UserError: G below 2 or mu below 1.
    """

    def __init__(
        self,
        correction: Correction,
        group_filter: GroupFilter,
        advantage: Advantage,
        loss: Loss,
        num_generations: int,
        update_epochs: int,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if num_generations < 2:
            raise UserError(f"algorithm.num_generations={num_generations}: a group needs at least 2 responses")
        if update_epochs < 1:
            raise UserError(f"algorithm.update_epochs={update_epochs} must be at least 1")
        self.correction, self.group_filter = correction, group_filter
        self.advantage, self.loss = advantage, loss
        self.num_generations, self.update_epochs = num_generations, update_epochs
        # Kept out of the module tree: the reference is frozen, so it is neither saved nor wrapped.
        self._reference = [deepcopy(self.model).eval().requires_grad_(False)] if loss.beta > 0 else []
        self.register_buffer("num_tokens", torch.zeros((), dtype=torch.long))
        self.register_buffer("num_rollouts", torch.zeros((), dtype=torch.long))
        self.corrected: Corrected | None = None
        """the last iteration's rollout, for callbacks"""

    @property
    def required_fields(self) -> frozenset[str]:
        """What training problems must have."""
        return self.correction.required_fields

    def training_step(self, problems: list[Problem], batch_idx: int) -> None:
        """One iteration on P problems."""
        with self.timed("total"):
            with self.timed("rollout"):
                rollout = self.roll_out(problems)
            with self.timed("reward"):
                sampled = self.score(rollout)
            with self.timed("correction"):
                corrected = self.correct(sampled)
            rewards = corrected.scored.scores.rewards.to(self.device)
            kept = self.group_filter(rewards.view(-1, self.num_generations))
            batch, rewards = self._trained_rows(corrected.scored.rollout, rewards, kept)
            advantages: Tensor | None = None
            metrics: dict[str, float] = {}
            if not self.advantage.inside_update:
                with self.timed("logprobs"):
                    entropy = self._entropy(batch) if self.advantage.reads_entropy else None
                advantages, metrics = self._advantages(batch, rewards, entropy)
            with self.timed("update"):
                metrics |= self._update(batch, rewards, advantages)
        self.corrected = corrected
        self._log(sampled, corrected, batch, metrics)

    def roll_out(self, problems: Sequence[Problem]) -> Rollout:
        """G responses to each problem."""
        prefixes = [list(p.prompt_ids) for p in problems for _ in range(self.num_generations)]
        responses = self._generate("rollout", prefixes, [self.rollout.max_new_tokens] * len(prefixes))
        return Rollout(tuple(problems), tuple(responses), self.num_generations)

    def correct(self, scored: ScoredRollout) -> Corrected:
        """Run the correction strategy with this iteration's tools."""
        tools = CorrectionTools(
            generate=partial(self._generate, "reflection"),
            score=self.rewards,
            encode=self.policy.encode,
            decode=self.policy.decode,
            eos_ids=self.policy.eos_ids,
            generator=self._generator("correction"),
            max_new_tokens=self.rollout.max_new_tokens,
            max_reward=self.rewards.max_reward,
        )
        return self.correction(scored, tools)

    def _generate(self, stage: str, prefixes: list[list[int]], budgets: list[int]) -> list[Response]:
        return self.rollout.generate(self.policy, prefixes, budgets, self.rollout.sampling, self._generator(stage))

    def _generator(self, stage: str) -> torch.Generator:
        return stage_generator(self.seed, stage, iteration=self.iteration, rank=self.global_rank)

    def _trained_rows(self, rollout: Rollout, rewards: Tensor, kept: Tensor) -> tuple[UpdateBatch, Tensor]:
        """The kept groups as tensors, with their rewards [N']."""
        if not kept.any():
            # Every rank must take part in the update: a group with weight 0 stands in.
            kept = kept.clone()
            kept[0] = True
            weight: Mapping[Provenance, float] = dict.fromkeys(Provenance, 0.0)
        else:
            weight = self.correction.token_weight
        rows = kept.repeat_interleave(self.num_generations).nonzero().flatten()
        batch = to_update_batch(
            rollout, rows.tolist(), token_weight=weight, pad_id=self.policy.pad_id, device=self.device
        )
        return batch, rewards[rows]

    @property
    def temperature(self) -> float:
        """Of the distribution that the update works on: the rollout's."""
        return self.rollout.sampling.temperature or 1.0

    @torch.no_grad()
    def _entropy(self, batch: UpdateBatch) -> Tensor:
        """[N, T] token entropies of the policy that is about to be updated."""
        return self._stats(self.model, batch).entropy

    def _stats(self, model: Any, batch: UpdateBatch) -> TokenStats:
        """Token statistics of the whole batch, without graph."""
        logprobs, entropy = torch.zeros_like(batch.token_weights), torch.zeros_like(batch.token_weights)
        for cut in self._cuts(batch):
            part = token_stats(model, batch.select(cut), temperature=self.temperature)
            logprobs[cut, : part.logprobs.shape[1]] = part.logprobs
            entropy[cut, : part.entropy.shape[1]] = part.entropy
        return TokenStats(logprobs, entropy)

    def _cuts(self, batch: UpdateBatch) -> list[Tensor]:
        """Micro-batches; of whole groups where the advantage is taken inside them."""
        lengths = (batch.prompt_lengths + batch.response_lengths).cpu()
        if self.advantage.inside_update:
            cuts = group_microbatches(lengths, self.num_generations, self.microbatch_tokens)
        else:
            cuts = microbatches(lengths, self.microbatch_tokens)
        return [cut.to(self.device) for cut in cuts]

    def _advantages(
        self, batch: UpdateBatch, rewards: Tensor, entropy: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Advantages [N, T] of whole groups, and their metrics."""
        inputs = AdvantageInputs(
            rewards=rewards,
            num_generations=self.num_generations,
            entropy=entropy,
            completion_mask=batch.completion_mask,
            sampled_mask=batch.sampled_mask,
        )
        advantages, extra = self.advantage(inputs)
        if advantages.ndim == 1:
            advantages = advantages[:, None]
        advantages = advantages.expand(batch.token_weights.shape)
        return advantages, self._advantage_metrics(batch, advantages.detach(), extra)

    def _advantage_metrics(
        self, batch: UpdateBatch, advantages: Tensor, extra: Mapping[str, Tensor]
    ) -> dict[str, float]:
        metrics = advantage_metrics(advantages, batch.completion_mask)
        if "eda/multiplier" in extra:
            metrics |= multiplier_metrics(extra["eda/multiplier"], getattr(self.advantage, "clamp", None))
        return metrics

    def _update(self, batch: UpdateBatch, rewards: Tensor, advantages: Tensor | None) -> dict[str, float]:
        """mu optimiser steps on the batch."""
        cuts = self._cuts(batch)
        size = self._update_size(batch, len(cuts))
        reference = self._stats(self._reference_on_device(), batch).logprobs if self._reference else None
        # Filled by the first epoch, before any step: the statistics of the policy before the update.
        before = TokenStats(torch.zeros_like(batch.token_weights), torch.zeros_like(batch.token_weights))
        sums: dict[str, Tensor] = {}
        inside: list[dict[str, float]] = []
        losses, norms = [], []
        for epoch in range(self.update_epochs):

            def share(cut: Tensor, first: bool = epoch == 0) -> Tensor:
                part = batch.select(cut)
                stats = self._differentiable_stats(part)
                t = stats.logprobs.shape[1]
                mask = part.completion_mask
                if first:
                    before.logprobs[cut, :t] = (stats.logprobs * mask).detach()
                    before.entropy[cut, :t] = (stats.entropy * mask).detach()
                if advantages is None:
                    taken, metrics = self._advantages(part, rewards[cut], stats.entropy)
                    inside.append(metrics)
                else:
                    taken = advantages[cut, :t]
                inputs = LossInputs(
                    logprobs=stats.logprobs,
                    old_logprobs=before.logprobs[cut, :t],
                    advantages=taken,
                    completion_mask=mask,
                    token_weights=part.token_weights,
                    ref_logprobs=None if reference is None else reference[cut, :t],
                )
                loss, counts = self.loss(inputs, size)
                for name, value in counts.items():
                    sums[name] = sums.get(name, torch.zeros(())) + value.cpu()
                return loss

            loss, norm = self.optimise([partial(share, cut) for cut in cuts])
            losses.append(loss)
            norms.append(norm)
        metrics = self._update_metrics(sums, before.entropy, batch)
        metrics |= {name: sum(m[name] for m in inside) / len(inside) for name in (inside[0] if inside else ())}
        return metrics | {"train/loss": sum(losses) / len(losses), "train/grad_norm": sum(norms) / len(norms)}

    def _differentiable_stats(self, part: UpdateBatch) -> TokenStats:
        return token_stats(
            self.model,
            part,
            temperature=self.temperature,
            entropy_grad=not getattr(self.advantage, "detach", True),
            every_position=getattr(self.advantage, "reads_padding", False),
        )

    def _reference_on_device(self) -> Any:
        self._reference[0].to(self.device)
        return self._reference[0]

    def _update_size(self, batch: UpdateBatch, num_microbatches: int) -> UpdateSize:
        """What the loss's denominators count, over all ranks."""
        trained = batch.completion_mask & (batch.token_weights > 0)
        rows, tokens, cuts = self.total_over_ranks(int(trained.any(1).sum()), int(trained.sum()), num_microbatches)
        return UpdateSize(rows=int(rows), tokens=int(tokens), microbatches=int(cuts))

    def _update_metrics(self, sums: Mapping[str, Tensor], entropy: Tensor, batch: UpdateBatch) -> dict[str, float]:
        tokens = max(float(sums["tokens"]), 1.0)
        mask, sampled = batch.completion_mask, batch.sampled_mask
        metrics = {
            "train/entropy": float(entropy.sum() / mask.sum()),
            "train/entropy_sampled": float((entropy * sampled).sum() / sampled.sum().clamp(min=1)),
            "train/clip_ratio/low_mean": float(sums["clip_low"]) / tokens,
            "train/clip_ratio/high_mean": float(sums["clip_high"]) / tokens,
        }
        return metrics | ({"train/kl": float(sums["kl"]) / tokens} if "kl" in sums else {})

    def _log(self, sampled: ScoredRollout, corrected: Corrected, batch: UpdateBatch, metrics: dict[str, float]) -> None:
        """Everything of one iteration under the names of metrics.py."""
        after = corrected.scored
        generated = sum(len(response) for response in sampled.rollout.responses)
        rollouts = sampled.rollout.num_rows + corrected.branches.count("reflect")
        trained, new_rollouts = self.total_over_ranks(int(batch.response_lengths.sum()), rollouts)
        self.num_tokens += int(trained)
        self.num_rollouts += int(new_rollouts)
        seconds, self.timings = self.timings, {}
        updated = int((batch.prompt_lengths + batch.response_lengths).sum()) * self.update_epochs
        metrics |= reward_metrics(sampled, after) | collapse_metrics(sampled, after)
        metrics |= correction_metrics(after, corrected.branches)
        metrics |= {f"timing_s/{stage}": value for stage, value in seconds.items()}
        metrics |= {
            "train/lr": self.step_scheduler(),
            "train/num_tokens": float(self.num_tokens),
            "train/num_rollouts": float(self.num_rollouts),
            "perf/rollout_tokens_per_s": generated / seconds["rollout"],
            "perf/update_tokens_per_s": updated / seconds["update"],
            "perf/peak_memory_gb": self.peak_memory_gb(),
        }
        self.record(metrics, step=self.iteration)
