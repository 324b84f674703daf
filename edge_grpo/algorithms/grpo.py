"""GRPO with pluggable stages: this file knows their order, and nothing else does."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import count
from typing import Any

import torch

from edge_grpo.advantages.base import Advantage
from edge_grpo.algorithms.base import PolicyModule
from edge_grpo.algorithms.checks import check_minibatches, check_settings, idle_settings
from edge_grpo.algorithms.iteration import Iteration, bad_rows, trained_rows
from edge_grpo.algorithms.metrics import grpo_metrics, timing_metrics, verifier_metrics
from edge_grpo.algorithms.reports import declared
from edge_grpo.algorithms.rows import computed_rows, grading_of, kept_rows, minibatches
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.corrections.base import Corrected, Correction, CorrectionTools, longest_responses
from edge_grpo.group_filters.base import GroupFilter, Groups
from edge_grpo.loggers.metrics import describe
from edge_grpo.losses.base import Loss, UpdateSize
from edge_grpo.seeding import stage_generator
from edge_grpo.types import Problem, ProblemBatch, Response, Rollout, ScoredRollout


class GRPOModule(PolicyModule):
    """One training step is one GRPO iteration:

        rollout -> rewards -> correction -> rewards (changed rows) -> group filter -> log-probs + entropy
                -> advantage -> loss -> update

    Args:
        correction, group_filter, advantage, loss: the strategies.
        num_generations: G, responses a problem.
        update_epochs: mu, passes over a rollout's rows.
        minibatch_rows: rows of one optimiser step, over all ranks, in whole groups and in the rollout's order, the
            same in every epoch (verl's default; TRL shuffles rows, and problems come shuffled already). The last
            minibatch may be smaller; every one has denominators of its own. null: all rows in one step, so that with
            one epoch the importance ratio is exactly 1 and every clip idle.
        mask_truncated: responses that the token budget ended leave the loss and its denominators (see `kept_rows`).
        shared: arguments of `PolicyModule`.

    Raises:
        UserError: G below 2 or below what the advantage needs, mu below 1, minibatches that would split a group, two
            strategies that define the same metric, or a KL term that the correction refuses.
    """

    corrects = True

    def __init__(
        self,
        correction: Correction,
        group_filter: GroupFilter,
        advantage: Advantage,
        loss: Loss,
        num_generations: int,
        update_epochs: int,
        minibatch_rows: int | None,
        mask_truncated: bool,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        strategies = (self.rollout, correction, advantage, loss)
        check_settings(*strategies, num_generations, update_epochs, minibatch_rows)
        self.correction, self.group_filter = correction, group_filter
        self.advantage, self.loss = advantage, loss
        self.strategy_metrics = declared((correction, advantage, loss), describe)
        self.num_generations, self.update_epochs = num_generations, update_epochs
        self.minibatch_rows, self.mask_truncated = minibatch_rows, mask_truncated
        # Kept out of the module tree: the reference is frozen, so it is neither saved nor wrapped.
        self._reference = [deepcopy(self.model).eval().requires_grad_(False)] if loss.beta > 0 else []
        self._rollouts = 0  # responses that this iteration has generated, a correction's too
        self._ranks = 1
        self.register_buffer("num_tokens", torch.zeros((), dtype=torch.long))
        self.register_buffer("num_rollouts", torch.zeros((), dtype=torch.long))

    shorter_responses = (
        "lower rollout.max_new_tokens, correction.reflection_tokens or correction.max_response_tokens, or drop the row"
    )

    def longest_responses(self, problems: Sequence[Problem]) -> list[int]:
        """See `PolicyModule.longest_responses`."""
        return longest_responses(self.correction, problems, self.rollout.max_new_tokens, self.policy.encode)

    @property
    def required_fields(self) -> frozenset[str]:
        """What training problems must have."""
        return self.correction.required_fields

    def remarks(self) -> list[str]:
        """See `PolicyModule.remarks`."""
        return idle_settings(self.loss, self.update_epochs, self.minibatch_rows)

    def on_fit_start(self) -> None:
        """See `PolicyModule.on_fit_start`; refuse minibatches that the ranks cannot share."""
        super().on_fit_start()
        self._ranks = self.trainer.world_size
        check_minibatches(self.minibatch_rows, self.num_generations, self._ranks)

    def training_step(self, batch: ProblemBatch, batch_idx: int) -> dict[str, Iteration]:
        """One iteration on P problems; Lightning hands what is returned to the callbacks."""
        graded_before, self._rollouts = self.rewards.counts, 0
        with self.timed("total"):
            with self.timed("rollout"):
                rollout = self.roll_out(batch.problems)
            with self.timed("reward"):
                sampled = self.score(rollout)
            with self.timed("correction"):
                corrected = self.correct(sampled)
            update = self.update_of(corrected)
            with self.timed("logprobs"):
                update.prepare()
            with self.timed("update"):
                sizes = [UpdateSize(*map(int, self.total_over_ranks(*size))) for size in update.sizes()]
                steps = update.run(self.update_epochs, sizes, self.optimise)
            rate = self.step_scheduler()
        self._count(update)
        metrics = {"train/learning_rate": rate, "train/num_tokens": float(self.num_tokens)}
        metrics["train/num_rollouts"] = float(self.num_rollouts)
        metrics |= grpo_metrics(sampled, corrected, update, steps, self.correction, self.total_over_ranks)
        metrics |= verifier_metrics(graded_before, self.rewards.counts)
        metrics |= timing_metrics(self.take_timings(), sampled, update, steps)
        metrics["perf/peak_memory_gb"] = self.peak_memory_gb()
        done = Iteration(
            metrics=self.record(metrics, step=self.iteration),
            bad_rows=bad_rows(steps, update, corrected),
            bad_steps=self.bad_steps,
            sampled=sampled,
            corrected=corrected,
            trained=trained_rows(update),
        )
        return {"iteration": done}

    def roll_out(self, problems: Sequence[Problem]) -> Rollout:
        """G responses to each problem."""
        prefixes = [list(p.prompt_ids) for p in problems for _ in range(self.num_generations)]
        responses = self._generate("rollout", prefixes, [self.rollout.max_new_tokens] * len(prefixes), call=0)
        return Rollout(tuple(problems), tuple(responses), self.num_generations)

    def correct(self, scored: ScoredRollout) -> Corrected:
        """Run the correction strategy with this iteration's tools."""
        calls = count()  # two calls of one iteration draw different tokens
        tools = CorrectionTools(
            generate=lambda prefixes, budgets: self._generate("reflection", prefixes, budgets, call=next(calls)),
            score=self.rewards,
            encode=self.policy.encode,
            decode=self.policy.decode,
            eos_ids=self.policy.eos_ids,
            pad_id=self.policy.pad_id,
            generator=self._generator("correction"),
            max_new_tokens=self.rollout.max_new_tokens,
            max_reward=self.rewards.max_reward,
            context_length=self.policy.context_length,
        )
        return self.correction(scored, tools)

    def update_of(self, corrected: Corrected) -> GRPOUpdate:
        """The update on the groups that the filter keeps."""
        scores, rollout = corrected.scored.scores, corrected.scored.rollout
        rewards = scores.rewards.to(self.device)
        correct = scores.correct.to(self.device).view(-1, self.num_generations)
        kept = self.group_filter(Groups(rewards.view(-1, self.num_generations), correct))
        batch = kept_rows(rollout, kept, self.correction, self.policy, self.device, mask_truncated=self.mask_truncated)
        rewards = rewards[batch.row_ids]
        grading = grading_of(batch, scores, self.rewards, self.num_generations, self.gathered)
        packing = self.packing and not self.advantage.reads_padding
        return GRPOUpdate(
            model=self.model,
            reference=self._reference_model(),
            batch=batch,
            rewards=rewards,
            computed=computed_rows(batch, rewards, self.advantage, self.loss, self.num_generations, grading),
            advantage=self.advantage,
            loss=self.loss,
            num_generations=self.num_generations,
            forward=self.forward_settings(self.rollout.sampling.temperature, packing),
            grading=grading,
            minibatches=minibatches(batch, rollout, self.minibatch_rows, self._ranks),
        )

    def _reference_model(self) -> Any | None:
        """In the policy's precision and on its device: Lightning converts the policy only, after it was copied."""
        if not self._reference:
            return None
        return self._reference[0].to(device=self.device, dtype=next(self.model.parameters()).dtype)

    def _generate(self, stage: str, prefixes: list[list[int]], budgets: list[int], *, call: int) -> list[Response]:
        self._rollouts += len(prefixes)
        generator = self._generator(stage, call)
        return self.rollout.generate(self.policy, prefixes, budgets, self.rollout.sampling, generator)

    def _generator(self, stage: str, call: int = 0) -> torch.Generator:
        return stage_generator(self.seed, stage, iteration=self.iteration, rank=self.global_rank, call=call)

    def _count(self, update: GRPOUpdate) -> None:
        """Add this iteration's trained tokens and generated responses, of all ranks."""
        trained, rollouts = self.total_over_ranks(int(update.batch.response_lengths.sum()), self._rollouts)
        self.num_tokens += int(trained)
        self.num_rollouts += int(rollouts)
