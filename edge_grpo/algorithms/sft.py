"""Supervised fine-tuning on reference solutions: the paper's baseline, and the recipe of the tiny base model."""

from functools import partial

import torch
from torch import Tensor

from edge_grpo.algorithms.base import PolicyModule
from edge_grpo.corrections.base import UNIFORM_WEIGHT
from edge_grpo.policy.batching import microbatches, packed_microbatches, to_update_batch
from edge_grpo.policy.memory import out_of_memory
from edge_grpo.policy.packed_attention import packed_attention
from edge_grpo.policy.token_stats import token_stats
from edge_grpo.responses import written_response
from edge_grpo.types import Problem, ProblemBatch, Provenance, Response, Rollout, UpdateBatch


class SFTModule(PolicyModule):
    """Token-mean cross-entropy on each problem's reference solution followed by EOS; the prompt is not trained on."""

    required_fields = frozenset({"solution"})

    def training_step(self, batch: ProblemBatch, batch_idx: int) -> None:
        """One optimiser step on the references of these problems (those that pass their own grading)."""
        problems = batch.problems
        with self.timed("total"):
            rollout = Rollout(tuple(problems), tuple(map(self._reference, problems)), num_generations=1)
            rows = to_update_batch(
                rollout,
                range(rollout.num_rows),
                token_weight=UNIFORM_WEIGHT,
                pad_id=self.policy.pad_id,
                device=self.device,
            )
            usable = torch.tensor([p.solution_passes for p in problems], device=self.device)
            (tokens,) = self.total_over_ranks(int(rows.response_lengths[usable].sum()))

            def share(cut: Tensor) -> Tensor:
                stats = token_stats(
                    self.model,
                    rows.select(cut.to(self.device)),
                    temperature=1.0,
                    chunk_tokens=self.chunk_tokens,
                    packing=self.packing,
                )
                return -(stats.logprobs.sum(1) * usable[cut]).sum() / max(tokens, 1)

            memory = out_of_memory("algorithm.microbatch_tokens", "algorithm.chunk_tokens")
            with packed_attention(self.model, self.packing), memory:
                cuts = self._cuts(rows)
                step = self.optimise([partial(share, cut) for cut in cuts])
            rate = self.step_scheduler()
        bad = sorted(row for i in step.bad or () for row in cuts[i].tolist())
        self.bad_rows = [{"problem": problems[row].id, "origin": problems[row].origin} for row in bad]
        timing = {f"timing_s/{stage}": seconds for stage, seconds in self.timings.items()}
        self.timings = {}
        metrics = {
            "sft/loss": step.loss,
            "train/grad_norm": step.grad_norm,
            "train/skipped_steps": float(step.bad is not None),
            "train/learning_rate": rate,
        }
        self.record(metrics | timing, step=self.iteration)

    def _cuts(self, rows: UpdateBatch) -> list[Tensor]:
        prompts, responses = rows.prompt_lengths.cpu(), rows.response_lengths.cpu()
        if not self.packing:
            return microbatches(prompts + responses, self.microbatch_tokens)
        problems = rows.problem_ids.tolist()
        return packed_microbatches(prompts.tolist(), responses.tolist(), problems, self.microbatch_tokens)

    def _reference(self, problem: Problem) -> Response:
        ids = torch.tensor([*problem.solution_ids, self.policy.eos_ids[0]])
        return written_response(ids, Provenance.REFERENCE, "stop")
