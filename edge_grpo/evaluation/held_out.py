"""Accuracy on the held-out problems before, during and after training."""

import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch

from edge_grpo.errors import UserError
from edge_grpo.policy_module import PolicyModule
from edge_grpo.rollout.base import Sampling
from edge_grpo.seeding import stage_generator, stage_seed
from edge_grpo.types import Problem, Rollout

log = logging.getLogger(__name__)


class HeldOutEvaluation(pl.Callback):
    """Logs `eval/held_out/*` at step 0, every n iterations and at the end.

    Args:
        every_n_iterations: 0 evaluates before and after training only.
        num_samples: responses a problem; accuracy is their mean (avg@n).
        temperature, top_p: see `Sampling`; temperature 0 is greedy.
        max_new_tokens: budget of a response.
        seed: of the draws; null takes the clock, as the official code does (departure 19).
        correct: run the training's correction on the evaluated responses, so that gold answers leak in, as the
            official code does (departure 13). Only to measure what that does.

    Raises:
        UserError: a value out of range.
    """

    def __init__(
        self,
        every_n_iterations: int,
        num_samples: int,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        seed: int | None,
        correct: bool,
    ) -> None:
        if every_n_iterations < 0 or num_samples < 1 or max_new_tokens < 1:
            raise UserError(
                f"evaluation.every_n_iterations={every_n_iterations} must be at least 0, "
                f"evaluation.num_samples={num_samples} and evaluation.max_new_tokens={max_new_tokens} at least 1"
            )
        self.every_n_iterations, self.num_samples = every_n_iterations, num_samples
        self.sampling = Sampling(temperature=temperature, top_p=top_p)
        self.max_new_tokens, self.seed, self.correct = max_new_tokens, seed, correct
        self.accuracy_before: float | None = None
        self.accuracy_after: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The accuracies survive a resume."""
        return {"accuracy_before": self.accuracy_before, "accuracy_after": self.accuracy_after}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accuracy_before = state_dict["accuracy_before"]
        self.accuracy_after = state_dict["accuracy_after"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The policy as it comes, at step 0; a resumed run has measured it already."""
        if self.accuracy_before is None:
            self.accuracy_before = self._run(trainer, pl_module, step=0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Before the checkpoint of the same iteration is written: Lightning runs checkpoint callbacks last.
        done = trainer.current_epoch + 1
        due = self.every_n_iterations and done % self.every_n_iterations == 0
        if due or done == trainer.max_epochs:
            self.accuracy_after = self._run(trainer, pl_module, step=done)

    def _run(self, trainer: pl.Trainer, module: Any, *, step: int) -> float:
        """Evaluate this rank's share of the problems and log the mean over ranks."""
        start = time.perf_counter()
        problems = trainer.datamodule.held_out_problems
        mine = problems[trainer.global_rank :: trainer.world_size]
        with trainer.precision_plugin.forward_context():  # hooks, unlike training_step, run outside it
            right, length, clipped = self._measure(module, mine, step)
        n = len(mine) * self.num_samples
        right, length, clipped, n = module.total_over_ranks(right, length, clipped, n)
        module.record(
            {
                "eval/held_out/accuracy": right / n,
                "eval/held_out/mean_length": length / n,
                "eval/held_out/clipped_ratio": clipped / n,
                "timing_s/evaluation": time.perf_counter() - start,
            },
            step=step,
        )
        if trainer.is_global_zero:
            log.info("held-out accuracy %.1f %% after %d iterations", 100 * right / n, step)
        return right / n

    def _measure(self, module: PolicyModule, problems: tuple[Problem, ...], step: int) -> tuple[float, float, float]:
        """Sums over rows: right, tokens, cut by the budget."""
        if not problems:
            return 0.0, 0.0, 0.0
        seed = stage_seed(time.time_ns() if self.seed is None else self.seed, "evaluation", iteration=step)
        prefixes = [p.prompt_ids for p in problems for _ in range(self.num_samples)]
        responses = module.rollout.generate(
            module.policy,
            prefixes,
            [self.max_new_tokens] * len(prefixes),
            self.sampling,
            stage_generator(seed, "evaluation", rank=module.global_rank),
        )
        scored = module.score(Rollout(tuple(problems), tuple(responses), self.num_samples))
        if self.correct:
            scored = module.correct(scored).scored
        rows = scored.rollout.responses
        cut = torch.tensor([r.finish_reason == "length" for r in rows])
        return float(scored.scores.correct.sum()), float(sum(map(len, rows))), float(cut.sum())
