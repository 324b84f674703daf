"""Supervised fine-tuning on reference solutions: the paper's baseline, and the recipe of the tiny base model."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from edge_grpo.algorithms.base import PolicyModule
from edge_grpo.algorithms.iteration import Iteration
from edge_grpo.corrections.base import UNIFORM_WEIGHT
from edge_grpo.policy.batching import to_update_batch
from edge_grpo.types.problems import Problem, ProblemBatch
from edge_grpo.types.responses import Response, reference_response
from edge_grpo.types.rollouts import Rollout
from edge_grpo.types.update import Step


class SFTModule(PolicyModule):
    """Token-mean cross-entropy on each problem's reference solution followed by EOS; the prompt is not trained on."""

    required_fields = frozenset({"solution"})
    shorter_responses = "drop the row, or take a model with a longer context"

    def longest_responses(self, problems: Sequence[Problem]) -> list[int]:
        """See `PolicyModule.longest_responses`."""
        return [len(self._reference(problem)) for problem in problems]

    def training_step(self, batch: ProblemBatch, batch_idx: int) -> dict[str, Iteration]:
        """One optimiser step on the references of these problems that pass their own grading; none without any."""
        problems = batch.problems
        forward = self.forward_settings(temperature=1.0, packing=self.packing)
        with self.timed("total"):
            rollout = Rollout(tuple(problems), tuple(map(self._reference, problems)), num_generations=1)
            everything = range(rollout.num_rows)
            rows = to_update_batch(
                rollout, everything, token_weight=UNIFORM_WEIGHT, pad_id=self.policy.pad_id, device=self.device
            )
            usable = torch.tensor([p.solution_passes for p in problems], device=self.device)
            (tokens,) = self.total_over_ranks(int(rows.response_lengths[usable].sum()))

            def cross_entropy(some: Tensor) -> Tensor:
                stats = forward(self.model, rows.select(some))
                return -(stats.logprobs.sum(1) * usable[some]).sum() / tokens

            microbatches = forward.microbatches(rows, torch.tensor(everything, device=self.device))
            losses = [partial(cross_entropy, some) for some in microbatches]
            (missing,) = self.missing_microbatches([len(losses)])
            losses += [partial(forward.nothing, self.model, rows, microbatches[0])] * missing
            step = Step(0.0, 0.0)
            if tokens:  # else on no rank, and the optimiser's momentum must not move the policy either
                with forward.on(self.model, training=True):
                    step = self.optimise(losses)
            rate = self.step_scheduler()
        seconds = self.take_timings()
        metrics = {
            "sft/loss": step.loss,
            "train/grad_norm": step.grad_norm,
            "train/skipped_steps": float(step.bad is not None),
            "train/learning_rate": rate,
            **{f"timing_s/{stage}": value for stage, value in seconds.items()},
            **self.idle_shares(seconds),
        }
        bad = sorted(row for i, some in enumerate(microbatches) if i in (step.bad or ()) for row in some.tolist())
        done = Iteration(
            metrics=self.record(metrics, step=self.iteration),
            bad_rows=[{"problem": problems[row].id, "origin": problems[row].origin} for row in bad],
            bad_steps=self.bad_steps,
        )
        return {"iteration": done}

    def _reference(self, problem: Problem) -> Response:
        return reference_response((*problem.solution_ids, self.policy.eos_ids[0]))
