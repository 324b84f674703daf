"""GRPO with pluggable stages: this file knows their order, and nothing else does."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edge_grpo.advantages.base import Advantage
from edge_grpo.algorithms.base import PolicyModule
from edge_grpo.algorithms.metrics import (
    collapse_metrics,
    completion_metrics,
    correction_metrics,
    reward_metrics,
    verifier_metrics,
)
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.corrections.base import Corrected, Correction, CorrectionTools
from edge_grpo.errors import UserError
from edge_grpo.group_filters.base import GroupFilter
from edge_grpo.losses.base import Loss, UpdateSize
from edge_grpo.policy.batching import to_update_batch
from edge_grpo.seeding import stage_generator
from edge_grpo.types import Problem, ProblemBatch, Provenance, Response, Rollout, ScoredRollout


class GRPOModule(PolicyModule):
    """One training step is one GRPO iteration:

        rollout -> rewards -> correction -> rewards (changed rows) -> group filter -> log-probs + entropy
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
        if self.rollout.sampling.greedy:
            raise UserError("rollout.temperature=0: greedy responses of a group are all equal, which teaches nothing")
        self.correction, self.group_filter = correction, group_filter
        self.advantage, self.loss = advantage, loss
        self.num_generations, self.update_epochs = num_generations, update_epochs
        # Kept out of the module tree: the reference is frozen, so it is neither saved nor wrapped.
        self._reference = [deepcopy(self.model).eval().requires_grad_(False)] if loss.beta > 0 else []
        self.register_buffer("num_tokens", torch.zeros((), dtype=torch.long))
        self.register_buffer("num_rollouts", torch.zeros((), dtype=torch.long))
        # Of the last iteration, for callbacks.
        self.sampled: ScoredRollout | None = None
        self.corrected: Corrected | None = None
        self.update: GRPOUpdate | None = None

    @property
    def required_fields(self) -> frozenset[str]:
        """What training problems must have."""
        return self.correction.required_fields

    def training_step(self, batch: ProblemBatch, batch_idx: int) -> None:
        """One iteration on P problems."""
        counts = self.rewards.counts
        with self.timed("total"):
            with self.timed("rollout"):
                rollout = self.roll_out(batch.problems)
            with self.timed("reward"):
                sampled = self.score(rollout)
            with self.timed("correction"):
                corrected = self.correct(sampled)
            rewards = corrected.scored.scores.rewards.to(self.device)
            kept = self.group_filter(rewards.view(-1, self.num_generations))
            update = self._update_of(corrected.scored.rollout, rewards, kept)
            with self.timed("logprobs"):
                update.prepare()
            with self.timed("update"):
                size = UpdateSize(*map(int, self.total_over_ranks(*update.size())))
                metrics = update.run(self.update_epochs, size, self.optimise)
        self.sampled, self.corrected, self.update = sampled, corrected, update
        self.bad_rows = [self._describe(row, corrected, update) for row in update.bad_rows]
        self._log(sampled, corrected, update, metrics | verifier_metrics(counts, self.rewards.counts))

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

    def _update_of(self, rollout: Rollout, rewards: Tensor, kept: Tensor) -> GRPOUpdate:
        """The update on the kept groups [P]."""
        weight = self.correction.token_weight
        if not kept.any():
            # Every rank takes part in the update: a group with weight 0 stands in.
            kept, weight = torch.arange(len(kept), device=kept.device) == 0, dict.fromkeys(Provenance, 0.0)
        rows = kept.repeat_interleave(self.num_generations).nonzero().flatten()
        batch = to_update_batch(
            rollout, rows.tolist(), token_weight=weight, pad_id=self.policy.pad_id, device=self.device
        )
        return GRPOUpdate(
            model=self.model,
            reference=self._reference[0].to(self.device) if self._reference else None,
            batch=batch,
            rewards=rewards[rows],
            advantage=self.advantage,
            loss=self.loss,
            num_generations=self.num_generations,
            temperature=self.rollout.sampling.temperature,
            microbatch_tokens=self.microbatch_tokens,
            chunk_tokens=self.chunk_tokens,
            packing=self.packing,
        )

    def _describe(self, row: int, corrected: Corrected, update: GRPOUpdate) -> dict[str, Any]:
        """A row of the update's batch, for the person who looks for what broke it."""
        scored, i = corrected.scored, int(update.batch.row_ids[row])
        problem = scored.rollout.problem_of(i)
        return {
            "problem": problem.id,
            "origin": problem.origin,
            "question": problem.question,
            "response": scored.texts[i],
            "branch": corrected.branches[i] or "",
            "reward": float(scored.scores.rewards[i]),
            "logprobs_finite": bool(update.old_logprobs[row].isfinite().all()),
            "advantages_finite": bool(update.advantages[row].isfinite().all()),
        }

    def _log(self, sampled: ScoredRollout, corrected: Corrected, update: GRPOUpdate, metrics: dict[str, float]) -> None:
        """Everything of one iteration under the names of loggers/metrics.py."""
        after = corrected.scored
        generated = sum(len(response) for response in sampled.rollout.responses)
        rollouts = sampled.rollout.num_rows + corrected.branches.count("reflect")
        trained, new_rollouts = self.total_over_ranks(int(update.batch.response_lengths.sum()), rollouts)
        self.num_tokens += int(trained)
        self.num_rollouts += int(new_rollouts)
        seconds, self.timings = self.timings, {}
        updated = update.computed_response_tokens * self.update_epochs
        metrics |= reward_metrics(sampled, after) | completion_metrics(sampled)
        metrics |= collapse_metrics(sampled, after) | correction_metrics(after, corrected.branches)
        metrics |= {f"timing_s/{stage}": value for stage, value in seconds.items()}
        metrics |= {
            "train/learning_rate": self.step_scheduler(),
            "train/num_tokens": float(self.num_tokens),
            "train/num_rollouts": float(self.num_rollouts),
            "perf/rollout_tokens_per_s": generated / seconds["rollout"],
            "perf/update_tokens_per_s": updated / seconds["update"],
            "perf/peak_memory_gb": self.peak_memory_gb(),
        }
        self.metrics = {}
        self.record(metrics, step=self.iteration)
