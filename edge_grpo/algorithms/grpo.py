"""GRPO with pluggable stages: this file knows their order, and nothing else does."""

from collections.abc import Sequence
from functools import partial
from itertools import count

from torch import Tensor

from edge_grpo.advantages.base import Grading
from edge_grpo.algorithms.balance import balanced_steps, exchanged, imbalances
from edge_grpo.algorithms.drawing import Drawn, Stream, drawn, one_each, pooled
from edge_grpo.algorithms.grpo_base import GRPOBase
from edge_grpo.algorithms.iteration import Iteration, bad_rows, trained_rows
from edge_grpo.algorithms.metrics import grpo_metrics, timing_metrics, verifier_metrics
from edge_grpo.algorithms.returned import asks, corrected_rows, groups_chosen, groups_kept
from edge_grpo.algorithms.rows import (
    computed_rows,
    grading_of,
    group_tokens,
    kept_rows,
    minibatches,
    recorded,
    skipped_groups,
)
from edge_grpo.algorithms.states import observe
from edge_grpo.algorithms.update import GRPOUpdate
from edge_grpo.allocations.base import Draw
from edge_grpo.corrections.base import Corrected, CorrectionTools
from edge_grpo.group_filters.base import Groups
from edge_grpo.losses.base import UpdateSize
from edge_grpo.rollouts.base import context_bound, engine_metrics
from edge_grpo.types.problems import Problem, ProblemBatch
from edge_grpo.types.rollouts import Rollout, ScoredRollout
from edge_grpo.types.update import UpdateBatch


