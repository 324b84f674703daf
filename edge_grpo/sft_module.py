"""Supervised fine-tuning on reference solutions: the paper's baseline, and the recipe of the tiny base model."""

from functools import partial

import torch
from torch import Tensor

from edge_grpo.corrections.base import UNIFORM_WEIGHT
from edge_grpo.policy.batching import microbatches, to_update_batch
from edge_grpo.policy.token_stats import token_stats
from edge_grpo.policy_module import PolicyModule
from edge_grpo.types import Problem, ProblemBatch, Provenance, Response, Rollout


class SFTModule(PolicyModule):
    """Token-mean cross-entropy on each problem's reference solution followed by EOS; the prompt is not trained on."""

    required_fields = frozenset({"answers", "solution"})

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
            cuts = microbatches((rows.prompt_lengths + rows.response_lengths).cpu(), self.microbatch_tokens)

            def share(cut: Tensor) -> Tensor:
                stats = token_stats(self.model, rows.select(cut.to(self.device)), temperature=1.0)
                return -(stats.logprobs.sum(1) * usable[cut]).sum() / max(tokens, 1)

            loss, norm = self.optimise([partial(share, cut) for cut in cuts])
            rate = self.step_scheduler()
        timing = {f"timing_s/{stage}": seconds for stage, seconds in self.timings.items()}
        self.timings = {}
        self.record({"sft/loss": loss, "train/grad_norm": norm, "train/lr": rate, **timing}, step=self.iteration)

    def _reference(self, problem: Problem) -> Response:
        ids = torch.tensor([*problem.solution_ids, self.policy.eos_ids[0]])
        written = torch.full(ids.shape, Provenance.REFERENCE, dtype=torch.int8)
        return Response(ids, torch.zeros(ids.shape, dtype=torch.float32), written, "stop")
