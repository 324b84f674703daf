"""Evaluation before, during and after training: the held-out problems, and benchmarks if there are any."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl

from edge_grpo.data.base import PromptTemplate, fingerprint
from edge_grpo.errors import UserError
from edge_grpo.evaluation.grading import graded
from edge_grpo.evaluation.results import problem_values
from edge_grpo.evaluation.suite import Evaluation
from edge_grpo.policy.base import Policy
from edge_grpo.runs.stopping import is_last
from edge_grpo.types.problems import Problem

log = logging.getLogger(__name__)

HELD_OUT = "held_out"
TOTAL = "total"


class PeriodicEvaluation(Evaluation, pl.Callback):
    """Logs `eval/<set>/*` at step 0, every n iterations and at the end.

    The sets are `held_out` (of the training data), each benchmark, and `total`, the benchmarks of `average` together,
    weighted by their problems. `limit` holds for the held-out problems too.

    Args:
        every_n_iterations: 0 evaluates before and after training only.
        correct: run the training's correction on the evaluated responses, so that gold answers leak in, as the
            official code does (departure 13). Only to measure what that does.
        shared: arguments of `Evaluation`.

    Raises:
        UserError: a value out of range, or a benchmark called as one of the other sets.
    """

    def __init__(self, every_n_iterations: int, correct: bool, **shared: Any) -> None:
        super().__init__(**shared)
        if every_n_iterations < 0:
            raise UserError(f"evaluation.every_n_iterations={every_n_iterations} must be at least 0")
        for name in (HELD_OUT, TOTAL):
            if name in self.benchmarks:
                raise UserError(f"evaluation.benchmarks.{name}: {name} is a set of every run; choose another name")
        self.every_n_iterations, self.correct = every_n_iterations, correct
        self.accuracy_before: float | None = None
        self.accuracy_after: float | None = None
        self._measured = -1  # updates that the policy had had when `accuracy_after` was measured
        self._before: dict[str, dict[str, Any]] = {}  # set -> scores and solved problems at step 0

    def prepare(self, policy: Policy, template: PromptTemplate, held_out: Sequence[Problem]) -> None:
        """Load the benchmarks, before training.

        Args:
            policy, template: see `Evaluation.load`.
            held_out: the training data's, with tokens.
        """
        self.load(policy, template)
        self.sets = {HELD_OUT: tuple(held_out[: self.limit]), **self.sets}

    def check_module(self, module: Any) -> None:
        """Refuse to correct evaluated responses where the algorithm cannot.

        Raises:
            UserError: the module has no correction.
        """
        if self.correct and not module.corrects:
            raise UserError("evaluation.correct=true, but this algorithm has no correction: set evaluation=greedy")

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each benchmark's problems; the held-out ones are the data's."""
        return {
            f"problems of evaluation.benchmarks.{name}": fingerprint(self.sets[name])
            for name in self.sets
            if name != HELD_OUT
        }

    def state_dict(self) -> dict[str, Any]:
        """The accuracies survive a resume, and what later evaluations are held against."""
        return {
            "accuracy_before": self.accuracy_before,
            "accuracy_after": self.accuracy_after,
            "measured": self._measured,
            "before": dict(self._before),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accuracy_before = state_dict["accuracy_before"]
        self.accuracy_after, self._measured = state_dict["accuracy_after"], state_dict["measured"]
        self._before = dict(state_dict["before"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The policy as it comes, at step 0; a resumed run has measured it already."""
        if self.accuracy_before is None:
            self.accuracy_before = self._run(trainer, pl_module, step=0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Before the checkpoint of the same iteration is written: Lightning runs checkpoint callbacks last.
        done = trainer.current_epoch + 1
        due = self.every_n_iterations and done % self.every_n_iterations == 0
        if due or is_last(trainer):
            self._measure(trainer, pl_module, done)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that shall end where it was stopped has no iteration left, after which its end would be evaluated."""
        if self._measured != trainer.current_epoch:
            self._measure(trainer, pl_module, trainer.current_epoch)

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule, done: int) -> None:
        self.accuracy_after, self._measured = self._run(trainer, module, step=done), done

    def _run(self, trainer: pl.Trainer, module: Any, *, step: int) -> float:
        """Evaluate every set and log it; held-out avg@n."""
        start = time.perf_counter()
        # Hooks, unlike training_step, run outside Lightning's context.
        with trainer.precision_plugin.forward_context(), module.sampling():
            scores = {name: self._scores(module, name, step) for name in self.sets}
        metrics = {f"eval/{name}/{metric}": value for name, of in scores.items() for metric, value in of.items()}
        metrics |= {f"eval/{TOTAL}/{metric}": value for metric, value in self._total(scores).items()}
        module.record({**metrics, "timing_s/evaluation": time.perf_counter() - start}, step=step)
        main = f"avg@{self.num_samples}"
        if trainer.is_global_zero:
            told = "  ".join(f"{name} {100 * of[main]:.1f} %" for name, of in scores.items() if name != HELD_OUT)
            accuracy = 100 * scores[HELD_OUT][main]
            log.info("held-out accuracy %.1f %% after %d iterations%s", accuracy, step, told and f"  ({told})")
        return scores[HELD_OUT][main]

    def _scores(self, module: Any, name: str, step: int) -> dict[str, float]:
        """Means over the problems of the set `name`, of which every rank has a share, and against step 0."""
        problems = self.sets[name]
        mine = problems[module.trainer.global_rank :: module.trainer.world_size]
        values = self._values(module, mine, step) if mine else {}
        sums = [float(values[metric].sum()) if mine else 0.0 for metric in self._names]
        totals = module.total_over_ranks(*sums)
        scores = {metric: total / len(problems) for metric, total in zip(self._names, totals, strict=True)}
        right = values[f"avg@{self.num_samples}"] > 0 if mine else ()
        here = [problem.id for problem, solved in zip(mine, right, strict=True) if solved]
        solved = {problem_id for rank in module.gathered(here) for problem_id in rank}
        if step == 0:
            self._before[name] = {"scores": dict(scores), "solved": sorted(solved)}
            return scores
        before = self._before.get(name)
        return scores if before is None else scores | self._against(before, scores, solved, len(problems))

    def _against(
        self, before: Mapping[str, Any], scores: Mapping[str, float], solved: set[str], problems: int
    ) -> dict[str, float]:
        """What has changed since step 0; `pass@k` of one sample is `avg@1`."""
        ks = {f"pass@{self.num_samples}": f"avg@{self.num_samples}"} if self.num_samples == 1 else {}
        ks |= {name: name for name in self._names if name.startswith("pass@")}
        return {
            "solved_gain": len(solved - set(before["solved"])) / problems,
            "solved_loss": len(set(before["solved"]) - solved) / problems,
            **{f"delta_{shown}": scores[name] - before["scores"][name] for shown, name in ks.items()},
        }

    @property
    def _names(self) -> list[str]:
        """Metrics of a set; of pass@k those with k = n or a power of 2."""
        n = self.num_samples
        ks = [k for k in range(2, n + 1) if k == n or k & (k - 1) == 0]
        several = [*(f"pass@{k}" for k in ks), *([f"maj@{n}"] if n > 1 else [])]
        return [f"avg@{n}", *several, "mean_length", "clipped_ratio", "unparsed_rate"]

    def _values(self, module: Any, problems: tuple[Problem, ...], step: int) -> dict[str, Any]:
        """Metric -> values of these problems, in their order."""
        scored = module.score(self.sample(module.rollout, module.policy, problems, step=step))
        if self.correct:
            scored = module.correct(scored).scored
        return problem_values(graded(scored, module.rewards))

    def _total(self, scores: dict[str, dict[str, float]]) -> dict[str, float]:
        """The benchmarks of `average` together; nothing where there are no benchmarks."""
        names = [name for name in self.benchmarks if self.average is None or name in self.average]
        count = sum(len(self.sets[name]) for name in names)
        return {
            metric: sum(scores[name][metric] * len(self.sets[name]) for name in names) / count
            for metric in (self._names if names else ())
        }