class GRPOModule(GRPOBase):
    """One training step is one GRPO iteration:

        allocation -> rollout -> rewards   (again while the allocation asks for more)
                -> correction -> rewards (changed rows) -> balance over ranks -> group filter -> log-probs + entropy
                -> advantage -> token filter -> importance correction -> loss -> update

    See `GRPOBase` for its arguments.
    """

    def training_step(self, batch: ProblemBatch, batch_idx: int) -> dict[str, Iteration]:
        """One iteration on at most P groups; Lightning hands what is returned to the callbacks."""
        graded_before, self.generated = self.rewards.counts, [0, 0]
        with self.timed("total"):
            with self.sampling():
                drawing = self.draw(batch)
                sampled = drawing.scored
                with self.timed("correction"):
                    corrected = self.correct(sampled)
            sampled, corrected, balance = self.balance(sampled, corrected)
            update = self.update_of(corrected)
            with self.timed("logprobs"):
                update.prepare()
            sizes = [UpdateSize(*map(int, self.total_over_ranks(*size))) for size in update.sizes()]
            probed = self.probed(update, corrected.scored.rollout, sizes)
            with self.timed("update"):
                update.missing = self.missing_microbatches([len(step) for step in update.steps])
                steps = update.run(self.update_epochs, sizes, self.optimise)
            update.checked.tell(first=self.iteration == 0)
            rate = self.step_scheduler()
        self.remember(drawing)
        metrics = {"train/learning_rate": rate, **self.counts(update), **drawing.metrics, **balance, **probed}
        metrics |= self.collapse_rates(drawing)
        metrics |= grpo_metrics(
            sampled, corrected, update, steps, self.correction, self.generated[0], self.total_over_ranks
        )
        metrics |= verifier_metrics(graded_before, self.rewards.counts)
        seconds = self.take_timings()
        metrics |= timing_metrics(seconds, drawing.metrics["allocation/tokens_drawn"], update, steps)
        metrics |= self.idle_shares(seconds)
        metrics |= engine_metrics(self.rollout)
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

    def draw(self, batch: ProblemBatch) -> Drawn:
        """The allocation's rounds: problems and responses, graded, until no rank asks for more."""
        stream = Stream(batch.at, self.position)
        draw = Draw(
            groups=len(batch.problems),
            num_generations=self.num_generations,
            take=stream.take,
            history=self.history,
            iteration=self.iteration,
            generator=self.generator("allocation"),
        )
        pool, wanted, rounds = None, asks(self.allocation, None, draw), 0
        while pool is None or (rounds < self.allocation.max_rounds and self.total_over_ranks(len(wanted)) != [0]):
            if wanted:  # else another rank's allocation wants more
                with self.timed("rollout"):
                    rollout = self.roll_out(one_each(wanted), group_size=1, call=rounds)
                with self.timed("reward"):
                    pool = pooled(pool, wanted, self.score(rollout))
            assert pool is not None  # the first round asks for something
            rounds += 1
            wanted = asks(self.allocation, pool, draw) if rounds < self.allocation.max_rounds else []
        result = drawn(pool, groups_chosen(self.allocation, pool, draw), stream, draw)
        result.metrics["allocation/rounds"] = float(rounds)
        return result

    def roll_out(self, problems: Sequence[Problem], *, group_size: int, call: int = 0) -> Rollout:
        """`group_size` responses to each problem."""
        prefixes = [list(problem.prompt_ids) for problem in problems for _ in range(group_size)]
        responses = self.generate("rollout", prefixes, [self.rollout.max_new_tokens] * len(prefixes), call=call)
        return Rollout(tuple(problems), tuple(responses), group_size)

    def correct(self, scored: ScoredRollout) -> Corrected:
        """Run the correction strategy with this iteration's tools."""
        calls = count()  # two calls of one iteration draw different tokens
        tools = CorrectionTools(
            generate=lambda prefixes, budgets, temperature=None: self.generate(
                "reflection", prefixes, budgets, call=next(calls), temperature=temperature
            ),
            score=self.rewards,
            encode=self.policy.encode,
            decode=self.policy.decode,
            eos_ids=self.policy.eos_ids,
            pad_id=self.policy.pad_id,
            generator=self.generator("correction"),
            max_new_tokens=self.rollout.max_new_tokens,
            max_reward=self.rewards.max_reward,
            context_length=context_bound(self.policy, getattr(self.rollout, "max_model_len", None))[0],
            prompt=self.prompt,
            problem=self.problem,
            history=self.history,
            iteration=self.iteration,
        )
        return corrected_rows(self.correction, scored, tools)

    def balance(
        self, sampled: ScoredRollout, corrected: Corrected
    ) -> tuple[ScoredRollout, Corrected, dict[str, float]]:
        """The groups of this rank's update: as many as it drew, and of all ranks' tokens about its share; metrics."""
        if not self.balance_batch or self.trainer.world_size == 1:
            return sampled, corrected, {}
        with self.timed("balance"):
            batch, rewards, grading, stands_in = self.kept(corrected)
            skipped = (
                skipped_groups(batch, rewards, self.advantage, self.loss, self.num_generations, grading) | stands_in
            )
            tokens = group_tokens(batch, skipped, len(corrected.scored.rollout.problems), packing=self.packs)
            of_ranks = self.gathered(tokens)
            places = balanced_steps(of_ranks, self.minibatch_rows, self.num_generations)
            groups = exchanged(sampled, corrected, places, self.global_rank, self.delivered)
            return *groups, imbalances(of_ranks, places)

    def kept(self, corrected: Corrected) -> tuple[UpdateBatch, Tensor, Grading, bool]:
        """Rows of the groups that the filter keeps, their rewards [N], what grading says, whether one stands in."""
        scores, rollout = corrected.scored.scores, corrected.scored.rollout
        rewards = scores.rewards.to(self.device)
        correct = scores.correct.to(self.device).view(-1, self.num_generations)
        kept = groups_kept(self.group_filter, Groups(rewards.view(-1, self.num_generations), correct))
        batch = kept_rows(rollout, kept, self.correction, self.policy, self.device, mask_truncated=self.mask_truncated)
        stands_in = not bool(kept.any())
        grading = grading_of(batch, corrected.scored, self.rewards, self.history, self.gathered, stands_in=stands_in)
        return batch, rewards[batch.row_ids], grading, stands_in

    def update_of(self, corrected: Corrected) -> GRPOUpdate:
        """The update on the groups that the filter keeps."""
        rollout = corrected.scored.rollout
        batch, rewards, grading, _ = self.kept(corrected)
        observe(self.strategies, grading.update)
        return GRPOUpdate(
            model=self.model,
            reference=self.reference_model(),
            batch=batch,
            rewards=rewards,
            computed=computed_rows(batch, rewards, self.advantage, self.loss, self.num_generations, grading),
            advantage=self.advantage,
            loss=self.loss,
            num_generations=self.num_generations,
            forward=self.forward_settings(self.rollout.sampling.temperature, self.packs),
            grading=grading,
            minibatches=minibatches(batch, rollout, self.minibatch_rows, self.gathered),
            token_filter=self.token_filter,
            recorded=recorded(batch, rollout, self.gathered, partial(self.generator, "token_filter")),
            importance_correction=self.importance_correction,
        )
